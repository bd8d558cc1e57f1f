"""Combinations held out from training, which shapes world's benchmark tests.

One in ten pairs of colour and noun is held out, and one in ten triples noun-relation-noun with two different nouns:
those for which SHA-256 of "red circle" or "circle left of square", read as a number, is divisible by ten. A relation is
first written as "left of" or "above", so that both directions are held out. A picture shows a triple if the relation
holds by GenEval's rule, whether or not a text states it.

No training sample of shapes world contains a held-out combination, in a right or wrong text or picture:

    texts       random scenes and detours avoid them; prompts from a file and plans of a model that state one are
                rejected
    pictures    layouts (``world.place_scenes``) and faulty drafts (``faults.corrupt``) avoid them

There are two exceptions: the autoencoder, which sees no text, trains on all looks, and the texts of a remote judge are
not filtered.
"""

import functools
import hashlib
import itertools

from pdgen.shapes.graph import INVERSE, Relation, SceneGraph

ONE_IN = 10


@functools.cache
def _hash_is_held_out(words: str) -> bool:
    return int.from_bytes(hashlib.sha256(words.encode()).digest()) % ONE_IN == 0


def is_held_out_look(color: str, noun: str) -> bool:
    """Return whether a pair of colour and noun is held out."""
    return _hash_is_held_out(f"{color} {noun}")


def is_held_out_relation(subject: str, kind: str, reference: str) -> bool:
    """Return whether a triple noun-relation-noun is held out. Two equal nouns never are."""
    if kind in ("right of", "below"):
        subject, kind, reference = reference, INVERSE[kind], subject
    return subject != reference and _hash_is_held_out(f"{subject} {kind} {reference}")


def is_held_out(graph: SceneGraph) -> bool:
    """Return whether the graph states a held-out pair or triple."""
    nouns = {e.id: e.noun for e in graph.entities}
    looks = ((e.attributes["color"], e.noun) for e in graph.entities if "color" in e.attributes)
    triples = ((nouns[r.subject], r.kind, nouns[r.reference]) for r in graph.relations)
    return any(itertools.starmap(is_held_out_look, looks)) or any(itertools.starmap(is_held_out_relation, triples))


def find_unstated(graph: SceneGraph) -> list[Relation]:
    """Return the held-out relations between entities that the graph does not state."""
    stated = {*graph.relations, *(r.with_subject(r.reference) for r in graph.relations if r.kind in INVERSE)}
    every = itertools.product(itertools.combinations(graph.entities, 2), INVERSE)
    held_out = (Relation(a.id, kind, b.id) for (a, b), kind in every if is_held_out_relation(a.noun, kind, b.noun))
    return [relation for relation in held_out if relation not in stated]

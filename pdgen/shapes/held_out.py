"""What is kept from training, so that shapes world's benchmark asks for what no model has seen or read of.

One in ten pairs of colour and noun, and one in ten triples noun-relation-noun of two nouns: SHA-256 of "red circle" or
"circle left of square" as a number is divisible by ten. A relation is first turned to "left of" or "above", so that it
is held out whichever way it is said. A picture shows a triple where the relation is true by GenEval's rule, stated or
not.

No text and no picture of a training sample of shapes world, right or wrong, says or shows one:

    what a graph says       random scenes and ways round avoid it; a prompt of a file or a plan of a model that says it
                            is rejected
    what a picture shows    layouts (``world.place``) and faulty drafts (``faults.corrupt``) avoid it

The autoencoder alone, which knows no words, learns from pictures of all looks; what a remote judge writes is its own.
"""

import functools
import hashlib
import itertools

from pdgen.shapes.graph import INVERSE, Relation, SceneGraph

ONE_IN = 10


@functools.cache
def _held_out(words: str) -> bool:
    return int.from_bytes(hashlib.sha256(words.encode()).digest()) % ONE_IN == 0


def held_out_look(color: str, noun: str) -> bool:
    """Whether a pair of colour and noun is kept from training."""
    return _held_out(f"{color} {noun}")


def held_out_relation(subject: str, kind: str, reference: str) -> bool:
    """Whether a triple noun-relation-noun is kept from training; one noun twice never is."""
    if kind in ("right of", "below"):
        subject, kind, reference = reference, INVERSE[kind], subject
    return subject != reference and _held_out(f"{subject} {kind} {reference}")


def held_out(graph: SceneGraph) -> bool:
    """Whether the graph says a pair or a triple that is kept from training."""
    nouns = {e.id: e.noun for e in graph.entities}
    looks = ((e.attributes["color"], e.noun) for e in graph.entities if "color" in e.attributes)
    triples = ((nouns[r.subject], r.kind, nouns[r.reference]) for r in graph.relations)
    return any(itertools.starmap(held_out_look, looks)) or any(itertools.starmap(held_out_relation, triples))


def unstated(graph: SceneGraph) -> list[Relation]:
    """The held-out relations between two entities that the graph does not state."""
    stated = {*graph.relations, *(r.seen_from(r.reference) for r in graph.relations if r.kind in INVERSE)}
    every = itertools.product(itertools.combinations(graph.entities, 2), INVERSE)
    kept = (Relation(a.id, kind, b.id) for (a, b), kind in every if held_out_relation(a.noun, kind, b.noun))
    return [relation for relation in kept if relation not in stated]

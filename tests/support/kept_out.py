"""Pairs and triples of colours, nouns and relations in texts and pictures, and those kept from training."""

import hashlib
import io
import itertools
import re

import numpy as np
import PIL.Image

from pdgen.sequence.trajectory import parse_plan
from pdgen.shapes.detector import detect
from pdgen.shapes.graph import COLORS, INVERSE
from pdgen.shapes.instruction import apply_instruction
from pdgen.shapes.lexicon import NUMBERS, RELATIONS, pluralize
from pdgen.shapes.parse import parse, parse_instruction
from pdgen.shapes.world import SHAPES, find_relations

_NOUN = {form: noun for noun in SHAPES for form in (noun, pluralize(noun))}
_KIND = {wording: kind for kind, wordings in RELATIONS.items() for wording in wordings}
_NOUNS, _KINDS, _COLORS, _NEXT = (
    "|".join(sorted(words, key=len, reverse=True)) for words in (_NOUN, _KIND, COLORS, ("the", "an?", *NUMBERS))
)
_SCAN = re.compile(
    rf"\b(?:(?:(?P<color>{_COLORS}) )?(?P<noun>{_NOUNS})|(?P<kind>{_KINDS})(?= (?:{_NEXT}) )|(?P<not>{_KINDS}) it)\b|\."
)


def is_kept_out(words):
    """Return whether SHA-256 of "red circle" or "circle left of square" is divisible by ten."""
    return int(hashlib.sha256(words.encode()).hexdigest(), 16) % 10 == 0


def kept_out(said):
    """Return those of some words that are kept from training; a triple needs two nouns."""
    return {words for words in said if is_kept_out(words) and words.split()[0] != words.split()[-1]}


def triple(subject, kind, reference):
    """Return a relation in words, turned to "left of" or "above"."""
    if kind in ("right of", "below"):
        subject, kind, reference = reference, INVERSE[kind], subject
    return f"{subject} {kind} {reference}"


def of_graph(graph):
    """Return the pairs and triples that a graph states."""
    nouns = {e.id: e.noun for e in graph.entities}
    pairs = {f"{e.attributes['color']} {e.noun}" for e in graph.entities if "color" in e.attributes}
    return pairs | {triple(nouns[r.subject], r.kind, nouns[r.reference]) for r in graph.relations}


def scanned(text):
    """Return the pairs and triples named by any words: adjective before noun, noun before relation before noun."""
    text, said, end = text.lower(), set(), 0
    subject = reference = kind = last = None
    for found in _SCAN.finditer(text):
        if found["noun"]:
            last = _NOUN[found["noun"]]
            said |= {f"{found['color']} {last}"} if found["color"] else set()
            if kind is not None:
                said.add(triple(subject, kind, last))
                reference, kind, end = last, None, found.end()
        elif found["kind"]:
            more = reference is not None and text[end : found.start()] == " and "  # of the same subject
            subject, kind = (subject if more else last), (_KIND[found["kind"]] if last else None)
        elif found["not"] and reference is not None:  # "left of the star, not above it"
            said.add(triple(subject, _KIND[found["not"]], reference))
        elif found[0] == ".":
            subject = reference = kind = last = None
    return said


def of_plan(text):
    """Return the pairs and triples of a plan, by the judge's parser, and those of the changes that it names."""
    words, description = parse_plan(text)
    return of_graph(parse(description)) | of_instruction(words)


def of_instruction(words):
    """Return the pairs and triples of an instruction and of its result for the things that it names."""
    instruction = parse_instruction(words)
    after = set()
    if instruction.operation in ("modify", "swap", "move"):
        after = of_graph(apply_instruction(instruction.graph, instruction))
    return of_graph(instruction.graph) | after


def of_picture(png):
    """Return the pairs and triples that a picture shows, by the detector."""
    found = detect(np.asarray(PIL.Image.open(io.BytesIO(png))))
    related = ((a, b, kind) for a, b in itertools.permutations(found, 2) for kind in find_relations(a, b))
    return {f"{f.color} {f.shape}" for f in found} | {triple(a.shape, kind, b.shape) for a, b, kind in related}


def of_segment(segment):
    """Return the pairs and triples that a segment of a record says or shows; inspections have no parser."""
    if segment.stage in ("sketch", "refine"):
        return of_picture(segment.png)
    readers = {"prompt": lambda text: of_graph(parse(text)), "plan": of_plan, "inspect": scanned}
    return readers[segment.stage](segment.text)

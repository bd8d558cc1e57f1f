"""GenEval's metadata: what each prompt asks for, and its comparison with a scene graph."""

from typing import Literal

import msgspec

from pdgen.json_text import decode_json
from pdgen.shapes.graph import Entity, SceneError, SceneGraph
from pdgen.shapes.parse import parse
from pdgen.shapes.phrases import collect_relations, is_or_are, phrase_new

RelationKind = Literal["left of", "right of", "above", "below"]


class Included(msgspec.Struct, frozen=True, rename={"noun": "class"}):
    """A class of which at least ``count`` objects must be visible."""

    noun: str
    count: int
    color: str | None = None  # None: any
    position: tuple[RelationKind, int] | None = None  # a relation, and the index in the list of its reference


class Excluded(msgspec.Struct, frozen=True, rename={"noun": "class"}):
    """A class of which fewer than ``count`` objects may be visible."""

    noun: str
    count: int


class Metadata(msgspec.Struct, frozen=True):
    """One line of GenEval's ``evaluation_metadata.jsonl``."""

    tag: str
    include: list[Included]
    prompt: str
    exclude: list[Excluded] = []

    def __post_init__(self) -> None:
        for item in self.include:
            if item.position is not None and not 0 <= item.position[1] < len(self.include):
                raise ValueError(f"position of {item.noun!r} refers to number {item.position[1]} of include")


def decode_metadata(line: bytes | str) -> Metadata:
    """Decode one record from JSON. Raises SceneError with the name of a key that is missing or has a wrong value."""
    try:
        return decode_json(line, Metadata)
    except msgspec.DecodeError as fault:
        raise SceneError(f"metadata: {fault}") from None


def find_disagreements(metadata: Metadata) -> list[str]:
    """Return the differences between the parsed prompt and its metadata, or why the prompt cannot be parsed."""
    try:
        return [f"{metadata.prompt!r}: {found}" for found in compare_graph(parse(metadata.prompt), metadata)]
    except SceneError as fault:
        return [str(fault)]


def compare_graph(graph: SceneGraph, metadata: Metadata) -> list[str]:
    """Return the differences between a scene graph and the metadata, empty if both say the same.

    The graph must have each included object with its count and its color or none. It must state each position and no
    other relation, and must hold fewer objects than are excluded.
    """
    found = []
    left = list(graph.entities)
    ids: list[int | None] = []
    for item in metadata.include:
        attributes = {} if item.color is None else {"color": item.color}
        same = [e for e in left if (e.noun, e.count, e.attributes) == (item.noun, item.count, attributes)]
        ids.append(same[0].id if same else None)
        if same:
            left.remove(same[0])
        else:
            wanted = Entity(0, item.noun, item.count, attributes)
            found.append(f"{phrase_new(wanted)} {is_or_are(wanted)} not in the graph")
    found += [f"{phrase_new(e)} {is_or_are(e)} not in the metadata" for e in left]
    found += _compare_positions(graph, metadata, ids)
    for item in metadata.exclude:
        count = sum(e.count for e in graph.entities if e.noun == item.noun)
        if count >= item.count:
            found.append(f"{count} of {item.noun!r}, but fewer than {item.count} are asked for")
    if graph.background is not None:
        found.append(f"the background {graph.background!r} is not in the metadata")
    return found


def _compare_positions(graph: SceneGraph, metadata: Metadata, ids: list[int | None]) -> list[str]:
    found = []
    positions = [(n, *item.position) for n, item in enumerate(metadata.include) if item.position is not None]
    for number, kind, reference in positions:
        subject, other = ids[number], ids[reference]
        if subject is None or other is None:
            continue  # reported as absent already
        if not any(r.kind == kind for r in collect_relations(graph, subject, [other])):
            nouns = metadata.include[number].noun, metadata.include[reference].noun
            found.append(f"{nouns[0]!r} is not {kind} {nouns[1]!r} in the graph")
    if len(graph.relations) > len(positions):
        found.append(f"relations: {len(graph.relations)} in the graph, {len(positions)} in the metadata")
    return found

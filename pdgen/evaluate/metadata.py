"""GenEval's metadata: what each prompt asks for, and whether a graph says the same."""

from typing import Literal

import msgspec

from pdgen.shapes.graph import Entity, SceneError, SceneGraph
from pdgen.shapes.parse import parse
from pdgen.shapes.phrases import collect_relations, is_or_are, phrase_new

Kind = Literal["left of", "right of", "above", "below"]


class Included(msgspec.Struct, frozen=True, rename={"noun": "class"}):
    """Something to be seen. ``position``: its relation to the thing of that index in the list."""

    noun: str
    count: int
    color: str | None = None
    position: tuple[Kind, int] | None = None


class Excluded(msgspec.Struct, frozen=True, rename={"noun": "class"}):
    """A noun of which there must be fewer than ``count``."""

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
    """One record from JSON. Raises SceneError naming the key at fault."""
    try:
        return msgspec.json.decode(line, type=Metadata)
    except msgspec.DecodeError as fault:
        raise SceneError(f"metadata: {fault}") from None


def find_disagreements(metadata: Metadata) -> list[str]:
    """In what the parsed prompt and the metadata differ, or why the prompt cannot be parsed; empty where they agree."""
    try:
        return [f"{metadata.prompt!r}: {found}" for found in agrees(parse(metadata.prompt), metadata)]
    except SceneError as fault:
        return [str(fault)]


def agrees(graph: SceneGraph, metadata: Metadata) -> list[str]:
    """In what the graph is not what the metadata asks for; empty where both say the same.

    A graph must have each included thing, with its count and its colour or none, must state each position and
    nothing beyond, and must hold fewer than what is excluded.
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
    found += _of_positions(graph, metadata, ids)
    for item in metadata.exclude:
        count = sum(e.count for e in graph.entities if e.noun == item.noun)
        if count >= item.count:
            found.append(f"{count} of {item.noun!r}, but fewer than {item.count} are asked for")
    if graph.background is not None:
        found.append(f"the background {graph.background!r} is not in the metadata")
    return found


def _of_positions(graph: SceneGraph, metadata: Metadata, ids: list[int | None]) -> list[str]:
    found = []
    positions = [(n, *item.position) for n, item in enumerate(metadata.include) if item.position is not None]
    for number, kind, reference in positions:
        subject, other = ids[number], ids[reference]
        if subject is None or other is None:
            continue  # Named as absent already.
        if not any(r.kind == kind for r in collect_relations(graph, subject, [other])):
            nouns = metadata.include[number].noun, metadata.include[reference].noun
            found.append(f"{nouns[0]!r} is not {kind} {nouns[1]!r} in the graph")
    if len(graph.relations) > len(positions):
        found.append(f"relations: {len(graph.relations)} in the graph, {len(positions)} in the metadata")
    return found

r"""One's own data: JSON lines with images beside them, one trajectory a line.

    {"prompt": "a red circle left of a blue square", "steps": [
      {"instruction": "Draw a red circle.", "description": "A red circle.", "image": "0.png",
       "inspect": "The circle is green.", "correction": "Make the circle red."},
      {"image": "1.png", "inspect": "The circle is red, as asked."},
      {"plan": "<ins>Add a blue square.</ins> <des>A red circle and a blue square.</des>", "image": "2.jpg"}]}

Keys of a line: ``prompt``; ``steps``, at least one; optionally ``id``, ``given`` (files of images that come
before the prompt), and ``complete`` (true: the trajectory ends here, and the model learns to stop; false: it
is a cut).

Keys of a step: ``image``, a PNG, JPEG or WebP file, its path relative to the JSON lines file; before it a plan,
either ``instruction`` and ``description`` or both in one as ``plan`` (closed with ``</ins>`` or ``<\ins>``); after
it ``inspect``, with ``correction`` (or ``<refine>``) if it finds a fault. The plan may be left out after a
correction: then the image alone is corrected. ``target`` false keeps an image as context. What a later step
corrects is context in any case.
"""

import pathlib
from collections.abc import Iterator

import msgspec

from pdgen.sequence.trajectory import Image, Record, Text, parse_plan
from pdgen.synthesis.importers import texts
from pdgen.synthesis.importers.outcome import Outcome, Refused, convert
from pdgen.synthesis.importers.pictures import MISSING, to_png
from pdgen.synthesis.importers.samples import json_samples

FOLDER = "folder"


class Step(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One step of a line; see the module."""

    image: str
    plan: str | None = None
    instruction: str | None = None
    description: str | None = None
    inspect: str | None = None
    correction: str | None = None
    target: bool = True

    def __post_init__(self) -> None:
        if (self.instruction is None) != (self.description is None):
            raise ValueError("instruction and description go together")
        if self.plan is not None and self.instruction is not None:
            raise ValueError("give either plan or instruction and description")
        if self.correction is not None and self.inspect is None:
            raise ValueError("a correction needs inspect, which says what is wrong")


class Line(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One trajectory; see the module."""

    prompt: str
    steps: list[Step]
    id: str | None = None
    given: list[str] = []
    complete: bool = True


def read(path: pathlib.Path) -> Iterator[Outcome]:
    """Records of a JSON lines file, or of all in a folder. Raises ImporterError."""
    return convert(json_samples(path, FOLDER), _record)


def _record(record_id: str, content: tuple[pathlib.Path, bytes]) -> Record:
    folder, data = content
    try:
        line = msgspec.json.decode(data, type=Line)
    except msgspec.DecodeError as fault:
        raise Refused("malformed line", str(fault)) from None
    segments: list[Text | Image] = [Image(stage="given", png=_png(folder, f), target=False) for f in line.given]
    segments.append(texts.prompt(texts.words(line.prompt, "prompt")))
    for step in line.steps:
        if step.plan is not None:
            segments.append(texts.stated_plan(*parse_plan(step.plan), target=True))
        elif step.instruction is not None:
            parts = texts.words(step.instruction, "instruction"), texts.words(step.description, "description")
            segments.append(texts.stated_plan(*parts, target=True))
        image = texts.drawn(segments, _png(folder, step.image))
        segments.append(msgspec.structs.replace(image, target=step.target))
        if step.inspect is not None:
            segments.append(texts.inspection(step.inspect, step.correction))
    segments = texts.without_corrected_targets(segments)
    return Record(id=line.id or record_id, source=FOLDER, complete=line.complete, segments=segments)


def _png(folder: pathlib.Path, file: str) -> bytes:
    try:
        return to_png((folder / file).read_bytes(), file)
    except OSError as fault:
        raise Refused(MISSING, f"{folder / file}: {fault.strerror}") from None

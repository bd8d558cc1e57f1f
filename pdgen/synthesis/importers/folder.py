r"""Importer of user data: JSON lines and image files, one trajectory per line.

    {"prompt": "a red circle left of a blue square", "steps": [
      {"instruction": "Draw a red circle.", "description": "A red circle.", "image": "0.png",
       "inspect": "The circle is green.", "correction": "Make the circle red."},
      {"image": "1.png", "inspect": "The circle is red, as asked."},
      {"plan": "<ins>Add a blue square.</ins> <des>A red circle and a blue square.</des>", "image": "2.jpg"}]}

Keys of a line: ``prompt``; ``steps``, at least one; optionally ``id``, ``given`` (image files before the prompt), and
``complete`` (true: the trajectory ends here, and the model learns to stop; false: it is only the beginning of one).

Keys of a step: ``image``, an image file of any format that ``pdgen.sequence.images`` reads, with its path relative to
the JSON lines file; the plan before it, either as ``instruction`` and ``description`` or in one text as ``plan``
(closed with ``</ins>`` or ``<\ins>``); the inspection after it as ``inspect``, with ``correction`` (or ``<refine>`` in
the text) if it finds a fault. After a correction the plan may be missing, if only the image is corrected. ``target``
false makes an image context. Everything that a later step corrects is context in any case.
"""

import pathlib
from collections.abc import Iterator

import msgspec

from pdgen.json_text import decode_json
from pdgen.sequence.trajectory import Image, Record, Text, parse_plan
from pdgen.synthesis.importers import texts
from pdgen.synthesis.importers.outcome import Outcome, RefusedSample, convert
from pdgen.synthesis.importers.pictures import MISSING, to_png
from pdgen.synthesis.importers.samples import read_json_lines

FOLDER = "folder"


class FolderStep(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One step of a line; see the module's docstring."""

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


class FolderLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One trajectory; see the module's docstring."""

    prompt: str
    steps: list[FolderStep]
    id: str | None = None
    given: list[str] = []
    complete: bool = True


def read_folder(path: pathlib.Path) -> Iterator[Outcome]:
    """Read records from a JSON lines file, or from all in a folder. Raises ImporterError."""
    return convert(read_json_lines(path, FOLDER), _import_line)


def _import_line(record_id: str, content: tuple[pathlib.Path, bytes]) -> Record:
    folder, data = content
    try:
        line = decode_json(data, FolderLine)
    except msgspec.DecodeError as fault:
        raise RefusedSample("malformed line", str(fault)) from None
    segments: list[Text | Image] = [Image(stage="given", png=_read_png(folder, f), target=False) for f in line.given]
    segments.append(texts.make_prompt(texts.read_text(line.prompt, "prompt")))
    for step in line.steps:
        if step.plan is not None:
            segments.append(texts.make_plan(*parse_plan(step.plan), target=True))
        elif step.instruction is not None:
            parts = texts.read_text(step.instruction, "instruction"), texts.read_text(step.description, "description")
            segments.append(texts.make_plan(*parts, target=True))
        image = texts.make_image(segments, _read_png(folder, step.image))
        segments.append(msgspec.structs.replace(image, target=step.target))
        if step.inspect is not None:
            segments.append(texts.make_inspection(step.inspect, step.correction))
    segments = texts.drop_corrected_targets(segments)
    return Record(id=line.id or record_id, source=FOLDER, complete=line.complete, segments=segments)


def _read_png(folder: pathlib.Path, file: str) -> bytes:
    if "\0" in file:
        raise RefusedSample(MISSING, f"{file!r}: no file has a null byte in its name")
    try:
        return to_png((folder / file).read_bytes(), file)
    except OSError as fault:
        raise RefusedSample(MISSING, f"{folder / file}: {fault.strerror}") from None

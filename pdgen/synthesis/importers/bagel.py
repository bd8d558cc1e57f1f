"""BAGEL's parquet files: text-to-image pairs, and editing in one or several turns.

Text-to-image: columns ``image`` (the file's bytes) and ``captions`` (a JSON object of captions). A row becomes a
complete record of prompt, plan and sketch. The prompt is the shortest caption, the plan's description the longest. With
several captions the plan is a target, because it adds information. With one caption it repeats the prompt and is
context.

Editing: columns ``image_list`` (bytes, at least two) and ``instruction_list`` (a list of wordings for each step from
one image to the next). A row becomes a complete record of the first image as given image, the first wordings of all
instructions as prompt, and a plan and a sketch per step. The plans are context, because they repeat the prompt and the
data have no descriptions.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from pdgen.json_text import load_json
from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.synthesis.importers import texts
from pdgen.synthesis.importers.outcome import Outcome, RefusedSample, convert
from pdgen.synthesis.importers.pictures import MISSING, to_png
from pdgen.synthesis.importers.samples import read_parquet

TEXT_TO_IMAGE, EDITING = "bagel_t2i", "bagel_edit"


def read_text_to_image(path: pathlib.Path) -> Iterator[Outcome]:
    """Read records from a text-to-image parquet file or a folder of them. Raises ImporterError."""
    return convert(read_parquet(path, TEXT_TO_IMAGE, [("image", "captions")]), _import_pair)


def read_editing(path: pathlib.Path) -> Iterator[Outcome]:
    """Read records from an editing parquet file or a folder of them. Raises ImporterError."""
    return convert(read_parquet(path, EDITING, [("image_list", "instruction_list")]), _import_editing)


def _import_pair(record_id: str, row: dict[str, Any]) -> Record:
    captions = sorted(_read_captions(row["captions"]), key=len)
    shortest, longest = captions[0], captions[-1]
    plan = texts.make_plan(texts.DRAW, longest, target=longest != shortest)
    segments = [texts.make_prompt(shortest), plan]
    segments.append(texts.make_image(segments, to_png(row["image"], "image")))
    return Record(id=record_id, source=TEXT_TO_IMAGE, complete=True, segments=segments)


def _read_captions(text: Any) -> list[str]:
    try:
        captions = list(load_json(text).values())
    except (TypeError, AttributeError, ValueError):
        raise RefusedSample("captions are no JSON object", f"captions {str(text)[:60]!r}") from None
    return [texts.read_text(caption, f"caption {n}") for n, caption in enumerate(captions)] or [
        texts.read_text("", "captions")
    ]


def _import_editing(record_id: str, row: dict[str, Any]) -> Record:
    pictures, wordings = row["image_list"] or [], row["instruction_list"] or []
    if len(pictures) < 2:
        raise RefusedSample(MISSING, f"image_list holds {len(pictures)} images, an edit has two at least")
    if len(wordings) != len(pictures) - 1:
        raise RefusedSample(
            "images and instructions differ in number",
            f"{len(pictures)} images need {len(pictures) - 1} instructions, not {len(wordings)}",
        )
    instructions = [texts.read_first_wording(w, f"instruction_list[{n}]") for n, w in enumerate(wordings)]
    pngs = [to_png(picture, f"image_list[{n}]") for n, picture in enumerate(pictures)]
    segments: list[Text | Image] = [Image(stage="given", png=pngs[0], target=False)]
    segments.append(texts.make_prompt(" ".join(instructions)))
    for instruction, png in zip(instructions, pngs[1:]):
        description = f"The picture so far, after this: {instruction}"
        segments.append(texts.make_plan(instruction, description, target=False))
        segments.append(texts.make_image(segments, png))
    return Record(id=record_id, source=EDITING, complete=True, segments=segments)

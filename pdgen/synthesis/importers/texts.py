"""Plans, inspections and targets from the texts of other data sets."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from pdgen.sequence.modes import find_corrected, image_stage
from pdgen.sequence.trajectory import (
    Image,
    Text,
    format_inspection,
    format_plan,
    parse_plan,
    parse_refine,
    segment_kind,
)
from pdgen.synthesis.importers.outcome import RefusedSample

NO_TEXT = "missing text"
DRAW = "Draw the whole scene."
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)")


def read_text(value: Any, name: str) -> str:
    """Read a text, as str or UTF-8 bytes, and strip it. Raises RefusedSample if it is empty or not a text."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as fault:
            raise RefusedSample(NO_TEXT, f"{name} is no UTF-8 ({fault})") from None
    if not isinstance(value, str) or not value.strip():
        raise RefusedSample(NO_TEXT, f"{name} is {value!r}, expected words")
    return value.strip()


def read_optional_text(value: Any, name: str) -> str:
    """Read a text as ``read_text``; "" if it is missing."""
    return "" if value is None or value == "" else read_text(value, name)


def make_prompt(text: str) -> Text:
    """Make the prompt segment."""
    return Text(stage="prompt", text=text, target=False)


def read_first_wording(value: Any, name: str) -> str:
    """Read a text, or the first of a list of wordings, as ``read_text``."""
    while isinstance(value, list):
        value = value[0] if value else None
    return read_text(value, name)


def make_plan(instruction: str, description: str, *, target: bool) -> Text:
    """Make a plan of two parts. ``target`` should be False if the importer added the words."""
    return Text(stage="plan", text=format_plan(instruction, description), target=target)


def make_thought_plan(text: str) -> Text:
    """Make a plan from the thought before a drawing.

    A thought that is a plan already (``<ins>``, closed either way) stays one. Otherwise the last sentence, which says
    what is drawn, becomes the description, and the text before it the instruction. A single sentence becomes both.
    """
    if "<ins>" in text:
        return make_plan(*parse_plan(text), target=True)
    *_, last = _SENTENCE_END.split(text)
    first = text[: len(text) - len(last)].strip()
    return make_plan(first or last, last, target=True)


def make_inspection(analysis: str, correction: str | None = None) -> Text:
    """Make an inspection. If ``analysis`` contains ``<refine>``, its closing tag is corrected."""
    if correction is None and (correction := parse_refine(analysis)) is not None:
        analysis = analysis[: analysis.index("<refine>")]
    text = format_inspection(analysis.strip(), correction if correction is None else correction.strip())
    return Text(stage="inspect", text=text.strip(), target=True)


def make_image(segments: Sequence[Text | Image], png: bytes) -> Image:
    """Make an image that is drawn after ``segments``, as a target."""
    return Image(stage=image_stage([segment_kind(s) for s in segments]), png=png, target=True)


def drop_corrected_targets(segments: Sequence[Text | Image]) -> list[Text | Image]:
    """Make drafts with faults and rewritten plans context."""
    faulty = set(find_corrected([segment_kind(s) for s in segments]))
    return [
        msgspec.structs.replace(segment, target=segment.target and number not in faulty)
        for number, segment in enumerate(segments)
    ]

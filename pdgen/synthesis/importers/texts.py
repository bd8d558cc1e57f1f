"""Plans, inspections and targets made from the texts of other data sets."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from pdgen.sequence.modes import corrected, image_stage
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
_REFINE_OPENS = "<refine>"


def read_text(value: Any, name: str) -> str:
    """A text without the space around it. Raises Refused where it is empty or no text; bytes are UTF-8."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as fault:
            raise RefusedSample(NO_TEXT, f"{name} is no UTF-8 ({fault})") from None
    if not isinstance(value, str) or not value.strip():
        raise RefusedSample(NO_TEXT, f"{name} is {value!r}, expected words")
    return value.strip()


def read_optional_text(value: Any, name: str) -> str:
    """``read_text``, or "" where there are none."""
    return "" if value is None or value == "" else read_text(value, name)


def make_prompt(text: str) -> Text:
    """The prompt segment."""
    return Text(stage="prompt", text=text, target=False)


def read_first_wording(value: Any, name: str) -> str:
    """``read_text`` of a text, or of the first of a list of wordings."""
    while isinstance(value, list):
        value = value[0] if value else None
    return read_text(value, name)


def make_plan(instruction: str, description: str, *, target: bool) -> Text:
    """A plan of two parts. ``target`` is False where its words were made up: then nobody learns them."""
    return Text(stage="plan", text=format_plan(instruction, description), target=target)


def make_thought_plan(text: str) -> Text:
    """A plan from a thought that precedes a drawing.

    A thought that is a plan already (``<ins>``, closed either way) stays one. Of any other the last sentence,
    which says what is drawn, becomes the description and what precedes it the instruction; a single sentence
    is both.
    """
    if "<ins>" in text:
        return make_plan(*parse_plan(text), target=True)
    *_, last = _SENTENCE_END.split(text)
    first = text[: len(text) - len(last)].strip()
    return make_plan(first or last, last, target=True)


def make_inspection(analysis: str, correction: str | None = None) -> Text:
    """An inspection; an ``analysis`` that holds ``<refine>`` itself is written with the proper closing tag."""
    if correction is None and (correction := parse_refine(analysis)) is not None:
        analysis = analysis[: analysis.index(_REFINE_OPENS)]
    text = format_inspection(analysis.strip(), correction if correction is None else correction.strip())
    return Text(stage="inspect", text=text.strip(), target=True)


def make_image(segments: Sequence[Text | Image], png: bytes) -> Image:
    """An image that is drawn after ``segments``, a target."""
    return Image(stage=image_stage([segment_kind(s) for s in segments]), png=png, target=True)


def drop_corrected_targets(segments: Sequence[Text | Image]) -> list[Text | Image]:
    """The segments, with drafts that are faulted and plans that are rewritten made context."""
    faulty = set(corrected([segment_kind(s) for s in segments]))
    return [
        msgspec.structs.replace(segment, target=segment.target and number not in faulty)
        for number, segment in enumerate(segments)
    ]

"""Importers of visual reasoning data sets: thoughts and drawings in turn, then an answer.

Zebra-CoT: columns ``Question``, ``Text Reasoning Trace``, ``Final Answer``, ``problem_image_k`` and
``reasoning_image_k``. The texts refer to images as ``<image_start>[reasoning_image_1]<image_end>`` and number their
thoughts ``THOUGHT 3:``.

ThinkMorph as published: columns ``question``, ``answer``, ``problem_image_0``, ``resoning_thought_0`` (sic),
``reasoning_image_0``, ``resoning_thought_1``, ... As prepared for training: ``image_list`` (the problem's image, then
the drawings), ``instruction_list`` (the question) and ``output_text_list`` (the thoughts, in ``<think>``, the last with
``<answer>``).

A row becomes a complete record. The problem's images are given images, and the question is the prompt. Each drawing
becomes a sketch, and the thought before it a plan (see ``texts.make_thought_plan``). The thoughts after the last
drawing and the answer become an inspection. Of several numbered thoughts between two drawings, the last becomes the
plan of the second drawing, and the others the inspection of the first. Everything but the prompt is a target. Thought
numbers and the data sets' own tags are removed; a reference to a problem image becomes the words "image 1".

Rows are skipped and counted if they draw nothing, have two drawings without a thought between them or a drawing without
a thought before it, or refer to missing images.
"""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.synthesis.importers import texts
from pdgen.synthesis.importers.outcome import Outcome, RefusedSample, convert
from pdgen.synthesis.importers.pictures import to_png
from pdgen.synthesis.importers.samples import read_parquet

ZEBRA, THINKMORPH = "zebra_cot", "thinkmorph"
NO_DRAWING, NO_THOUGHT = "nothing is drawn", "drawing without a thought before it"
_RAW = ("question", "answer", "problem_image_0", "resoning_thought_0", "reasoning_image_0")
_PREPARED = ("image_list", "instruction_list", "output_text_list")
_PROBLEM_IMAGE = re.compile(r"(?:<image_start>)?\s*\[problem_image_(\d+)\]\s*(?:<image_end>)?")
_DRAWING = re.compile(r"(?:<image_start>)?\s*\[(reasoning_image_\d+)\]\s*(?:<image_end>)?")
_THOUGHT = re.compile(r"\bTHOUGHT\s*\d+\s*:?\s*")
_MARKUP = re.compile(r"</?(?:think|answer|image_start|image_end)>|<\|(?:vision_start|vision_end|im_start|im_end)\|>")


def read_zebra_cot(path: pathlib.Path) -> Iterator[Outcome]:
    """Read records from a Zebra-CoT parquet file or a folder of them. Raises ImporterError."""
    columns = ("Question", "Text Reasoning Trace", "Final Answer")
    return convert(read_parquet(path, ZEBRA, [columns]), _import_zebra)


def read_thinkmorph(path: pathlib.Path) -> Iterator[Outcome]:
    """Read records from a ThinkMorph parquet file of either layout, or from a folder. Raises ImporterError."""
    return convert(read_parquet(path, THINKMORPH, [_RAW, _PREPARED]), _import_thinkmorph)


def _import_zebra(record_id: str, row: dict[str, Any]) -> Record:
    given = [to_png(row[name], name) for name in _list_columns(row, "problem_image_")]
    *pieces, rest = _DRAWING.split(
        _PROBLEM_IMAGE.sub(r" image \1 ", texts.read_text(row["Text Reasoning Trace"], "trace"))
    )
    pngs = [to_png(row.get(name), name) for name in pieces[1::2]]
    question = _PROBLEM_IMAGE.sub(r" image \1 ", texts.read_text(row["Question"], "Question"))
    answer = _PROBLEM_IMAGE.sub(r" image \1 ", texts.read_text(row["Final Answer"], "Final Answer"))
    segments = _make_start(given, question) + _make_reasoning(pieces[0::2], pngs, rest, answer)
    return Record(id=record_id, source=ZEBRA, complete=True, segments=segments)


def _import_thinkmorph(record_id: str, row: dict[str, Any]) -> Record:
    if "image_list" in row:
        pictures, thoughts = row["image_list"] or [], row["output_text_list"] or []
        pngs = [to_png(picture, f"image_list[{n}]") for n, picture in enumerate(pictures)]
        given, drawn, answer = pngs[:1], pngs[1:], ""
        question = texts.read_first_wording(row["instruction_list"], "instruction_list")
    else:
        given = [to_png(row[name], name) for name in _list_columns(row, "problem_image_")]
        drawn = [to_png(row[name], name) for name in _list_columns(row, "reasoning_image_")]
        thoughts = [row[name] for name in _list_columns(row, "resoning_thought_")]
        question, answer = texts.read_text(row["question"], "question"), texts.read_text(row["answer"], "answer")
    if len(thoughts) != len(drawn) + 1:
        reason = NO_DRAWING if not drawn else "thoughts and drawings differ in number"
        raise RefusedSample(reason, f"{len(thoughts)} thoughts and {len(drawn)} drawings")
    *before, rest = [texts.read_text(thought, f"thought {n}") for n, thought in enumerate(thoughts)]
    segments = _make_start(given, question) + _make_reasoning(before, drawn, rest, answer)
    return Record(id=record_id, source=THINKMORPH, complete=True, segments=segments)


def _list_columns(row: dict[str, Any], prefix: str) -> list[str]:
    """List the columns ``<prefix><number>`` that are not null, sorted by number."""
    numbers = sorted(int(n) for name in row if name.startswith(prefix) and (n := name[len(prefix) :]).isdecimal())
    return [name for n in numbers if row[name := f"{prefix}{n}"] is not None]


def _make_start(given: Sequence[bytes], question: str) -> list[Text | Image]:
    return [*(Image(stage="given", png=png, target=False) for png in given), texts.make_prompt(_tidy(question))]


def _make_reasoning(before: Sequence[str], pngs: Sequence[bytes], rest: str, answer: str) -> list[Text | Image]:
    """Make plans, drawings and inspections; ``before[i]`` is the text before ``pngs[i]``, ``rest`` the last text."""
    if not pngs:
        raise RefusedSample(NO_DRAWING, "the reasoning has no image")
    segments: list[Text | Image] = []
    for number, (text, png) in enumerate(zip(before, pngs, strict=True)):
        thoughts = _split_thoughts(text)
        if not thoughts:
            raise RefusedSample(NO_THOUGHT, f"drawing {number + 1} follows without words")
        *earlier, last = thoughts
        if segments and earlier:
            segments.append(texts.make_inspection(" ".join(earlier)))
            earlier = []
        segments.append(texts.make_thought_plan(" ".join([*earlier, last])))
        segments.append(texts.make_image(segments, png))
    ending = _split_thoughts(rest)
    if answer and "<answer>" not in rest:
        ending.append(_tidy(answer))
    return [*segments, texts.make_inspection(" ".join(ending))] if ending else segments


def _split_thoughts(text: str) -> list[str]:
    return [thought for part in _THOUGHT.split(text) if (thought := _tidy(part))]


def _tidy(text: str) -> str:
    """Remove the data sets' markup, and normalise whitespace within lines and at both ends."""
    lines = _MARKUP.sub(" ", text).strip().splitlines()
    return "\n".join(" ".join(line.split()) for line in lines).strip()

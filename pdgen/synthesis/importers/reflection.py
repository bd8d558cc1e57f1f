"""Importers of data sets with corrected images: UniCoT-Self-Reflection and GenRef.

UniCoT-Self-Reflection: columns ``prompt`` and, per round, ``input_image`` (the image to inspect), ``eval`` and
``eval_summary`` (its faults), ``edit`` (the correction) and ``output_image`` (the result; null in the last round, which
finds no fault). A row becomes a complete record of prompt, plan and the first image as sketch, and for each round an
inspection from ``eval`` and ``eval_summary`` with ``edit`` as its ``<refine>``, and the result as refined image. Images
with faults are context. The last image and all inspections are targets.

GenRef: webdataset archives with ``good_image.jpg``, ``bad_image.jpg``, ``reflection.txt``, ``prompt.txt``,
``subset.txt`` per sample. A sample becomes a record of prompt, plan, the bad image as sketch (context), the reflection
as ``<refine>`` and the good image as refined image (both targets). The record is not complete, because GenRef does not
say whether the good image has faults. Reflections are corrections without an analysis, which a teacher can add. The
record's ``scene`` is {"subset": ...}.

Both lack plans. The plan asks for the whole scene, repeats the prompt and is context.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.synthesis.importers import texts
from pdgen.synthesis.importers.outcome import Outcome, RefusedSample, convert
from pdgen.synthesis.importers.pictures import MISSING, to_png
from pdgen.synthesis.importers.samples import read_parquet, read_tar

UNICOT, GENREF = "unicot", "genref"
_ROUNDS = ("input_image", "output_image", "edit", "eval", "eval_summary")


def read_unicot(path: pathlib.Path) -> Iterator[Outcome]:
    """Read records from a UniCoT-Self-Reflection parquet file or a folder of them. Raises ImporterError."""
    return convert(read_parquet(path, UNICOT, [("prompt", *_ROUNDS)]), _import_unicot)


def read_genref(path: pathlib.Path) -> Iterator[Outcome]:
    """Read records from a GenRef archive or a folder of them. Raises ImporterError."""
    return convert(read_tar(path, GENREF), _import_genref)


def _make_start(prompt: str, png: bytes) -> list[Text | Image]:
    segments = [texts.make_prompt(prompt), texts.make_plan(texts.DRAW, prompt, target=False)]
    return [*segments, texts.make_image(segments, png)]


def _import_unicot(record_id: str, row: dict[str, Any]) -> Record:
    rounds = {name: row[name] or [] for name in _ROUNDS}
    lengths = {name: len(held) for name, held in rounds.items()}
    if len(set(lengths.values())) > 1 or not rounds["input_image"]:
        raise RefusedSample("rounds differ in number", ", ".join(f"{name} {n}" for name, n in lengths.items()))
    segments = _make_start(texts.read_text(row["prompt"], "prompt"), to_png(rounds["input_image"][0], "input_image[0]"))
    last = lengths["edit"] - 1
    for number in range(last + 1):
        edit, result = texts.read_optional_text(rounds["edit"][number], "edit"), rounds["output_image"][number]
        if bool(edit) != (result is not None) or (not edit and number < last):
            raise RefusedSample("round without edit or result", f"round {number} of {last + 1}: edit {edit[:40]!r}")
        judged = [texts.read_optional_text(rounds[name][number], name) for name in ("eval", "eval_summary")]
        analysis = " ".join(part for part in judged if part)
        segments.append(texts.make_inspection(texts.read_text(analysis, f"eval[{number}]"), edit or None))
        if result is not None:
            segments.append(texts.make_image(segments, to_png(result, f"output_image[{number}]")))
    segments = texts.drop_corrected_targets(segments)
    return Record(id=record_id, source=UNICOT, complete=True, segments=segments)


def _import_genref(record_id: str, members: dict[str, bytes]) -> Record:
    held = {name.rpartition(".")[0]: data for name, data in members.items()}
    for name in ("bad_image", "good_image"):
        if name not in held:
            raise RefusedSample(MISSING, f"{name} is not among {', '.join(sorted(members))}")
    prompt = texts.read_text(held.get("prompt"), "prompt.txt")
    segments = _make_start(prompt, to_png(held["bad_image"], "bad_image"))
    segments.append(texts.make_inspection("", texts.read_text(held.get("reflection"), "reflection.txt")))
    segments.append(texts.make_image(segments, to_png(held["good_image"], "good_image")))
    segments = texts.drop_corrected_targets(segments)
    subset = held.get("subset", b"").strip()
    scene = {"subset": texts.read_text(subset, "subset.txt")} if subset else None
    return Record(id=record_id, source=GENREF, complete=False, segments=segments, scene=scene)

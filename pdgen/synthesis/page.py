"""The page of a data set: counts beside those of the paper, histograms and a browser of samples.

The page needs no server and no network. ``index.html`` loads the list of samples (``report/index.js``), and the samples
of a shard (``report/<shard>.js``) when they are first shown.
"""

import base64
import collections
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import PIL.Image

from pdgen.report.page import render, split_tags
from pdgen.sequence.images import decode_image, image_size
from pdgen.sequence.trajectory import Image, Record, Text

# Longer side of a thumbnail in pixels; smaller pictures are shown unchanged.
THUMBNAIL = 128
_BIN = 20  # width of a bin of prompt lengths, in characters
VERDICTS = ("", "positive", "negative")


class TableRow(NamedTuple):
    """A row of the paper's Table 1; None for missing values."""

    samples: int
    positive: int | None = None
    negative: int | None = None
    prompt_length: float | None = None
    images: float | None = None
    max_images: int | None = None


# arXiv 2604.04746, Table 1.
PAPER = {
    "multi_turn": TableRow(32012, prompt_length=152.8, images=3.51, max_images=5),
    "conflict": TableRow(15201, positive=6905, negative=8296),
    "alignment": TableRow(15000, positive=5000, negative=10000),
}


class SampleRow(msgspec.Struct, frozen=True, array_like=True):
    """The properties by which samples are filtered."""

    task: str
    operations: list[str]
    verdict: str


class DatasetSummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts over records.

    Attributes:
      images: number of records by number of drawn images.
      prompt_lengths: number of records by length of the prompt in characters.
      operations: number of steps by operation.
      tasks: number of records by task.
      verdicts: number of records by "positive", "negative" or "" (neither).
      faults: number of inspections that find a fault.
      rows: one row per record, in order.
    """

    images: dict[int, int] = {}
    prompt_lengths: dict[int, int] = {}
    operations: dict[str, int] = {}
    tasks: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    faults: int = 0
    rows: list[SampleRow] = []

    @property
    def records(self) -> int:
        """Number of records."""
        return len(self.rows)


def _make_sample_row(record: Record) -> SampleRow:
    scene = record.scene or {}
    operations = [step["operation"] for step in scene.get("steps", ())]
    verdict = {True: "positive", False: "negative", None: ""}[scene.get("positive")]
    return SampleRow(task=scene.get("task", ""), operations=operations, verdict=verdict)


def summarise_records(records: Iterable[Record]) -> DatasetSummary:
    """Count over records. Tasks, operations and verdicts are read from their ``scene``."""
    images: collections.Counter[int] = collections.Counter()
    lengths: collections.Counter[int] = collections.Counter()
    rows, faults = [], 0
    for record in records:
        images[sum(isinstance(s, Image) and s.stage != "given" for s in record.segments)] += 1
        lengths[next(len(s.text) for s in record.segments if s.stage == "prompt")] += 1
        faults += sum(isinstance(s, Text) and "<refine>" in s.text for s in record.segments)
        rows.append(_make_sample_row(record))
    return DatasetSummary(
        images=_sort_counts(images),
        prompt_lengths=_sort_counts(lengths),
        operations=_sort_counts(collections.Counter(o for row in rows for o in row.operations)),
        tasks=_sort_counts(collections.Counter(row.task for row in rows)),
        verdicts=_sort_counts(collections.Counter(row.verdict for row in rows)),
        faults=faults,
        rows=rows,
    )


def _sort_counts(counts: Mapping[Any, int]) -> dict[Any, int]:
    return dict(sorted(counts.items()))


def merge_summaries(summaries: Sequence[DatasetSummary]) -> DatasetSummary:
    """Merge summaries to one over all their records."""

    def add_counts(name: str) -> dict[Any, int]:
        return _sort_counts(sum((collections.Counter(getattr(one, name)) for one in summaries), collections.Counter()))

    names = ("images", "prompt_lengths", "operations", "tasks", "verdicts")
    return DatasetSummary(
        **{name: add_counts(name) for name in names},
        faults=sum(one.faults for one in summaries),
        rows=[row for one in summaries for row in one.rows],
    )


def compute_mean(counts: Mapping[int, int]) -> float:
    """Compute the mean of a histogram (count by value); 0 if it is empty."""
    return sum(value * count for value, count in counts.items()) / max(1, sum(counts.values()))


def make_table_row(summary: DatasetSummary) -> TableRow:
    """Make a row in the form of the paper's Table 1."""
    return TableRow(
        samples=summary.records,
        positive=summary.verdicts.get("positive"),
        negative=summary.verdicts.get("negative"),
        prompt_length=compute_mean(summary.prompt_lengths),
        images=compute_mean(summary.images),
        max_images=max(summary.images, default=0),
    )


def render_chunk(name: str, records: Iterable[Record]) -> str:
    """Render the script with the samples of one shard."""
    samples = [_describe_sample(record) for record in records]
    return f"pdgen_chunk({_to_json(name)},{_to_json(samples)});\n"


def render_index(shards: Sequence[tuple[str, str, Sequence[SampleRow]]]) -> str:
    """Render the script with the list of all samples, given (name, subset, rows) of each shard in order."""
    rows = [row for _, _, rows in shards for row in rows]
    tasks = sorted({row.task for row in rows})
    operations = sorted({operation for row in rows for operation in row.operations})
    task_number = {task: number for number, task in enumerate(tasks)}
    operation_bit = {operation: 1 << number for number, operation in enumerate(operations)}
    index = {
        "shards": [(name, subset, len(rows)) for name, subset, rows in shards],
        "tasks": tasks,
        "operations": operations,
        "verdicts": VERDICTS,
        # Per sample: number of the task, operations as bits, number of the verdict.
        "task": [task_number[row.task] for row in rows],
        "bits": [sum({operation_bit[o] for o in row.operations}) for row in rows],
        "verdict": [VERDICTS.index(row.verdict) for row in rows],
    }
    return f"pdgen_index({_to_json(index)});\n"


def _to_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _describe_sample(record: Record) -> dict[str, Any]:
    row = _make_sample_row(record)
    verdicts = {one["segment"]: one for one in (record.scene or {}).get("verdicts", ())}
    return {
        "id": record.id,
        "task": row.task,
        "verdict": row.verdict,
        "complete": record.complete,
        "operations": row.operations,
        "note": (record.scene or {}).get("note", ""),
        "segments": [_describe_segment(s, verdicts.get(number)) for number, s in enumerate(record.segments)],
    }


def _describe_segment(segment: Text | Image, verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"stage": segment.stage, "target": segment.target}
    if verdict is not None:
        shown["judged"] = {"accept": verdict["accept"], "analysis": verdict["analysis"]}
    if isinstance(segment, Text):
        return shown | {"spans": split_tags(segment.text)}
    kind, data, size = make_thumbnail(segment.png)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return shown | {"source": source, "size": size}


def make_thumbnail(png: bytes) -> tuple[str, bytes, tuple[int, int]]:
    """Make a thumbnail: the PNG itself if it is small, otherwise a WebP of ``THUMBNAIL`` pixels.

    Returns:
      The format, the file's bytes, and (width, height) of the original picture in pixels.
    """
    size = image_size(png)
    if max(size) <= THUMBNAIL:
        return "png", png, size
    picture = decode_image(png)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return "webp", buffer.getvalue(), size


class Chart(NamedTuple):
    """A bar chart with ``rows`` of (label, count by subset)."""

    title: str
    rows: list[tuple[str, dict[str, int]]]

    @property
    def longest(self) -> int:
        """The largest sum of a row, at least 1."""
        return max((sum(counts.values()) for _, counts in self.rows), default=1) or 1


def _make_charts(subsets: Mapping[str, DatasetSummary]) -> list[Chart]:
    binned: dict[str, dict[int, int]] = {name: {} for name in subsets}
    for name, summary in subsets.items():
        for length, count in summary.prompt_lengths.items():
            binned[name][length // _BIN] = binned[name].get(length // _BIN, 0) + count
    return [
        _make_chart("Images of a sample", {name: s.images for name, s in subsets.items()}, str),
        _make_chart("Characters of a prompt", binned, lambda n: f"{n * _BIN} to {(n + 1) * _BIN - 1}"),
        _make_chart("Steps by operation", {name: s.operations for name, s in subsets.items()}, str),
        _make_chart("Samples by task", {name: s.tasks for name, s in subsets.items()}, lambda task: task or "none"),
    ]


def _make_chart(title: str, counts: Mapping[str, Mapping[Any, int]], label: Callable[[Any], str]) -> Chart:
    keys = sorted({key for one in counts.values() for key in one})
    if keys and isinstance(keys[0], int):
        keys = range(keys[0], keys[-1] + 1)  # with empty bins, so that the axis has no gaps
    return Chart(title, [(label(key), {name: one.get(key, 0) for name, one in counts.items()}) for key in keys])


def render_dataset(
    title: str, subsets: Mapping[str, DatasetSummary], facts: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """Render ``index.html`` of a data set.

    Of the ``facts`` of ``dataset.json`` it shows "rejected" (by subset and reason), "leaks" and "versions".
    """
    rows = [(name, PAPER.get(name), make_table_row(summary)) for name, summary in subsets.items()]
    charts = _make_charts(subsets)
    return render(
        "dataset.html", title=title, rows=rows, charts=charts, facts=facts, settings=settings, subsets=list(subsets)
    )

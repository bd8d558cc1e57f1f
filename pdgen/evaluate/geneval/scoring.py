"""Scores of a folder of images by GenEval's rule: resumable judging in batches, and the official files."""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float

from pdgen.evaluate.detectors.exact import Detector
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.folder import append_line, read_image, read_log, write_lines
from pdgen.evaluate.geneval.rule import (
    GenEvalPrompt,
    GenEvalResult,
    check_prompts,
    filter_detections,
    judge_detections,
    make_result,
)
from pdgen.evaluate.statistics import Estimate, Spread, compute_spread, estimate, estimate_difference
from pdgen.evaluate.tables import Table, to_cells
from pdgen.files import sha256
from pdgen.json_text import decode_json, load_json

RESULTS = "results.jsonl"
PROGRESS = "judged.jsonl"


class _PromptImage(NamedTuple):
    path: pathlib.Path
    prompt: GenEvalPrompt


class _JudgedImage(msgspec.Struct, frozen=True):
    """A line of ``judged.jsonl``: an image's result, and the digest of all that it depends on."""

    digest: str
    result: GenEvalResult

    def __post_init__(self) -> None:
        decode_json(self.result.details, dict[str, list[list[float]]])  # a damaged line is judged again


def score_images(
    images: Sequence[Sequence[pathlib.Path]],
    prompts: Sequence[GenEvalPrompt],
    detector: Detector,
    output: pathlib.Path,
    progress: Callable[[int], None] = lambda count: None,
) -> list[GenEvalResult]:
    """Judge all images and write ``results.jsonl``. A run that was killed resumes where it stopped.

    Args:
      images: The paths of every prompt's images, see ``find_samples``.
      prompts: The prompts, in the same order.
      detector: Detects the objects in the images.
      output: An existing folder. Its ``judged.jsonl`` holds finished results by the digest of image, prompt and
        detector, so a changed image is judged again.
      progress: Called with the number of images done since the last call, first with those that were done before.

    Raises:
      EvaluationError: An image cannot be read, the detector does not know a class, or a learned detector detects
        nothing in any image.
    """
    check_prompts(prompts, detector.classes, detector.name)
    items = [_PromptImage(path, prompt) for prompt, paths in zip(prompts, images, strict=True) for path in paths]
    digests = [_compute_digest(item, detector) for item in items]
    log = output / PROGRESS
    known = {one.digest: one.result for one in read_log(log, _JudgedImage)}
    waiting = [(item, digest) for item, digest in zip(items, digests) if digest not in known]
    progress(len(items) - len(waiting))
    with open(log, "ab") as file:
        for start in range(0, len(waiting), detector.batch):
            part = waiting[start : start + detector.batch]
            for (_, digest), found in zip(part, _judge_batch([item for item, _ in part], detector), strict=True):
                known[digest] = found
                append_line(file, _JudgedImage(digest, found))
            file.flush()
            progress(len(part))
    results = [known[digest]._replace(filename=str(item.path)) for item, digest in zip(items, digests)]
    if detector.learned and all(load_json(one.details) == {} for one in results):
        log.unlink()  # or the next run would take these results from it
        raise EvaluationError(
            f"detector {detector.name} detects nothing in any of {len(results)} images, so there is no score: "
            "either they are blank, or the detector does not work on this device; try --device=cpu, look at the images"
        )
    write_lines(output / RESULTS, [one._asdict() for one in results])  # the official file
    return results


def _compute_digest(item: _PromptImage, detector: Detector) -> str:
    try:
        content = item.path.read_bytes()
    except OSError as fault:
        raise EvaluationError(f"{item.path}: {fault}") from None
    what = json.dumps([item.prompt.raw, detector.identity, repr(detector.thresholds)])
    return sha256(what.encode() + b"\0" + content)


def _judge_batch(items: Sequence[_PromptImage], detector: Detector) -> Iterator[GenEvalResult]:
    images = [read_image(item.path) for item in items]
    for (path, prompt), image, found in zip(items, images, detector.detect(images), strict=True):
        objects = filter_detections(found, prompt.metadata.tag, detector.thresholds)
        verdict = judge_detections(
            prompt.metadata, objects, lambda noun, seen, image=image: detector.colors(image, noun, seen)
        )
        yield make_result(str(path), prompt, objects, verdict)


def read_results(path: pathlib.Path) -> list[GenEvalResult]:
    """Read the official file, also one that the benchmark's own code wrote.

    Raises:
      EvaluationError: The file cannot be read, is empty, or has a wrong line, which the message names.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise EvaluationError(f"{path}: {fault}") from None
    results = []
    for number, line in enumerate(lines, 1):
        try:
            results.append(one := GenEvalResult(**load_json(line)))
            for name, value in one._asdict().items():
                if not isinstance(value, bool if name == "correct" else str):
                    expected = "true or false" if name == "correct" else "a text"
                    raise ValueError(f'"{name}" is {value!r}, not {expected}')
        except (ValueError, TypeError) as fault:
            raise EvaluationError(f"{path}: line {number} is no result of GenEval: {fault}") from None
    if not results:
        raise EvaluationError(f"{path}: holds no results")
    return results


# By task, in the order of the list. A leading underscore keeps the shape check from comparing the tasks.
TaskScores = Mapping[str, Float[np.ndarray, "_prompts _samples"]]


def group_by_task(results: Sequence[GenEvalResult]) -> TaskScores:
    """Return by task, for every prompt and sample in the order of the folder, 1 if the image is correct, else 0.

    Raises:
      EvaluationError: The prompts have different numbers of images.
    """
    tasks: dict[str, list[list[float]]] = {}
    # Two prompts of a list may be equal; their folders differ.
    for _, group in itertools.groupby(results, lambda one: (pathlib.PurePath(one.filename).parent, one.metadata)):
        group = list(group)
        tasks.setdefault(group[0].tag, []).append([float(one.correct) for one in group])
    sizes = {len(samples) for prompts in tasks.values() for samples in prompts}
    if len(sizes) > 1:
        raise EvaluationError(f"the prompts have {sorted(sizes)} images; all must have equally many")
    return {tag: np.array(prompts) for tag, prompts in tasks.items()}


class GenEvalSummary(NamedTuple):
    """GenEval's scores."""

    tasks: dict[str, Estimate]  # the share of correct images of each task
    overall: Estimate  # the plain mean of the tasks' shares
    images: Estimate  # the share of correct images
    prompts: Estimate  # the share of prompts that have at least one correct image
    seeds: Spread  # the overall score of the first, second, ... image of every prompt


def summarise(scores: TaskScores) -> GenEvalSummary:
    """Compute the scores of a run."""
    means = {tag: right.mean(1) for tag, right in scores.items()}
    sizes = [len(mean) for mean in means.values()]  # as weights they turn the tasks' means into a mean over all prompts
    by_sample = np.mean([right.mean(0) for right in scores.values()], axis=0)
    return GenEvalSummary(
        tasks={tag: estimate([mean]) for tag, mean in means.items()},
        overall=estimate(list(means.values())),
        images=estimate(list(means.values()), sizes),
        prompts=estimate([right.max(1) for right in scores.values()], sizes),
        seeds=compute_spread(by_sample),
    )


def format_official_summary(results: Sequence[GenEvalResult]) -> str:
    """Return the summary in the wording of the benchmark's own script."""
    scores = group_by_task(results)
    images = [one.correct for one in results]
    any_right = {}
    for one in results:
        any_right[one.metadata] = any_right.get(one.metadata, False) or one.correct
    lines = ["Summary", "=======", f"Total images: {len(images)}", f"Total prompts: {len(any_right)}"]
    lines += [f"% correct images: {np.mean(images):.2%}", f"% correct prompts: {np.mean(list(any_right.values())):.2%}"]
    lines += ["", "Task breakdown", "=============="]
    lines += [f"{tag:<16} = {r.mean():.2%} ({int(r.sum())} / {r.size})" for tag, r in scores.items()]
    overall = np.mean([right.mean() for right in scores.values()])
    return "\n".join([*lines, "", f"Overall score (avg. over tasks): {overall:.5f}"])


def make_summary_table(summary: GenEvalSummary, title: str) -> Table:
    """Return the tasks, the overall score and the other scores, each with its interval and n."""
    named = {**summary.tasks, "overall": summary.overall, "images": summary.images, "prompts": summary.prompts}
    spread = summary.seeds
    deviation = "" if spread.deviation is None else f", standard deviation {spread.deviation:.4f}"
    note = (
        f"Overall is the plain mean of the tasks. Seeds (one image of every prompt each): {spread.n}; overall by seed: "
        f"{spread.least:.4f} to {spread.most:.4f}{deviation}."
    )
    return Table(
        title=title,
        columns=("score", "value", "low", "high", "prompts"),
        rows=[(name, *to_cells(one)) for name, one in named.items()],
        note=note,
    )


def compare_results(first: Sequence[GenEvalResult], second: Sequence[GenEvalResult]) -> dict[str, Estimate]:
    """Return by task, and as "overall", how much higher the second run scores than the first.

    Raises:
      EvaluationError: The runs do not have the same prompts in the same order.
    """
    prompts = [
        list(dict.fromkeys((pathlib.PurePath(o.filename).parent, o.metadata) for o in run)) for run in (first, second)
    ]
    named = [[metadata for _, metadata in one] for one in prompts]
    if named[0] != named[1]:
        raise EvaluationError("the runs do not have the same prompts in the same order; score both on one list")
    a, b = ({tag: right.mean(1) for tag, right in group_by_task(run).items()} for run in (first, second))
    tasks = {tag: estimate_difference([a[tag]], [b[tag]]) for tag in a}
    return tasks | {"overall": estimate_difference(list(a.values()), list(b.values()))}

"""A folder of images against GenEval's rule: verdicts of every image, in batches, resumable; the official files."""

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
from pdgen.evaluate.folder import read_image
from pdgen.evaluate.geneval import Prompt, Result, check_prompts, judge, keep, result
from pdgen.evaluate.statistics import Estimate, Spread, difference, estimate, spread
from pdgen.evaluate.tables import Table, interval
from pdgen.files import new_file, sha256

RESULTS = "results.jsonl"
PROGRESS = "judged.jsonl"


class _Item(NamedTuple):
    path: pathlib.Path
    prompt: Prompt


class _Judged(msgspec.Struct, frozen=True):
    """A line of ``judged.jsonl``: the result of an image, and the digest of all that it depends on."""

    digest: str
    result: Result


def score(
    images: Sequence[Sequence[pathlib.Path]],
    prompts: Sequence[Prompt],
    detector: Detector,
    output: pathlib.Path,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Result]:
    """Judges all images and writes ``results.jsonl``; killed, it goes on where it was.

    Args:
      images: of every prompt, as ``find_samples`` gives them.
      output: an existing folder; ``judged.jsonl`` in it keeps what is done, by the digest of image, prompt and
        detector, so that a changed image is judged again.
      progress: told how many images are done, first those that were.

    Raises:
      EvaluationError: an image cannot be read, a class is unknown to the detector, or a learned detector sees
        nothing in any image.
    """
    check_prompts(prompts, detector.classes, detector.name)
    items = [_Item(path, prompt) for prompt, paths in zip(prompts, images, strict=True) for path in paths]
    digests = [_digest(item, detector) for item in items]
    log = output / PROGRESS
    known = _known(log)
    waiting = [(item, digest) for item, digest in zip(items, digests) if digest not in known]
    progress(len(items) - len(waiting))
    with open(log, "ab") as file:
        for part in _batches(waiting, detector.batch):
            for (_, digest), found in zip(part, _judge([item for item, _ in part], detector), strict=True):
                known[digest] = found
                # The newline comes first, so that a line that a kill has cut short is not continued.
                file.write(b"\n" + msgspec.json.encode(_Judged(digest, found)))
            file.flush()
            progress(len(part))
    results = [known[digest]._replace(filename=str(item.path)) for item, digest in zip(items, digests)]
    if detector.learned and all(json.loads(one.details) == {} for one in results):
        log.unlink()  # or it would be believed the next time
        raise EvaluationError(
            f"detector {detector.name} sees nothing in any of {len(results)} images, so there is no score: either "
            "they are blank, or the detector does not work on this device; try --device=cpu, look at the images"
        )
    write_results(output / RESULTS, results)
    return results


def _digest(item: _Item, detector: Detector) -> str:
    try:
        content = item.path.read_bytes()
    except OSError as fault:
        raise EvaluationError(f"{item.path}: {fault}") from None
    what = json.dumps([item.prompt.raw, detector.identity, repr(detector.thresholds)])
    return sha256(what.encode() + b"\0" + content)


def _known(log: pathlib.Path) -> dict[str, Result]:
    known = {}
    for line in log.read_bytes().splitlines() if log.exists() else ():
        try:
            judged = msgspec.json.decode(line, type=_Judged)
        except msgspec.DecodeError:
            continue  # cut short by a kill: judged again
        known[judged.digest] = judged.result
    return known


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _judge(items: Sequence[_Item], detector: Detector) -> Iterator[Result]:
    images = [read_image(item.path) for item in items]
    for (path, prompt), image, found in zip(items, images, detector.detect(images), strict=True):
        objects = keep(found, prompt.metadata.tag, detector.thresholds)
        verdict = judge(prompt.metadata, objects, lambda noun, seen, image=image: detector.colors(image, noun, seen))
        yield result(str(path), prompt, objects, verdict)


def write_results(path: pathlib.Path, results: Sequence[Result]) -> None:
    """Writes the official file, one JSON object a line."""
    with new_file(path) as partial:
        partial.write_text("".join(json.dumps(one._asdict()) + "\n" for one in results), encoding="utf-8")


def read_results(path: pathlib.Path) -> list[Result]:
    """Reads the official file, whoever wrote it. Raises EvaluationError naming the line at fault."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise EvaluationError(f"{path}: {fault}") from None
    results = []
    for number, line in enumerate(lines, 1):
        try:
            results.append(one := Result(**json.loads(line)))
            if not isinstance(one.correct, bool):
                raise ValueError(f'"correct" is {one.correct!r}, not true or false')
        except (ValueError, TypeError) as fault:
            raise EvaluationError(f"{path}: line {number} is no result of GenEval: {fault}") from None
    if not results:
        raise EvaluationError(f"{path}: holds no results")
    return results


Scores = Mapping[str, Float[np.ndarray, "prompts samples"]]  # by task, in the order of the list


def by_task(results: Sequence[Result]) -> Scores:
    """Whether each image is right, 0 or 1, by task, prompt and sample; results in the order of the folder.

    Raises:
      EvaluationError: the prompts have different numbers of images.
    """
    tasks: dict[str, list[list[float]]] = {}
    # Two prompts of a list may be equal; the folder tells them apart.
    key = lambda one: (pathlib.PurePath(one.filename).parent, one.metadata)  # noqa: E731
    for _, group in itertools.groupby(results, key):
        group = list(group)
        tasks.setdefault(group[0].tag, []).append([float(one.correct) for one in group])
    sizes = {len(samples) for prompts in tasks.values() for samples in prompts}
    if len(sizes) > 1:
        raise EvaluationError(f"the prompts have {sorted(sizes)} images; each must have as many as the others")
    return {tag: np.array(prompts) for tag, prompts in tasks.items()}


class Summary(NamedTuple):
    """GenEval's figures.

    Attributes:
      tasks: the share of right images of each task.
      overall: the plain mean of the tasks' shares.
      images, prompts: the share that is right; a prompt is right if any of its images is.
      seeds: the overall score of the first, second, ... image of every prompt.
    """

    tasks: dict[str, Estimate]
    overall: Estimate
    images: Estimate
    prompts: Estimate
    seeds: Spread


def summarise(scores: Scores) -> Summary:
    """The figures of a run."""
    means = {tag: right.mean(1) for tag, right in scores.items()}
    sizes = [len(mean) for mean in means.values()]  # weights that make a mean over all prompts of the tasks' means
    by_sample = np.mean([right.mean(0) for right in scores.values()], axis=0)
    return Summary(
        tasks={tag: estimate([mean]) for tag, mean in means.items()},
        overall=estimate(list(means.values())),
        images=estimate(list(means.values()), sizes),
        prompts=estimate([right.max(1) for right in scores.values()], sizes),
        seeds=spread(by_sample),
    )


def official_text(results: Sequence[Result]) -> str:
    """The summary in the words of the benchmark's own script."""
    scores = by_task(results)
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


def summary_table(summary: Summary, title: str = "geneval") -> Table:
    """Tasks, overall and the other figures, each with its interval and n."""
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
        rows=[(name, *interval(one)) for name, one in named.items()],
        note=note,
    )


def compare(first: Sequence[Result], second: Sequence[Result]) -> dict[str, Estimate]:
    """By task and "overall", how much more the second run scores than the first.

    Raises:
      EvaluationError: the runs are not of the same prompts in the same order.
    """
    prompts = [
        list(dict.fromkeys((pathlib.PurePath(o.filename).parent, o.metadata) for o in run)) for run in (first, second)
    ]
    named = [[metadata for _, metadata in one] for one in prompts]
    if named[0] != named[1]:
        raise EvaluationError("the runs are not of the same prompts in the same order; score both by one list")
    a, b = ({tag: right.mean(1) for tag, right in by_task(run).items()} for run in (first, second))
    tasks = {tag: difference([a[tag]], [b[tag]]) for tag in a}
    return tasks | {"overall": difference(list(a.values()), list(b.values()))}

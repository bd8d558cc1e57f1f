"""Example images on an evaluation's page, by task, with detections or judgements."""

import os
import pathlib
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from pdgen.evaluate.abilities.scores import AbilityOutcome, locate_image
from pdgen.evaluate.geneval.rule import GenEvalResult
from pdgen.evaluate.wise import JudgeAnswers, WisePrompt
from pdgen.json_text import load_json
from pdgen.report.page import PIXELATED_BELOW, Entry
from pdgen.sequence.images import image_size
from pdgen.sequence.trajectory_folder import load_trajectory

SHOWN = 12  # images of a task and verdict; WISE has no verdict and shows twice as many
TRAJECTORIES = "trajectories.html"  # in the page's folder; the names of the trajectories are its anchors
_Judged = TypeVar("_Judged", GenEvalResult, AbilityOutcome)


class Mark(NamedTuple):
    """A detected object: its class, score, and box (left, top, right, bottom) in pixels."""

    noun: str
    score: float
    box: tuple[float, float, float, float]


class GalleryImage(NamedTuple):
    """An image of a gallery.

    Attributes:
      source: The link from the page.
      width, height: In pixels.
      correct: The verdict. For WISE, whether the score is at least one half.
      notes: Lines about the image that do not report a fault.
      reason: Why it is wrong; "" if unknown.
      trajectory: The name of its trajectory, or "".
    """

    source: str
    width: int
    height: int
    prompt: str
    correct: bool
    notes: tuple[str, ...]
    reason: str
    marks: tuple[Mark, ...]
    trajectory: str

    @property
    def pixelated(self) -> bool:
        """Whether the page shows the pixels as squares."""
        return max(self.width, self.height) < PIXELATED_BELOW


class ImageGallery(NamedTuple):
    """Example images of a task or category, with a note on all of its images."""

    task: str
    note: str
    images: list[GalleryImage]


def make_geneval_galleries(
    results: Sequence[GenEvalResult], page: pathlib.Path, trajectories: pathlib.Path | None = None
) -> list[ImageGallery]:
    """Return some wrong and some correct images of every task, spread over its prompts.

    Args:
      results: The results, see ``scoring.read_results``. The files are opened for their sizes.
      page: The folder of the page, which links to the images.
      trajectories: The folder of the trajectories, under the images' names without suffix.

    Raises:
      OSError: An image cannot be read.
    """
    return _make_galleries(
        ((one.tag, one.correct, one) for one in results), lambda one: _make_geneval_image(one, page, trajectories)
    )


def make_wise_galleries(
    prompts: Sequence[WisePrompt],
    images: Sequence[pathlib.Path],
    judged: JudgeAnswers,
    page: pathlib.Path,
    trajectories: pathlib.Path | None = None,
) -> list[ImageGallery]:
    """Return some images of every category of the list, spread from the lowest score to the highest.

    The score is the graded one if the judge was asked for it, else the binary one. Images without a valid answer are
    counted. Folders and errors are as for ``make_geneval_galleries``.
    """
    name, answers = next(iter(judged.answers.items()))
    scores = {number: answer.score for number, answer in answers.items()}
    categories: dict[str, list[tuple[WisePrompt, pathlib.Path]]] = {}
    for prompt, path in zip(prompts, images, strict=True):
        categories.setdefault(prompt.category, []).append((prompt, path))
    galleries = []
    for category, own in categories.items():
        known = sorted((one for one in own if one[0].prompt_id in scores), key=lambda one: scores[one[0].prompt_id])
        shown = [_make_wise_image(*one, judged, page, trajectories) for one in _select_evenly(known, 2 * SHOWN)]
        note = [f"{len(own):,} images"]
        if known:
            note.append(f"mean {name} score {np.mean([scores[prompt.prompt_id] for prompt, _ in known]):.3f}")
        if missing := len(own) - len(known):
            note.append(f"{missing:,} without a valid answer")
        galleries.append(ImageGallery(category, ", ".join(note), shown))
    return galleries


def make_ability_galleries(outcomes: Sequence[AbilityOutcome], page: pathlib.Path) -> list[ImageGallery]:
    """Return some wrong and some correct draws of every row of the abilities, spread over its prompts.

    Their pictures are in the folder of the page, see ``abilities.run.run_draws``. Raises OSError if one cannot be read.
    """

    def make_image(one: AbilityOutcome) -> GalleryImage:
        notes = (one.answer,) if one.answer else ()
        linked = _link_image(locate_image(page, one.name), page)
        return GalleryImage(*linked, one.prompt, one.right, notes, one.fault, (), "")

    return _make_galleries(((f"{one.group}: {one.row}", one.right, one) for one in outcomes), make_image)


def _make_galleries(
    judged: Iterable[tuple[str, bool, _Judged]], make_image: Callable[[_Judged], GalleryImage]
) -> list[ImageGallery]:
    """Return a gallery of each task from (task, verdict, result): wrong and then correct images, evenly spaced."""
    tasks: dict[str, dict[bool, list[_Judged]]] = {}
    for task, correct, one in judged:
        tasks.setdefault(task, {False: [], True: []})[correct].append(one)
    galleries = []
    for task, by_verdict in tasks.items():
        shown = [make_image(one) for own in by_verdict.values() for one in _select_evenly(own, SHOWN)]
        note = f"{len(by_verdict[True]):,} right, {len(by_verdict[False]):,} wrong"
        galleries.append(ImageGallery(task, note, shown))
    return galleries


def _select_evenly(items: Sequence, count: int) -> Sequence:
    """Return at most ``count`` items, evenly spaced, with the first and the last."""
    if len(items) <= count:
        return items
    return [items[number * (len(items) - 1) // (count - 1)] for number in range(count)]


def _make_geneval_image(result: GenEvalResult, page: pathlib.Path, trajectories: pathlib.Path | None) -> GalleryImage:
    path = pathlib.Path(result.filename)
    marks = tuple(
        Mark(noun, score, (left, top, right, bottom))
        for noun, found in load_json(result.details).items()
        for left, top, right, bottom, score in found
    )
    seen = (", ".join(mark.noun for mark in marks),) if marks else ()
    # Images are DIR/00017/samples/00002.png, trajectories the same below their own folder.
    name = "/".join(path.with_suffix("").parts[-3:])
    own = (*_link_image(path, page), result.prompt, result.correct, seen, result.reason, marks)
    return GalleryImage(*own, _find_trajectory(name, trajectories))


def _make_wise_image(
    prompt: WisePrompt, path: pathlib.Path, judged: JudgeAnswers, page: pathlib.Path, trajectories: pathlib.Path | None
) -> GalleryImage:
    answers = {name: given[prompt.prompt_id] for name, given in judged.answers.items() if prompt.prompt_id in given}
    notes = [prompt.explanation]
    for name, answer in answers.items():
        parts = {**msgspec.structs.asdict(answer), "score": answer.score}
        notes.append(f"{name}: " + ", ".join(f"{part.replace('_', ' ')} {value:g}" for part, value in parts.items()))
    correct = next(iter(answers.values())).score >= 0.5
    own = (*_link_image(path, page), prompt.text, correct, tuple(notes), "", ())
    return GalleryImage(*own, _find_trajectory(path.stem, trajectories))


def _link_image(path: pathlib.Path, page: pathlib.Path) -> tuple[str, int, int]:
    return urllib.parse.quote(os.path.relpath(path, page)), *image_size(path.read_bytes(), str(path))


def _find_trajectory(name: str, trajectories: pathlib.Path | None) -> str:
    return name if trajectories is not None and (trajectories / name / "trajectory.json").is_file() else ""


def make_trajectory_entries(
    shown: Sequence[ImageGallery], page: pathlib.Path, trajectories: pathlib.Path
) -> list[Entry]:
    """Return the trajectories of the galleries' images, for ``report.page.render_trajectories``.

    Raises:
      TrajectoryError: A trajectory is damaged. The message names it.
    """
    names = sorted({one.trajectory for gallery in shown for one in gallery.images} - {""})
    return [
        Entry(name, load_trajectory(trajectories / name), os.path.relpath(trajectories / name, page)).without_images()
        for name in names
    ]

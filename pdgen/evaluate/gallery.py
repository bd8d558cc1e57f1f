"""Images of an evaluation's page: some of every task, with what was detected in them or how they were judged."""

import json
import os
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import PIL.Image

from pdgen.evaluate.abilities.scores import Outcome, image_path
from pdgen.evaluate.geneval import Result
from pdgen.evaluate.wise import Judged, WisePrompt
from pdgen.report.page import Entry
from pdgen.sequence.trajectory_folder import load_trajectory

SHOWN = 12  # images of a task of each outcome; of WISE, which has no two outcomes, twice as many
TRAJECTORIES = "trajectories.html"  # beside the page; its trajectories are found by their names
_PIXELATED_BELOW = 128  # pixels of a side


class Mark(NamedTuple):
    """A detected object: its class, score, and box (left, top, right, bottom) in pixels."""

    noun: str
    score: float
    box: tuple[float, float, float, float]


class Shown(NamedTuple):
    """An image of a gallery.

    Attributes:
      source: link from the page.
      width, height: in pixels.
      correct: the verdict; of WISE whether at least half of the score was given.
      told: lines about the image that are no fault.
      reason: why it is wrong, "" if nobody said so.
      trajectory: name of its trajectory, "" if there is none.
    """

    source: str
    width: int
    height: int
    prompt: str
    correct: bool
    told: tuple[str, ...]
    reason: str
    marks: tuple[Mark, ...]
    trajectory: str

    @property
    def pixelated(self) -> bool:
        """Whether its pixels are shown square."""
        return max(self.width, self.height) < _PIXELATED_BELOW


class Gallery(NamedTuple):
    """Images of a task or category, what is to be said of all it has, and some of them."""

    task: str
    note: str
    shown: list[Shown]


def galleries(results: Sequence[Result], page: pathlib.Path, trajectories: pathlib.Path | None = None) -> list[Gallery]:
    """Of every task some wrong and some right images, spread over its prompts.

    Args:
      results: as ``scoring.read_results`` gives them; their files are opened for their sizes.
      page: the folder of the page, from which images are linked.
      trajectories: folder of the trajectories under the images' names without suffix.

    Raises:
      OSError: an image cannot be read.
    """
    tasks: dict[str, list[Result]] = {}
    for one in results:
        tasks.setdefault(one.tag, []).append(one)
    made = []
    for task, own in tasks.items():
        wrong, right = ([one for one in own if one.correct == outcome] for outcome in (False, True))
        some = (*_spread(wrong, SHOWN), *_spread(right, SHOWN))
        shown = [_detected(one, page, trajectories) for one in some]
        made.append(Gallery(task, f"{len(right):,} right, {len(wrong):,} wrong", shown))
    return made


def wise_galleries(
    prompts: Sequence[WisePrompt],
    images: Sequence[pathlib.Path],
    judged: Judged,
    page: pathlib.Path,
    trajectories: pathlib.Path | None = None,
) -> list[Gallery]:
    """Of every category of the list some images, spread from the lowest score to the highest.

    Args:
      images: of every prompt.
      judged: what an image's score is: its grades' if they were asked for, else the binary one. Images without a
        valid answer are counted.
      page, trajectories: as of ``galleries``.

    Raises:
      OSError: an image cannot be read.
    """
    name, answers = next(iter(judged.answers.items()))
    scores = {number: answer.score for number, answer in answers.items()}
    categories: dict[str, list[tuple[WisePrompt, pathlib.Path]]] = {}
    for prompt, path in zip(prompts, images, strict=True):
        categories.setdefault(prompt.category, []).append((prompt, path))
    made = []
    for category, own in categories.items():
        known = sorted((one for one in own if one[0].prompt_id in scores), key=lambda one: scores[one[0].prompt_id])
        shown = [_judged(*one, judged, page, trajectories) for one in _spread(known, 2 * SHOWN)]
        note = [f"{len(own):,} images"]
        if known:
            note.append(f"mean {name} score {np.mean([scores[prompt.prompt_id] for prompt, _ in known]):.3f}")
        if missing := len(own) - len(known):
            note.append(f"{missing:,} without a valid answer")
        made.append(Gallery(category, ", ".join(note), shown))
    return made


def ability_galleries(outcomes: Sequence[Outcome], page: pathlib.Path) -> list[Gallery]:
    """Of every row of the abilities some wrong and some right draws, spread over its prompts.

    Args:
      outcomes: with their pictures in ``page``, as ``ability_run.run_draws`` leaves them.
      page: the folder of the page, from which pictures are linked.

    Raises:
      OSError: a picture cannot be read.
    """
    rows: dict[str, list[Outcome]] = {}
    for one in outcomes:
        rows.setdefault(f"{one.group}: {one.row}", []).append(one)
    made = []
    for row, own in rows.items():
        wrong, right = ([one for one in own if one.right == outcome] for outcome in (False, True))
        shown = []
        for one in (*_spread(wrong, SHOWN), *_spread(right, SHOWN)):
            told = (one.answer,) if one.answer else ()
            linked = _linked(image_path(page, one.name), page)
            shown.append(Shown(*linked, one.prompt, one.right, told, one.fault, (), ""))
        made.append(Gallery(row, f"{len(right):,} right, {len(wrong):,} wrong", shown))
    return made


def _spread(items: Sequence, count: int) -> Sequence:
    """At most ``count`` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[number * (len(items) - 1) // (count - 1)] for number in range(count)]


def _detected(result: Result, page: pathlib.Path, trajectories: pathlib.Path | None) -> Shown:
    path = pathlib.Path(result.filename)
    marks = tuple(
        Mark(noun, score, (left, top, right, bottom))
        for noun, found in json.loads(result.details).items()
        for left, top, right, bottom, score in found
    )
    seen = (", ".join(mark.noun for mark in marks),) if marks else ()
    # Images are DIR/00017/samples/00002.png, trajectories the same below their own folder.
    name = "/".join(path.with_suffix("").parts[-3:])
    own = (*_linked(path, page), result.prompt, result.correct, seen, result.reason, marks)
    return Shown(*own, _own_trajectory(name, trajectories))


def _judged(
    prompt: WisePrompt, path: pathlib.Path, judged: Judged, page: pathlib.Path, trajectories: pathlib.Path | None
) -> Shown:
    answers = {name: given[prompt.prompt_id] for name, given in judged.answers.items() if prompt.prompt_id in given}
    told = [prompt.explanation]
    for name, answer in answers.items():
        parts = {**msgspec.structs.asdict(answer), "score": answer.score}
        told.append(f"{name}: " + ", ".join(f"{part.replace('_', ' ')} {value:g}" for part, value in parts.items()))
    correct = next(iter(answers.values())).score >= 0.5
    own = (*_linked(path, page), prompt.text, correct, tuple(told), "", ())
    return Shown(*own, _own_trajectory(path.stem, trajectories))


def _linked(path: pathlib.Path, page: pathlib.Path) -> tuple[str, int, int]:
    with PIL.Image.open(path) as image:
        return urllib.parse.quote(os.path.relpath(path, page)), *image.size


def _own_trajectory(name: str, trajectories: pathlib.Path | None) -> str:
    return name if trajectories is not None and (trajectories / name / "trajectory.json").is_file() else ""


def entries(shown: Sequence[Gallery], page: pathlib.Path, trajectories: pathlib.Path) -> list[Entry]:
    """The trajectories of the galleries' images, for ``page.render_trajectories``; folders as in ``galleries``.

    Raises:
      TrajectoryError: one is damaged; it is named.
    """
    names = sorted({one.trajectory for gallery in shown for one in gallery.shown} - {""})
    return [
        Entry(name, load_trajectory(trajectories / name), os.path.relpath(trajectories / name, page)).without_images()
        for name in names
    ]

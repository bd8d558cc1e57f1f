"""GenEval's rule: whether an image shows what its metadata asks for (Ghosh et al. 2023, arXiv 2310.11513).

Of each class the objects whose score is above a threshold count, at most ``max_objects``, best first. An included
class needs ``count`` of them. Only the ``count`` best are checked for color and position. The benchmark's own code has
an option that suppresses overlapping boxes and is off by default. This module does not suppress any.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval.metadata import Included, Metadata
from pdgen.shapes.graph import COLORS
from pdgen.shapes.world import find_relations

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


class Detection(NamedTuple):
    """A detected object.

    Attributes:
      box: (left, top, right, bottom) in pixels, x to the right, y downwards.
      score: The confidence, 0 to 1.
      color: One of ``COLORS``, if the detector itself determines colors.
      mask: The object's pixels, if the detector segments.
    """

    box: tuple[float, float, float, float]
    score: float
    color: str | None = None
    mask: Bool[np.ndarray, "height width"] | None = None


Detections = Mapping[str, Sequence[Detection]]  # by class
ColorClassifier = Callable[[str, Sequence[Detection]], Sequence[str]]  # (class, its objects) -> the colour of each


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Thresholds that select detections. The defaults are the published ones, for Mask2Former."""

    score: float = 0.3  # detections count if their score is above it
    counting: float = 0.9  # the same for the task "counting"
    max_objects: int = 16  # of a class


class ImageVerdict(NamedTuple):
    """Whether an image is correct, and if not the reason, one line for each unmet demand."""

    correct: bool
    reason: str


def filter_detections(
    detections: Detections, tag: str, thresholds: Thresholds = Thresholds()
) -> dict[str, list[Detection]]:
    """Return the objects that count for a prompt of the task ``tag``, best first, without classes that have none.

    Of equal scores the later one comes first, as in the benchmark's own code.
    """
    least = thresholds.counting if tag == "counting" else thresholds.score
    selected = {}
    for noun, objects in detections.items():
        above = [o for o in reversed(objects) if o.score > least]
        best = sorted(above, key=lambda o: -o.score)[: thresholds.max_objects]
        if best:
            selected[noun] = best
    return selected


def judge_detections(metadata: Metadata, objects: Detections, colors: ColorClassifier) -> ImageVerdict:
    """Judge one image by its detections.

    Args:
      metadata: What the prompt asks for. All of ``include`` must be met and nothing of ``exclude``.
      objects: The objects that count, see ``filter_detections``.
      colors: Returns the colors of objects of a class. It is called only for objects whose color matters.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in metadata.include:
        found = objects.get(wanted.noun, ())[: wanted.count]
        faults = _check_included(wanted, found, groups, colors)
        groups.append(None if faults else found)
        reasons += faults
    for limit in metadata.exclude:
        number = len(objects.get(limit.noun, ()))
        if number >= limit.count:
            reasons.append(f"expected {limit.noun}<{limit.count}, found {number}")
    return ImageVerdict(not reasons, "\n".join(reasons))


def _check_included(
    wanted: Included, found: Sequence[Detection], groups: Sequence[Sequence[Detection] | None], colors: ColorClassifier
) -> list[str]:
    if len(found) < wanted.count:
        return [f"expected {wanted.noun}>={wanted.count}, found {len(found)}"]
    if wanted.color is not None:
        seen = list(colors(wanted.noun, found))
        right = seen.count(wanted.color)
        if right < wanted.count:
            listed = ", ".join(f"{seen.count(color)} {color}" for color in COLORS if color in seen)
            expected = f"{wanted.color} {wanted.noun}>={wanted.count}"
            return [f"expected {expected}, found {right} {wanted.color}; and {listed}"]
    if wanted.position is not None:
        kind, number = wanted.position
        targets = groups[number]
        if targets is None:
            return [f"no target for {wanted.noun} to be {kind}"]
        for item in found:
            for target in targets:
                held = find_relations(item, target)
                if kind not in held:
                    return [f"expected {wanted.noun} {kind} target, found {' and '.join(held)} target"]
    return []


class GenEvalPrompt(NamedTuple):
    """A prompt of a list: what it asks for, and its JSON object in the list."""

    metadata: Metadata
    raw: dict


def check_prompts(prompts: Sequence[GenEvalPrompt], classes: Sequence[str], detector: str) -> None:
    """Check that the detector and the rule can judge all prompts.

    Args:
      prompts: The prompts.
      classes: The classes that the detector knows.
      detector: The detector's name, for the message.

    Raises:
      EvaluationError: A prompt has an unknown class or color, or a position that refers to a later object.
    """
    for number, (metadata, _) in enumerate(prompts):
        name = f"prompt {number} ({metadata.prompt!r})"
        for index, item in enumerate(metadata.include):
            if item.color not in (None, *COLORS):
                raise EvaluationError(f"{name}: color {item.color!r} is none of {', '.join(COLORS)}")
            if item.position is not None and item.position[1] >= index:
                raise EvaluationError(f"{name}: position of {item.noun!r} refers to a later object of include")
        for item in (*metadata.include, *metadata.exclude):
            if item.noun not in classes:
                raise EvaluationError(
                    f"{name}: class {item.noun!r} is unknown to detector {detector}; choose another --detector"
                )


class GenEvalResult(NamedTuple):
    """One line of the official ``results.jsonl``."""

    filename: str
    tag: str  # the prompt's task
    prompt: str
    correct: bool
    reason: str  # why the image is not correct; "" if it is
    metadata: str  # the prompt's JSON object
    details: str  # JSON: by class, [left, top, right, bottom, score] of every object that counts


def make_result(filename: str, prompt: GenEvalPrompt, objects: Detections, verdict: ImageVerdict) -> GenEvalResult:
    """Return the line of one image. For ``objects`` see ``filter_detections``."""
    details = {noun: [[*o.box, o.score] for o in found] for noun, found in objects.items()}
    return GenEvalResult(
        filename=filename,
        tag=prompt.metadata.tag,
        prompt=prompt.metadata.prompt,
        correct=verdict.correct,
        reason=verdict.reason,
        metadata=json.dumps(prompt.raw),
        details=json.dumps(details),
    )

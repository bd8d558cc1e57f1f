"""GenEval's decision rule: whether an image shows what its metadata asks for (Ghosh et al. 2023, arXiv 2310.11513).

Of each class the objects whose score is above a threshold count, at most ``max_objects``, best first. An included
class needs ``count`` of them, and only the ``count`` best are looked at for colour and position. The benchmark's
own code can suppress overlapping boxes, but does not unless told to; neither does this.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.metadata import Included, Metadata
from pdgen.shapes.graph import COLORS
from pdgen.shapes.world import find_relations

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


class Detection(NamedTuple):
    """One detected object.

    Attributes:
      box: (left, top, right, bottom) in pixels, x to the right, y downwards.
      score: confidence, 0 to 1.
      color: of ``COLORS``, where the detector itself knows it.
      mask: its pixels, where the detector has them.
    """

    box: tuple[float, float, float, float]
    score: float
    color: str | None = None
    mask: Bool[np.ndarray, "height width"] | None = None


Detections = Mapping[str, Sequence[Detection]]  # by class
Colors = Callable[[str, Sequence[Detection]], Sequence[str]]  # (class, its objects) -> the colour of each


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Which detections count: those with a score above ``score`` (of counting prompts ``counting``), the best
    ``max_objects`` of each class. The defaults are the published ones, for Mask2Former."""

    score: float = 0.3
    counting: float = 0.9
    max_objects: int = 16


class Verdict(NamedTuple):
    """Whether an image is correct, and if not why, a line for each unmet demand."""

    correct: bool
    reason: str


def keep(detections: Detections, tag: str, thresholds: Thresholds = Thresholds()) -> dict[str, list[Detection]]:
    """The objects that count for a prompt of the task ``tag``, best first; classes without any are left out.

    Of equal scores the later one comes first, as in the benchmark's own code.
    """
    least = thresholds.counting if tag == "counting" else thresholds.score
    kept = {}
    for noun, objects in detections.items():
        above = [o for o in reversed(objects) if o.score > least]
        best = sorted(above, key=lambda o: -o.score)[: thresholds.max_objects]
        if best:
            kept[noun] = best
    return kept


def judge(metadata: Metadata, objects: Detections, colors: Colors) -> Verdict:
    """The verdict on one image.

    Args:
      metadata: what is asked for; all of ``include`` must be met and nothing of ``exclude``.
      objects: as ``keep`` gives them.
      colors: called for the objects whose colour matters, and for no other.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in metadata.include:
        found = objects.get(wanted.noun, ())[: wanted.count]
        faults = _of_one(wanted, found, groups, colors)
        groups.append(None if faults else found)
        reasons += faults
    for limit in metadata.exclude:
        number = len(objects.get(limit.noun, ()))
        if number >= limit.count:
            reasons.append(f"expected {limit.noun}<{limit.count}, found {number}")
    return Verdict(not reasons, "\n".join(reasons))


def _of_one(
    wanted: Included, found: Sequence[Detection], groups: Sequence[Sequence[Detection] | None], colors: Colors
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


class Prompt(NamedTuple):
    """One prompt of a list: what it asks for, and the JSON object as it stands in the list."""

    metadata: Metadata
    raw: dict


def check_prompts(prompts: Sequence[Prompt], classes: Sequence[str], detector: str) -> None:
    """Raises EvaluationError where a prompt asks for what the detector or the rule cannot tell, by its number."""
    for number, (metadata, _) in enumerate(prompts):
        name = f"prompt {number} ({metadata.prompt!r})"
        for index, item in enumerate(metadata.include):
            if item.color not in (None, *COLORS):
                raise EvaluationError(f"{name}: color {item.color!r} is none of {', '.join(COLORS)}")
            if item.position is not None and item.position[1] >= index:
                raise EvaluationError(f"{name}: position of {item.noun!r} refers to what comes later in include")
        for item in (*metadata.include, *metadata.exclude):
            if item.noun not in classes:
                raise EvaluationError(
                    f"{name}: class {item.noun!r} is none that detector {detector} knows; choose another --detector"
                )


class Result(NamedTuple):
    """One line of the official ``results.jsonl``.

    Attributes:
      metadata: the prompt's JSON object, as a string.
      details: by class, [left, top, right, bottom, score] of every object that counts, as a JSON string.
    """

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: str
    details: str


def result(filename: str, prompt: Prompt, objects: Detections, verdict: Verdict) -> Result:
    """The line of one image; ``objects`` as ``keep`` gives them."""
    details = {noun: [[*o.box, o.score] for o in found] for noun, found in objects.items()}
    return Result(
        filename=filename,
        tag=prompt.metadata.tag,
        prompt=prompt.metadata.prompt,
        correct=verdict.correct,
        reason=verdict.reason,
        metadata=json.dumps(prompt.raw),
        details=json.dumps(details),
    )

"""What may follow what in a trajectory: the sequence grammar of every mode, over kinds of segments.

    sequence := IMAGE(given)* TEXT(prompt) TEXT(plan) IMAGE ...    then, by what stands last:
      after a plan                       IMAGE
      after an image                     TEXT(inspect), TEXT(plan) or END
      after an inspection with <refine>  TEXT(plan) or IMAGE
      after an inspection without        TEXT(plan) or END

That is the mode "process". What the base model does, and learns from records, are modes of their own: "single_pass"
(prompt, image), "edit" (given images, prompt, image), "think" (prompt, thought, image) and "understand" (given
images, prompt, answer). There an inspection of the image comes from outside, if at all.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

END = "end"
# By mode what may follow each kind of segment: START before the first, END where a complete sequence may stop.
START = "start"
_GIVEN = {START: ("given", "prompt"), "given": ("given", "prompt")}
_ONE_IMAGE = {"image": ("inspect", "inspect+refine", END), "inspect": (END,), "inspect+refine": ("image",)}
MODES: dict[str, dict[str, tuple[str, ...]]] = {
    "process": _GIVEN
    | {
        "prompt": ("plan",),
        "plan": ("image",),
        "image": ("inspect", "inspect+refine", "plan", END),
        "inspect": ("plan", END),
        "inspect+refine": ("plan", "image"),
    },
    "single_pass": {START: ("prompt",), "prompt": ("image",)} | _ONE_IMAGE,
    "edit": _GIVEN | {START: ("given",), "prompt": ("image",)} | _ONE_IMAGE,
    "think": _GIVEN | {"prompt": ("thought",), "thought": ("image",)} | _ONE_IMAGE,
    "understand": _GIVEN | {"prompt": ("answer",), "answer": (END,)},
}
Mode = Literal["process", "single_pass", "edit", "think", "understand"]


class TrajectoryError(ValueError):
    """A text, record or trajectory folder breaks the format; one line says where and how."""


def image_stage(kinds: Sequence[str]) -> Literal["sketch", "refine"]:
    """The stage of an image that is drawn after segments of these kinds.

    It is "refine" after an inspection with ``<refine>``, also where a rewritten plan stands between.
    """
    last = [k for k in kinds[-2:] if k != "plan"][-1:]
    return "refine" if last == ["inspect+refine"] else "sketch"


def check_kinds(kinds: Sequence[str], complete: bool, mode: Mode = "process") -> None:
    """Raises TrajectoryError where the sequence of segment kinds, prompt included, breaks the mode's grammar."""
    followers = MODES[mode]
    for number, (before, after) in enumerate(itertools.pairwise([START, *kinds])):
        if after not in followers.get(before, ()):
            allowed = " or ".join(k for k in followers.get(before, ()) if k != END)
            raise TrajectoryError(f"segment {number}: {after} after {before}, expected {allowed or 'nothing'}")
    if not kinds:
        raise TrajectoryError(f"begins with nothing, expected {' or '.join(followers[START])}")
    if complete and END not in followers.get(kinds[-1], ()):
        raise TrajectoryError(f"marked complete, but a sequence cannot end with {kinds[-1]}")


def corrected(kinds: Sequence[str]) -> list[int]:
    """Numbers of the drafts that an inspection faults and of the plans rewritten after one, from all kinds."""
    numbers = []
    plan = 0
    for n, kind in enumerate(kinds):
        if kind == "inspect+refine":
            rewritten = [plan] if kinds[n + 1 : n + 2] == ["plan"] else []
            numbers += [n - 1, *rewritten]
        if kind == "plan":
            plan = n
    return numbers

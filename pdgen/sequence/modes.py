"""The order of segments in a trajectory: a grammar over kinds of segments for every mode.

    sequence := IMAGE(given)* TEXT(prompt) TEXT(plan) IMAGE ...    then
      after a plan                       IMAGE
      after an image                     TEXT(inspect), TEXT(plan) or END
      after an inspection with <refine>  TEXT(plan) or IMAGE
      after an inspection without        TEXT(plan) or END

This is the mode "process". BAGEL's own tasks are the other modes: "single_pass" (prompt, image), "edit" (given images,
prompt, image), "think" (prompt, thought, image) and "understand" (given images, prompt, answer). In these modes the
model writes no inspection; one may come from outside.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

END = "end"
# The kinds that may follow each kind of segment, by mode. START precedes the first; END may follow the last.
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
    """A text, record or trajectory folder violates the format; the message is one line that says where and how."""


def image_stage(kinds: Sequence[str]) -> Literal["sketch", "refine"]:
    """Return the stage of an image that is drawn after segments of these kinds.

    It is "refine" after an inspection with ``<refine>``, even with a rewritten plan in between.
    """
    last = [k for k in kinds[-2:] if k != "plan"][-1:]
    return "refine" if last == ["inspect+refine"] else "sketch"


def check_kinds(kinds: Sequence[str], complete: bool, mode: Mode = "process") -> None:
    """Raise TrajectoryError if the kinds of segments, prompt included, violate the grammar ``MODES[mode]``.

    ``complete`` is whether the sequence claims to be finished.
    """
    followers = MODES[mode]
    for number, (before, after) in enumerate(itertools.pairwise([START, *kinds])):
        if after not in followers.get(before, ()):
            allowed = " or ".join(k for k in followers.get(before, ()) if k != END)
            raise TrajectoryError(f"segment {number}: {after} after {before}, expected {allowed or 'nothing'}")
    if not kinds:
        raise TrajectoryError(f"begins with nothing, expected {' or '.join(followers[START])}")
    if complete and END not in followers.get(kinds[-1], ()):
        raise TrajectoryError(f"marked complete, but a sequence cannot end with {kinds[-1]}")


def find_corrected(kinds: Sequence[str]) -> list[int]:
    """Return the numbers of the segments that are corrected later: faulty images, and plans that are rewritten."""
    numbers = []
    plan = 0
    for n, kind in enumerate(kinds):
        if kind == "inspect+refine":
            # A plan right after the inspection replaces the last one; otherwise only the image is redrawn.
            rewritten = [plan] if kinds[n + 1 : n + 2] == ["plan"] else []
            numbers += [n - 1, *rewritten]
        if kind == "plan":
            plan = n
    return numbers

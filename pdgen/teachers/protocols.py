"""Teachers, which build data and guide sampling: painters, judges, writers, planners, critics and verifiers.

Shapes world has an exact one of each (``exact``, ``planner``, ``verifier``). ``kontext`` paints with FLUX.1-Kontext.
All except painters also exist for OpenAI-compatible servers (``endpoint``).
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from pdgen.sequence.images import Picture
from pdgen.shapes.graph import SceneGraph
from pdgen.shapes.world import Scene


class TeacherError(ValueError):
    """A teacher that refuses or cannot answer. The message is one line with the teacher, the input and the reason."""


class Declined(TeacherError):
    """A teacher that has no answer to this input; other inputs may have one."""


class TransientError(Exception):
    """A failure of a request that may not repeat.

    Attributes:
      reason: a short text for counting.
      wait: seconds that the server asks to wait; 0 if it does not.
    """

    def __init__(self, reason: str, message: str = "", wait: float = 0.0):
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.wait = wait


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A judge's answer.

    Attributes:
      accept: whether the judge accepts.
      analysis: one or two sentences.
      correction: what to do; None exactly if the judge accepts.
    """

    accept: bool
    analysis: str
    correction: str | None = None

    def __post_init__(self) -> None:
        if self.accept != (self.correction is None):
            raise ValueError("a verdict has a correction exactly where it does not accept")


@dataclasses.dataclass(frozen=True)
class Stroke:
    """The input of a painter for the next picture of a trajectory.

    Attributes:
      instruction: what to add or change, in words.
      previous: the picture before the step; None at the first step.
      scene: the placed scene after the step (shapes world only).
      seed: determines everything else.
    """

    instruction: str
    previous: Picture | None
    scene: Scene | None
    seed: int


@runtime_checkable
class Painter(Protocol):
    """A teacher that draws the pictures of steps."""

    name: str

    def paint(self, stroke: Stroke) -> Picture:
        """Paint the picture after a step. Raises TeacherError if the stroke lacks what this painter needs."""
        ...


@runtime_checkable
class Judge(Protocol):
    """A teacher that accepts or rejects plans and pictures, with reasons."""

    name: str

    def judge_plan(self, prompt: str, plans: Sequence[str]) -> Verdict:
        """Judge whether the last of ``plans`` (texts with ``<ins>`` and ``<des>``, in order) agrees with the prompt.

        Things that are only not drawn yet are no conflict.
        """
        ...

    def judge_picture(self, plan: str, picture: Picture, previous: Picture | None = None) -> Verdict:
        """Judge whether the picture after the step shows what ``plan`` describes."""
        ...


@runtime_checkable
class Writer(Protocol):
    """A teacher that parses prompts."""

    name: str

    def parse(self, prompt: str) -> SceneGraph:
        """Parse a prompt to a graph. Raises Declined with the reason if it has none."""
        ...


@runtime_checkable
class Planner(Protocol):
    """A teacher that divides a prompt into drawing steps."""

    name: str

    def plan(self, prompt: str) -> list[str]:
        """Return one plan (text with ``<ins>`` and ``<des>``) for each step, in order; at least one.

        Equal prompts get equal plans. Raises Declined with the reason if a prompt has no plans.
        """
        ...


@runtime_checkable
class Critic(Protocol):
    """A teacher that lists what is wrong with a picture, and how to correct it."""

    name: str

    def critique(self, prompt: str, picture: Picture) -> Verdict:
        """Accept, or describe all faults with a correction for each. Raises Declined with the reason."""
        ...


@runtime_checkable
class Verifier(Protocol):
    """A teacher that scores pictures of the same prompt."""

    name: str

    def score(self, prompt: str, picture: Picture) -> float:
        """Return the share, 0 to 1, of the prompt's requirements that the picture meets. Raises Declined."""
        ...

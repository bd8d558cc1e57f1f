"""What builds data and guides sampling beside the model: painters, judges, writers, planners, critics and verifiers.

Shapes world has exact ones of each (``exact``, ``planner``, ``verifier``). ``kontext`` paints with FLUX.1-Kontext.
All others also work through any OpenAI-compatible server (``endpoint``). A function that takes a teacher takes
these types.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from pdgen.sequence.images import Picture
from pdgen.shapes.graph import SceneGraph
from pdgen.shapes.world import Scene


class TeacherError(ValueError):
    """A teacher refuses or cannot answer; the line names the teacher, the input and the reason."""


class Declined(TeacherError):
    """There is no answer to this one input; the teacher is well, and others may have one."""


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A judge's answer. ``analysis`` is one or two sentences; ``correction`` what to do, None where it accepts."""

    accept: bool
    analysis: str
    correction: str | None = None

    def __post_init__(self) -> None:
        if self.accept != (self.correction is None):
            raise ValueError("a verdict has a correction exactly where it does not accept")


@dataclasses.dataclass(frozen=True)
class Stroke:
    """What a painter is asked for: the next picture of a trajectory.

    Attributes:
      instruction: what to add or change, in words.
      previous: the picture before; None at the first step.
      scene: the placed scene after the step, where it exists (shapes world).
      seed: decides all that is left open.
    """

    instruction: str
    previous: Picture | None
    scene: Scene | None
    seed: int


@runtime_checkable
class Painter(Protocol):
    """Draws one step after the other."""

    name: str

    def paint(self, stroke: Stroke) -> Picture:
        """The picture after the step. Raises TeacherError where the stroke lacks what this painter needs."""


@runtime_checkable
class Judge(Protocol):
    """Accepts or rejects plans and pictures, and says why."""

    name: str

    def judge_plan(self, prompt: str, plans: Sequence[str]) -> Verdict:
        """Whether the last of ``plans`` (texts with ``<ins>`` and ``<des>``, in order) agrees with the prompt.

        What is merely not drawn yet is no conflict.
        """

    def judge_picture(self, plan: str, picture: Picture, previous: Picture | None = None) -> Verdict:
        """Whether the picture shows what ``plan`` promises after the step."""


@runtime_checkable
class Writer(Protocol):
    """Reads and rewrites text."""

    name: str

    def parse(self, prompt: str) -> SceneGraph:
        """The graph a prompt asks for. Raises Declined with the reason where it has none."""

    def rewrite(self, text: str, seed: int) -> str:
        """The same content in other words; tags stay where they are."""


@runtime_checkable
class Planner(Protocol):
    """Divides the drawing of a prompt into steps."""

    name: str

    def plan(self, prompt: str) -> list[str]:
        """The plans (texts with ``<ins>`` and ``<des>``) of one step each, in order; at least one.

        Equal prompts get equal plans. Raises Declined with the reason where a prompt has none.
        """


@runtime_checkable
class Critic(Protocol):
    """Says what of a picture is not as its prompt asks, and what to do."""

    name: str

    def critique(self, prompt: str, picture: Picture) -> Verdict:
        """Accepts, or analyses all faults and gives a correction for each. Raises Declined with the reason."""


@runtime_checkable
class Verifier(Protocol):
    """Compares pictures of the same prompt."""

    name: str

    def score(self, prompt: str, picture: Picture) -> float:
        """The share, 0 to 1, of what the prompt asks for that the picture shows. Raises Declined with the reason."""

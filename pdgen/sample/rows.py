"""The host's record of one trajectory while it grows: what stands in it, what is still to be read, what comes next."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import PIL.Image

from pdgen.sample.image import ImageGrid
from pdgen.sample.settings import SampleSettings
from pdgen.sequence.grammar import KINDS, SWITCHES, Automaton
from pdgen.sequence.modes import END, MODES, TrajectoryError, check_kinds, image_stage
from pdgen.sequence.trajectory import (
    ImageStage,
    Stage,
    StopReason,
    TextStage,
    Trajectory,
    image_file,
    parse_plan,
    segment_kind,
)

PIECE = 64  # tokens of a finished text that are read at a time; fewer are padded


_NO_COSTS = dict.fromkeys(
    ("network_evaluations", "guidance_branches", "text_tokens", "texts_cut", "prefilled_tokens", "seconds"), 0
)


class Piece(NamedTuple):
    """Tokens of a finished text that are to be read.

    Attributes:
      contexts: which read it, of "full" and "texts".
      kept: text guidance keeps what stands up to here.
    """

    ids: list[int]
    contexts: tuple[str, ...]
    kept: bool = False


class Picture(NamedTuple):
    """An image that is to be read."""

    image: PIL.Image.Image
    grid: ImageGrid
    given: bool


@dataclasses.dataclass
class Row:
    """One trajectory on its way.

    Attributes:
      number: of the trajectory among those asked for.
      start: what it started from, a prompt or a history.
      kinds: of the segments so far, keys of ``modes.MODES``.
      pending: what the contexts have still to read, in order.
      due: what comes next, "text" or "image"; None = not decided yet.
      costs: counters, see ``Trajectory.costs``.
    """

    number: int
    start: Trajectory
    kinds: list[str]
    stages: list[Stage]
    images: list[PIL.Image.Image]
    latents: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    pending: collections.deque[Piece | Picture] = dataclasses.field(default_factory=collections.deque)
    due: str | None = None
    cut: bool = False
    stop_reason: StopReason | None = None
    costs: collections.Counter[str] = dataclasses.field(default_factory=lambda: collections.Counter(_NO_COSTS))
    seed: int = 0

    def copy(self, seed: int) -> "Row":
        """A row that goes on by itself, with a seed of its own."""
        return dataclasses.replace(
            self,
            kinds=[*self.kinds],
            stages=[*self.stages],
            images=[*self.images],
            latents=dict(self.latents),
            pending=self.pending.copy(),
            costs=self.costs.copy(),
            seed=seed,
        )

    @property
    def mode(self) -> str:
        """The mode that it started in."""
        return self.start.mode

    @property
    def next_image(self) -> str:
        """The stage of the image that comes next: "sketch" or "refine"."""
        return image_stage(self.kinds)

    @property
    def has_image(self) -> bool:
        """Whether the context holds an image."""
        return bool(self.images)

    @property
    def over(self) -> bool:
        """Whether nothing but the end may follow, so that no context need read what stands last."""
        return self.due is None and self.mode != "process" and END in MODES[self.mode][self.kinds[-1]]

    def add_text(self, stage: TextStage) -> None:
        """Records a text. Raises TrajectoryError where it may not stand here."""
        kind = segment_kind(stage)
        check_kinds([*self.kinds, kind], False, self.mode)
        self.kinds.append(kind)
        self.stages.append(stage)
        self.due = None

    def add_image(self, image: PIL.Image.Image, **values: object) -> ImageStage:
        """Records an image, ``values`` into its stage. Raises TrajectoryError where none may stand here."""
        check_kinds([*self.kinds, "image"], False, self.mode)
        name = self.next_image
        stage = ImageStage(name, image_file(len(self.images) + 1, name), image.width, image.height, **values)
        self.kinds.append("image")
        self.stages.append(stage)
        self.images.append(image)
        self.due = None
        return stage

    def choices(self, automaton: Automaton) -> list[bool]:
        """Which of SWITCHES may come next in a row that is not over. The model has a choice in mode "process" alone."""
        kind = self.kinds[-1]
        if self.mode == "process" and kind in KINDS:
            return automaton.switches[KINDS.index(kind)].tolist()
        switch = "image" if "image" in MODES[self.mode][kind] else "text"
        return [name == switch for name in SWITCHES]

    def follow(self, switch: str, settings: SampleSettings) -> None:
        """Sets what comes next, or why the trajectory stops."""
        self.due, kind = switch, self.kinds[-1]
        sketches = sum(stage.stage == "sketch" for stage in self.stages)
        drawn = self.kinds.count("image")
        full = not settings.images_left(self.mode, drawn)
        # An image that is drawn next is a refinement after an inspection that found a fault, else a sketch.
        corrects = kind == "inspect+refine" or (kind == "plan" and self.next_image == "refine")
        full |= bool(settings.max_steps) and sketches >= settings.max_steps and not corrects
        if self.cut and kind not in ("plan", "thought"):  # their tags were closed, they can be drawn
            self.stop_reason = "token limit"
        elif switch == END:
            self.stop_reason = "finished"
        elif full and (switch == "image" or kind not in ("image", "prompt")):  # the last image may be inspected
            self.stop_reason = "step limit"
        self.cut = False

    def trajectory(self, more: Mapping[str, object]) -> Trajectory:
        """The trajectory as it stands; ``more`` replaces fields, its costs are added."""
        costs = {name: float(value) for name, value in {**self.costs, **more["costs"]}.items()}
        return dataclasses.replace(
            self.start,
            stages=[*self.stages],
            images=[*self.images],
            stop_reason=self.stop_reason,
            seed=self.seed,
            **more | {"costs": costs},
        )


def pieces(ids: list[int], contexts: tuple[str, ...], kept: bool = False) -> list[Piece]:
    """A text cut into pieces."""
    starts = range(0, len(ids), PIECE)
    return [Piece(ids[n : n + PIECE], contexts, kept and n == starts[-1]) for n in starts]


def text_stage(mode: str, text: str) -> str:
    """The stage of a text that comes next in a mode."""
    if mode in ("think", "understand"):
        return "thought" if mode == "think" else "answer"
    try:
        parse_plan(text)
    except TrajectoryError:
        return "inspect"
    return "plan"

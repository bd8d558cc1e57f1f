"""The host's record of one trajectory in a batch: its stages, what is still to be read, and what comes next."""

import collections
import dataclasses
from typing import Literal

import numpy as np
import PIL.Image

from pdgen.sample.pending import Pending
from pdgen.sample.settings import SampleSettings
from pdgen.sequence.grammar import KINDS, SWITCHES, Automaton
from pdgen.sequence.modes import END, MODES, Mode, TrajectoryError, check_kinds, image_stage
from pdgen.sequence.trajectory import (
    ImageStage,
    Origin,
    Stage,
    StopReason,
    TextStage,
    Trajectory,
    image_file,
    parse_plan,
    segment_kind,
)

_COSTS = ("network_evaluations", "guidance_branches", "text_tokens", "texts_cut", "prefilled_tokens", "seconds")


@dataclasses.dataclass
class BatchRow:
    """One trajectory in a batch.

    Attributes:
      number: of the trajectory in the call.
      start: the trajectory at its admission.
      kinds: of the segments so far, keys of ``modes.MODES``.
      stages, images, latents: as in ``Trajectory``.
      seed: of the draws from here on.
      pending: parts that the contexts have still to read, in order.
      due: what comes next, of SWITCHES; None = not decided yet.
      text_cut: the last text was closed at its limit.
      costs: counters, see ``Trajectory.costs``.
      guidance: by image file, the guidance that its drawing applied; see ``flow.denoise.describe_guidance``.
      settings: how it is sampled.
    """

    number: int
    start: Trajectory
    kinds: list[str]
    stages: list[Stage]
    images: list[PIL.Image.Image]
    latents: dict[str, np.ndarray]
    seed: int
    pending: collections.deque[Pending] = dataclasses.field(default_factory=collections.deque)
    due: str | None = None
    text_cut: bool = False
    stop_reason: StopReason | None = None
    costs: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(_COSTS, 0.0))
    guidance: dict[str, str] = dataclasses.field(default_factory=dict)
    settings: SampleSettings = SampleSettings()

    def copy(self, seed: int) -> "BatchRow":
        """Return an independent copy with another seed."""
        return dataclasses.replace(
            self,
            kinds=[*self.kinds],
            stages=[*self.stages],
            images=[*self.images],
            latents=dict(self.latents),
            pending=self.pending.copy(),
            costs=dict(self.costs),
            guidance=dict(self.guidance),
            seed=seed,
        )

    @property
    def mode(self) -> Mode:
        """The mode of its grammar."""
        return self.start.mode

    @property
    def next_image(self) -> Literal["sketch", "refine"]:
        """The stage of the next image."""
        return image_stage(self.kinds)

    @property
    def must_end(self) -> bool:
        """Whether only the end may follow, so that no context needs to read the last segment."""
        return self.due is None and self.mode != "process" and END in MODES[self.mode][self.kinds[-1]]

    def make_image_stage(
        self, image: PIL.Image.Image, tokens: int = 0, seconds: float = 0.0, steps: int = 0, origin: Origin = "model"
    ) -> ImageStage:
        """Make the stage of an image that comes next."""
        file = image_file(len(self.images) + 1, self.next_image)
        return ImageStage(self.next_image, file, image.width, image.height, seconds, tokens, steps, origin)

    def add_text(self, stage: TextStage) -> None:
        """Record a text. Raises TrajectoryError where the grammar forbids it."""
        kind = segment_kind(stage)
        check_kinds([*self.kinds, kind], False, self.mode)
        self.kinds.append(kind)
        self.stages.append(stage)
        self.due = None

    def add_image(self, stage: ImageStage, image: PIL.Image.Image) -> None:
        """Record an image. Raises TrajectoryError where the grammar forbids it."""
        check_kinds([*self.kinds, "image"], False, self.mode)
        self.kinds.append("image")
        self.stages.append(stage)
        self.images.append(image)
        self.due = None

    def find_allowed_switches(self, automaton: Automaton) -> list[bool]:
        """Tell which of SWITCHES may come next, unless ``must_end``; only mode "process" leaves the model a choice."""
        kind = self.kinds[-1]
        if self.mode == "process" and kind in KINDS:
            return automaton.switches[KINDS.index(kind)].tolist()
        switch = "image" if "image" in MODES[self.mode][kind] else "text"
        return [name == switch for name in SWITCHES]

    def follow_switch(self, switch: str, settings: SampleSettings) -> None:
        """Set what comes next, and the stop reason if the trajectory ends here."""
        self.due, kind = switch, self.kinds[-1]
        sketches = sum(stage.stage == "sketch" for stage in self.stages)
        is_full = not settings.count_images_left(self.mode, self.kinds.count("image"))
        # The next image is a refinement after an inspection that found a fault, else a sketch.
        corrects = kind == "inspect+refine" or (kind == "plan" and self.next_image == "refine")
        is_full |= bool(settings.max_steps) and sketches >= settings.max_steps and not corrects
        if self.text_cut and kind not in ("plan", "thought"):  # the tags of a plan were closed, so it can be drawn
            self.stop_reason = "token limit"
        elif switch == END:
            self.stop_reason = "finished"
        elif is_full and (switch == "image" or kind not in ("image", "prompt")):  # the last image may be inspected
            self.stop_reason = "step limit"
        self.text_cut = False

    def flatten_guidance(self) -> dict[str, str]:
        """Return the applied guidance as settings, "guidance.FILE", also of the images that the row began with."""
        known = {**self.start.settings, **{f"guidance.{file}": text for file, text in self.guidance.items()}}
        drawn = [stage for stage in self.stages if isinstance(stage, ImageStage) and stage.origin == "model"]
        names = [f"guidance.{stage.file}" for stage in drawn]
        return {name: known[name] for name in names if name in known}

    def make_trajectory(self) -> Trajectory:
        """Return the trajectory so far, with the row's own costs."""
        return dataclasses.replace(
            self.start,
            stages=[*self.stages],
            images=[*self.images],
            stop_reason=self.stop_reason,
            seed=self.seed,
            costs=dict(self.costs),
        )


def name_text_stage(mode: Mode, text: str) -> Literal["plan", "inspect", "thought", "answer"]:
    """Return the stage of a text in a mode."""
    if mode == "think":
        return "thought"
    if mode == "understand":
        return "answer"
    try:
        parse_plan(text)
    except TrajectoryError:
        return "inspect"
    return "plan"

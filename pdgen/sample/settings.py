"""Settings of sampling: mode, sizes, limits, how texts are written and how images are denoised."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from pdgen.config import ModelConfig
from pdgen.flow.denoise import ImageSettings, find_idle_guidance
from pdgen.sample.text import TextSettings
from pdgen.sequence.modes import MODES, Mode

# BAGEL was trained with this system text in mode "think"; the base of shapes world thinks without one.
THINK = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> "
    "image here"
)
MAX_BATCH_SIZE = 8  # of the default; a user may set more
_GROUPS = ("text", "image", "refine")  # fields that are settings themselves
_EARLIER_NAMES = {"together": "batch_size"}  # files of version 0.3 and before have these


class SampleError(ValueError):
    """A prompt, seed, image or size that cannot be sampled; one line names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How trajectories are sampled.

    Attributes:
      mode: the grammar of the trajectory; see ``sequence.modes.MODES``.
      height, width: of every drawn image, in pixels; 0 = as the last given or drawn image, else the largest square
        that the model's tables hold. Set both or none.
      max_images: maximum of drawn images in a trajectory; 0 writes the first plan alone.
      max_steps: maximum of sketches in a trajectory; 0 = limited by ``max_images`` alone.
      max_prompt_tokens: maximum of tokens in a prompt.
      text: how texts are written.
      image: how images are denoised: sketches, and the base model's own images.
      refine: how refinements are denoised; None = as ``image``.
      system: a text before everything else, which text guidance keeps; "" = the model's own, see ``find_system``.
      batch_size: rows in one evaluation of the network. Smaller groups are padded, so the bits of a trajectory depend
        on this number and never on the rows beside it. 0 = the number of prompts, rounded up to a power of two, at
        most 8.
      keep_latents: trajectories hold the latents that their images were decoded from.

    Raises:
      ValueError: a value out of range; the message names it.
    """

    mode: Mode = "process"
    height: int = 0
    width: int = 0
    max_images: int = 8
    max_steps: int = 0
    max_prompt_tokens: int = 512
    text: TextSettings = TextSettings()
    image: ImageSettings = ImageSettings()
    refine: ImageSettings | None = None
    system: str = ""
    batch_size: int = 0
    keep_latents: bool = False

    def __post_init__(self) -> None:
        minimum = {"height": 0, "width": 0, "max_images": 0, "max_steps": 0, "max_prompt_tokens": 1, "batch_size": 0}
        for name, bound in minimum.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {bound}")
        if bool(self.height) != bool(self.width):
            raise ValueError(f"height={self.height} and width={self.width}: give both or none")
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is unknown; choose one of {', '.join(MODES)}")

    def select_image_settings(self, stage: str) -> ImageSettings:
        """Return the settings of an image of this stage, "sketch" or "refine"."""
        return self.refine if stage == "refine" and self.refine else self.image

    def find_system(self, config: ModelConfig, mode: Mode) -> str:
        """Return the text before everything else: ``system``, else what the model was trained with, "" for none."""
        return self.system or (THINK if mode == "think" and config.is_bagel else "")

    def list_idle_guidance(self) -> list[str]:
        """Return a line for each group of images whose guidance changes nothing although the settings ask for it."""
        groups = {"images": self.image} | ({"refinements": self.refine} if self.refine else {})
        found = {name: find_idle_guidance(settings) for name, settings in groups.items()}
        return [f"{name}: {reason}" for name, reason in found.items() if reason]

    def count_images_left(self, mode: str, drawn: int) -> int:
        """Count the images that a trajectory with ``drawn`` images may still draw; outside mode "process" one more."""
        if mode == "process" or not self.max_images:
            return max(0, self.max_images - drawn)
        return int(mode != "understand")

    def flatten(self) -> dict[str, Any]:
        """Return one flat dict, as files hold it: "max_images", "text.temperature", "image.interval_from", ..."""
        values = dataclasses.asdict(self)
        if self.refine is None:
            del values["refine"]
        for group in _GROUPS:
            values |= {f"{group}.{name}": value for name, value in values.pop(group, {}).items()}
        for name in [name for name in values if name.endswith(".interval")]:
            values[f"{name}_from"], values[f"{name}_to"] = values.pop(name)
        return values


def unflatten_settings(values: Mapping[str, Any]) -> SampleSettings:
    """Return the settings from ``SampleSettings.flatten``; ignore other names, use defaults for missing ones.

    Raises:
      ValueError: a value has another type or is out of range.
    """
    values = replace_earlier_names(values)
    fields = {name: value for name, value in values.items() if "." not in name}
    for group in _GROUPS:
        own = {name.removeprefix(f"{group}."): value for name, value in values.items() if name.startswith(f"{group}.")}
        if "interval_from" in own:
            own["interval"] = (own.pop("interval_from"), own.pop("interval_to", None))
        if own:
            fields[group] = own
    return msgspec.convert(fields, SampleSettings)


def replace_earlier_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file under the names that the fields of ``SampleSettings`` have today."""
    return {_EARLIER_NAMES.get(name, name): value for name, value in values.items()}


def make_base_settings(mode: Mode, **changes: Any) -> SampleSettings:
    """Return the base model's defaults of a mode, with ``changes`` to any field of ``SampleSettings``.

    Mode "edit" has stronger image guidance, at every timestep, and limits the norm of each token. Thoughts and answers
    may be long and are greedy.

    Raises:
      ValueError: a value out of range.
    """
    values: dict[str, Any] = {"mode": mode}
    if mode == "edit":
        values["image"] = ImageSettings(image_scale=2.0, interval=(0.0, 1.0), renorm="text_channel")
    if mode in ("think", "understand"):
        values["text"] = TextSettings(max_tokens=1000, temperature=0.0)
    return SampleSettings(**values | changes)

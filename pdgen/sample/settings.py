"""What a user asks of the sampler: mode, sizes, limits, how texts are written and images drawn."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from pdgen.flow.denoise import ImageSettings
from pdgen.sample.text import TextSettings
from pdgen.sequence.modes import MODES, Mode

# What the base model was trained to obey in "think" mode; it stands before everything else.
THINK = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> "
    "image here"
)
MAX_TOGETHER = 8
_GROUPS = ("text", "image", "refine")  # settings that hold settings


class SampleError(ValueError):
    """A prompt, seed, image or size that cannot be sampled; one line names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How trajectories are sampled.

    Attributes:
      mode: which grammar they follow; see ``sequence.modes.MODES``.
      height, width: of every drawn image, in pixels; 0 = as the last image that is given or drawn already, else
        the largest square that the model's tables hold. Both or none.
      max_images: drawn images of one trajectory, at most; 0 writes the first plan alone.
      max_steps: sketches of one trajectory, at most; 0 = no limit but ``max_images``.
      max_prompt_tokens: tokens of a prompt, at most.
      text: how texts are written.
      image: how images are denoised, sketches and the base model's own.
      refine: how refinements are denoised; None = as ``image``.
      system: a text before everything else, which text guidance keeps; "" = none.
      together: rows that one evaluation of the network works on; fewer are padded, so that a trajectory's bits
        depend on this number and never on the rows beside it. 0 = as many as there are prompts, the next power of
        two, up to 8.
      keep_latents: trajectories hold the latents that their images were decoded from.

    Raises:
      ValueError: a value out of range, named.
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
    together: int = 0
    keep_latents: bool = False

    def __post_init__(self) -> None:
        least = {"height": 0, "width": 0, "max_images": 0, "max_steps": 0, "max_prompt_tokens": 1, "together": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {bound}")
        if bool(self.height) != bool(self.width):
            raise ValueError(f"height={self.height} and width={self.width}: give both or none")
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is unknown; choose one of {', '.join(MODES)}")

    def of_image(self, stage: str) -> ImageSettings:
        """How an image of this stage, "sketch" or "refine", is denoised."""
        return self.refine if stage == "refine" and self.refine else self.image

    def images_left(self, mode: str, drawn: int) -> int:
        """Images that a trajectory of a mode may still draw when it holds ``drawn``; outside "process" one more."""
        if mode == "process" or not self.max_images:
            return max(0, self.max_images - drawn)
        return int(mode != "understand")

    def flat(self) -> dict[str, Any]:
        """One flat object for the reader: "max_images", "text.temperature", "image.interval_from", ..."""
        values = dataclasses.asdict(self)
        if self.refine is None:
            del values["refine"]
        for group in _GROUPS:
            values |= {f"{group}.{name}": value for name, value in values.pop(group, {}).items()}
        for name in [name for name in values if name.endswith(".interval")]:
            values[f"{name}_from"], values[f"{name}_to"] = values.pop(name)
        return values


def from_flat(values: Mapping[str, Any]) -> SampleSettings:
    """The settings that ``flat`` told of; other names are left out, missing ones have their defaults.

    Raises:
      ValueError: a value is of another type or out of range.
    """
    own = {name: value for name, value in values.items() if "." not in name}
    for group in _GROUPS:
        held = {name.removeprefix(f"{group}."): value for name, value in values.items() if name.startswith(f"{group}.")}
        if "interval_from" in held:
            held["interval"] = (held.pop("interval_from"), held.pop("interval_to", None))
        if held:
            own[group] = held
    return msgspec.convert(own, SampleSettings)


def base_settings(mode: Mode, **changes: Any) -> SampleSettings:
    """The base model's defaults of a mode, with ``changes`` to any field of ``SampleSettings``.

    Editing guides harder by the given images, at every timestep, and holds back the norm of each token. Thinking
    puts the system text first; thoughts and answers may be long and are greedy.

    Raises:
      ValueError: a value out of range.
    """
    values: dict[str, Any] = {"mode": mode}
    if mode == "edit":
        values["image"] = ImageSettings(image_scale=2.0, interval=(0.0, 1.0), renorm="text_channel")
    if mode in ("think", "understand"):
        values["text"] = TextSettings(max_tokens=1000, temperature=0.0)
    if mode == "think":
        values["system"] = THINK
    return SampleSettings(**values | changes)

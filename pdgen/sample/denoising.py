"""Images between noise and result: denoised in parts of the schedule, looked at in between, dropped or finished."""

import collections
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image
from jaxtyping import Bool

from pdgen.flow.denoise import Denoiser, ImageSettings, Progress, count_evaluations
from pdgen.sample import kernels
from pdgen.sample.compiled import Stopwatch
from pdgen.sample.image import ImageGrid
from pdgen.sample.kernels import RowGroup, State
from pdgen.sample.model import Model
from pdgen.sample.settings import SampleError
from pdgen.sequence.images import from_pixels


class ImageKind(NamedTuple):
    """What images must have in common to be drawn by one call. ``image_guidance``: other images guide them."""

    grid: ImageGrid
    settings: ImageSettings
    image_guidance: bool


class ImageGroup(NamedTuple):
    """Images that are drawn by one call, in ``slots`` of the batch; ``rows`` are these slots, padded."""

    kind: ImageKind
    slots: list[int]
    rows: RowGroup
    progress: Progress | None = None


class DrawnImage(NamedTuple):
    """A finished image, the latents [tokens, values] that it was decoded from, and what its stage records."""

    image: PIL.Image.Image
    latents: np.ndarray
    seconds: float
    steps: int


def check_finite(task: str, finite: Bool[np.ndarray, "..."]) -> None:
    """Raise SampleError where a value that the model computed is not ``finite``; the message says its ``task``."""
    if not finite.all():
        raise SampleError(
            f"{task}: {np.count_nonzero(~finite):,} of {finite.size:,} values that the model computed are NaN or "
            "infinite; check its weights with launch/convert.py --check"
        )


class Denoising:
    """The next image of some rows of a batch, which must not change until the images are finished.

    Args:
      call: calls a compiled function with its static arguments and its arrays.
      state: the rows' contexts, which have read all that was pending.
      groups: the images before their first step.

    Attributes:
      step: Euler steps done. Images with a shorter schedule have done all of theirs.
      costs: by slot, what drawing has cost so far; a dropped image keeps its costs.
    """

    def __init__(self, model: Model, call: Callable[..., Any], state: State, groups: Sequence[ImageGroup]) -> None:
        self._model, self._call, self._state, self._groups = model, call, state, list(groups)
        self.step = 0
        names = ("network_evaluations", "guidance_branches", "seconds")
        self.costs = {slot: dict.fromkeys(names, 0.0) for slot in self.slots}

    @property
    def slots(self) -> list[int]:
        """Slots whose images are still being drawn."""
        return [slot for group in self._groups for slot in group.slots]

    @property
    def steps(self) -> int:
        """Euler steps of the longest schedule."""
        return max((group.kind.settings.num_timesteps - 1 for group in self._groups), default=0)

    def advance(self, to: int | None = None) -> None:
        """Run Euler steps up to ``to`` (default: all)."""
        to = self.steps if to is None else to
        for number, (kind, slots, rows, progress) in enumerate(self._groups):
            first, last = self.step, min(to, kind.settings.num_timesteps - 1)
            if first >= last:
                continue
            watch = Stopwatch(self._model.compiler)
            denoiser = Denoiser(*self._model.static, kind.settings, self._model.image_switches)
            static = (denoiser, kind.grid, (first, last), kind.image_guidance)
            progress = self._call(kernels.draw, static, self._model.params, self._state, rows, progress)
            jax.block_until_ready(progress)
            seconds = watch.seconds
            self._groups[number] = ImageGroup(kind, slots, rows, progress)
            before, after = (count_evaluations(kind.settings, kind.image_guidance, steps=n) for n in (first, last))
            for slot in slots:
                self.costs[slot]["network_evaluations"] += after.all - before.all
                self.costs[slot]["guidance_branches"] += after.guidance - before.guidance
                self.costs[slot]["seconds"] += seconds
        self.step = to

    def decode_estimates(self) -> dict[int, PIL.Image.Image]:
        """Decode, by slot, the clean image that the steps so far lead to: x0 = x - t v. Needs at least one step."""
        return {slot: image for group in self._groups for slot, image in zip(group.slots, self._decode(group))}

    def keep(self, slots: Collection[int]) -> None:
        """Drop all images but those of ``slots``."""
        by_kind = collections.defaultdict(list)
        for group in self._groups:
            by_kind[group.kind].append(group)
        self._groups = []
        for kind, groups in by_kind.items():
            width = len(groups[0].rows.index)
            # Images of several groups that are half empty now share a group: (place in the joined arrays, slot).
            held = [(n * width + at, slot) for n, group in enumerate(groups) for at, slot in enumerate(group.slots)]
            held = [(place, slot) for place, slot in held if slot in slots]
            for first in range(0, len(held), width):
                part = held[first : first + width]
                self._groups.append(self._join(kind, groups, part, width))

    def _join(
        self, kind: ImageKind, groups: Sequence[ImageGroup], held: list[tuple[int, int]], width: int
    ) -> ImageGroup:
        """Make one group of some images of several groups."""
        places, slots = [place for place, _ in held], [slot for _, slot in held]
        index = np.array(places + places[:1] * (width - len(places)), np.int32)
        rows = RowGroup(*(np.concatenate(parts)[index] for parts in zip(*(group.rows for group in groups))))
        rows.index[len(held) :] = self._state.logits.shape[0]  # padding
        progress = self._call(kernels.regroup, (), tuple(group.progress for group in groups), index)
        return ImageGroup(kind, slots, rows, progress)

    def finish(self) -> dict[int, DrawnImage]:
        """Run the remaining steps and return the images by slot, as 8-bit pictures: the contexts read them so."""
        self.advance()
        drawn = {}
        for group in self._groups:
            pictures, steps = self._decode(group), group.kind.settings.num_timesteps - 1
            assert group.progress is not None  # a schedule has at least one step
            for slot, picture, latents in zip(group.slots, pictures, np.asarray(group.progress.x)):
                drawn[slot] = DrawnImage(picture, latents, self.costs[slot]["seconds"], steps)
        return drawn

    def _decode(self, group: ImageGroup) -> list[PIL.Image.Image]:
        """Decode a group's estimates."""
        watch, (grid, settings, _) = Stopwatch(self._model.compiler), group.kind
        static = (self._model.config, settings, grid, min(self.step, settings.num_timesteps - 1))
        pixels = self._call(kernels.decode, static, self._model.params, group.progress)
        check_finite("drawing an image", np.isfinite(np.asarray(pixels)[: len(group.slots)]))
        pictures = [from_pixels(values) for values in np.asarray(pixels)]
        seconds = watch.seconds
        for slot in group.slots:
            self.costs[slot]["seconds"] += seconds
        return pictures

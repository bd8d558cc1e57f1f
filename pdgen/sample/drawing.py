"""Images on their way from noise: drawn in stretches of the schedule, looked at in between, given up or finished."""

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import PIL.Image

from pdgen.flow.denoise import Denoiser, ImageSettings, Progress, count_evaluations
from pdgen.sample import steps
from pdgen.sample.compiled import Stopwatch
from pdgen.sample.image import ImageGrid
from pdgen.sequence.images import from_pixels

if TYPE_CHECKING:
    from pdgen.sample.batch import Batch


class _Kind(NamedTuple):
    """What images must have in common to be drawn together."""

    grid: ImageGrid
    settings: ImageSettings
    image_guidance: bool


class _Group(NamedTuple):
    kind: _Kind
    slots: list[int]
    progress: Progress | None


class Drawing:
    """The next image of some rows of a batch, which must not change otherwise until the drawing is finished.

    Args:
      batch: the rows' batch; all that is pending has been read.
      slots: rows whose next segment may be an image.

    Attributes:
      step: Euler steps done. Rows whose settings have fewer have all of theirs.
      slots: rows that are still drawn.
    """

    def __init__(self, batch: "Batch", slots: Sequence[int]) -> None:
        self.batch, self.step = batch, 0
        self._groups = [_Group(_Kind(*key), group, None) for key, group in batch.groups(slots, batch.drawn_alike)]
        self._seconds = dict.fromkeys(slots, 0.0)

    @property
    def slots(self) -> list[int]:
        """Rows that are still drawn."""
        return [slot for group in self._groups for slot in group.slots]

    @property
    def steps(self) -> int:
        """Euler steps of the longest schedule among the rows."""
        return max((group.kind.settings.num_timesteps - 1 for group in self._groups), default=0)

    def advance(self, to: int | None = None) -> None:
        """Goes on until ``to`` steps are done, by default all."""
        to = self.steps if to is None else to
        self._groups = [self._advance(group, to) for group in self._groups]
        self.step = to

    def _advance(self, group: _Group, to: int) -> _Group:
        batch, watch = self.batch, Stopwatch(self.batch.sampler.compiler)
        grid, settings, image_guidance = group.kind
        stretch = (self.step, min(to, settings.num_timesteps - 1))
        if stretch[0] >= stretch[1]:
            return group
        denoiser = Denoiser(*batch.model, settings, batch.image_switches)
        progress = batch.call(
            steps.draw,
            (denoiser, grid, stretch, image_guidance),
            batch.sampler.params,
            batch.state,
            batch.group(group.slots),
            group.progress,
        )
        jax.block_until_ready(progress)
        before, after = (count_evaluations(settings, image_guidance, steps=n) for n in stretch)
        for slot in group.slots:
            costs = batch.rows[slot].costs
            costs["network_evaluations"] += after.all - before.all
            costs["guidance_branches"] += after.guidance - before.guidance
        self._spend(group.slots, watch.seconds)
        return group._replace(progress=progress)

    def _spend(self, slots: Sequence[int], seconds: float) -> None:
        """Charges what these rows took part in, at once: a row that is given up later has cost it too."""
        for slot in slots:
            self._seconds[slot] += seconds
            self.batch.rows[slot].costs["seconds"] += seconds

    def estimates(self) -> dict[int, PIL.Image.Image]:
        """By slot the clean image that the steps so far lead to, x0 = x - t v, decoded; at least one step is done."""
        return {slot: picture for group in self._groups for slot, picture in zip(group.slots, self._decoded(group))}

    def _decoded(self, group: _Group) -> list[PIL.Image.Image]:
        (grid, settings, _), sampler = group.kind, self.batch.sampler
        watch, step = Stopwatch(sampler.compiler), min(self.step, settings.num_timesteps - 1)
        pixels = self.batch.call(steps.decode, (sampler.config, settings, grid, step), sampler.params, group.progress)
        pictures = [from_pixels(values) for values in np.asarray(pixels)]
        self._spend(group.slots, watch.seconds)
        return pictures

    def keep(self, slots: Sequence[int]) -> None:
        """Gives up all rows but these; their batch still holds them, without the image."""
        alike = collections.defaultdict(list)
        for group in self._groups:
            alike[group.kind].append(group)
        self._groups, width = [], self.batch.settings.together
        for kind, groups in alike.items():
            held = [(n * width + place, slot) for n, g in enumerate(groups) for place, slot in enumerate(g.slots)]
            held = [(place, slot) for place, slot in held if slot in slots]
            for first in range(0, len(held), width):
                places, names = map(list, zip(*held[first : first + width]))
                index = np.array(places + places[:1] * (width - len(places)), np.int32)
                progress = self.batch.call(steps.regroup, (), tuple(g.progress for g in groups), index)
                self._groups.append(_Group(kind, names, progress))

    def finish(self) -> None:
        """Takes the steps that are left; every row's image is recorded, and read before the row goes on."""
        self.advance()
        for group in self._groups:
            # The contexts read what the PNG will hold: 8 bits a channel.
            pictures, latents = self._decoded(group), np.asarray(group.progress.x)
            for slot, picture, latent in zip(group.slots, pictures, latents):
                values = {"seconds": self._seconds[slot], "steps": group.kind.settings.num_timesteps - 1}
                self.batch.add_drawn(slot, picture, latent, values)

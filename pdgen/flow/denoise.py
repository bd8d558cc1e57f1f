"""From noise to an image's latents: one compiled scan per stretch of the schedule.

The image's tokens see the whole context and each other and are never stored. Guidance branches stand side
by side in one sequence, each with its own intervals and rotary position, so the dense layers run once
over all of them; steps outside the guidance interval evaluate one branch only.

Axis legend: B batch, M VAE tokens, C values of a VAE token, R branches, D width.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow import taylor
from pdgen.flow.guidance import RENORMS, guide
from pdgen.flow.rectified import schedule
from pdgen.models import bagel, mot
from pdgen.models.attention import Intervals
from pdgen.models.context import Cache, image_order
from pdgen.models.mot import Order, Past, Streams
from pdgen.sharding import place


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How an image is sampled; the defaults are the base model's for text to image.

    Attributes:
      num_timesteps: points of the schedule; one less Euler steps. At least 2.
      timestep_shift: within [0.01, 100]; see ``rectified.shift_timesteps``.
      text_scale: text guidance, within [1, 100]; 1 = no guidance at all, whatever ``image_scale``.
      image_scale: image guidance, within [1, 100]; 1 = none.
      interval: guidance is on where interval[0] < t <= interval[1]; both within [0, 1].
      renorm, renorm_min: see ``guidance.guide``.
      taylorseer: extrapolate two steps of three; see ``flow.taylor``.

    Raises:
      ValueError: a value out of range, named.
    """

    num_timesteps: int = 50
    timestep_shift: float = 3.0
    text_scale: float = 4.0
    image_scale: float = 1.5
    interval: tuple[float, float] = (0.4, 1.0)
    renorm: str = "global"
    renorm_min: float = 0.0
    taylorseer: bool = False

    def __post_init__(self) -> None:
        scales, (low, high) = (self.text_scale, self.image_scale), self.interval
        rules = {
            "num_timesteps must be at least 2": self.num_timesteps >= 2,
            "timestep_shift must be within [0.01, 100]": 0.01 <= self.timestep_shift <= 100,
            "text_scale and image_scale must be at least 1 and at most 100": all(1 <= s <= 100 for s in scales),
            "interval must ascend within [0, 1]": 0 <= low < high <= 1,
            f"renorm must be one of {', '.join(RENORMS)}": self.renorm in RENORMS,
            "renorm_min must be within [0, 1]": 0 <= self.renorm_min <= 1,
        }
        for rule, kept in rules.items():
            if not kept:
                raise ValueError(f"image settings: {rule}; got {self}")

    @property
    def guided_steps(self) -> tuple[int, int]:
        """First and last+1 Euler step with guidance (equal: none)."""
        t = np.minimum(schedule(self.num_timesteps, self.timestep_shift)[:-1], 1)  # the first may be rounded above
        guided = np.flatnonzero((self.interval[0] < t) & (t <= self.interval[1]))
        if self.text_scale == 1 or not guided.size:
            return 0, 0
        return int(guided[0]), int(guided[-1]) + 1


class Contexts(NamedTuple):
    """What the branches see.

    Attributes:
      full: the whole context.
      text_length, text_rotary: [B], the view of ``full`` without the texts since the last image.
      image: the context without images; None switches image guidance off.
      has_image: [B], rows whose context holds an image.
    """

    full: Cache
    text_length: Int[Array, " B"]
    text_rotary: Int[Array, " B"]
    image: Cache | None
    has_image: Bool[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """Static side of the scan: sizes, settings and the ids of the two switch tokens."""

    config: ModelConfig
    compute: ComputeConfig
    settings: ImageSettings
    switches: tuple[int, int]


class Progress(NamedTuple):
    """An image on its way from noise.

    Attributes:
      x: latents at the timestep reached.
      v: guided velocity of the last step, 0 before the first.
      differences: what TaylorSeer extrapolates from (no tokens where it is off), O = taylor.ORDER + 1.
    """

    x: Float[Array, "B M C"]
    v: Float[Array, "B M C"]
    differences: Float[Array, "B O T D"]


class _Step(NamedTuple):
    """What one Euler step needs of the schedule; stacked over the steps of a scan.

    Attributes:
      t: the timestep it starts from.
      dt: how far it goes.
      plan: whether TaylorSeer computes or extrapolates here.
    """

    t: Float[Array, "*steps"]
    dt: Float[Array, "*steps"]
    plan: taylor.Plan


def begin(denoiser: Denoiser, noise: Float[Array, "B M C"], image_guidance: bool) -> Progress:
    """An image before its first step; ``noise`` is standard normal."""
    x, settings = place(noise.astype(jnp.float32), "batch", None, None), denoiser.settings
    tokens = num_branches(settings, image_guidance) * noise.shape[1] if settings.taylorseer else 0
    shape = (noise.shape[0], taylor.ORDER + 1, tokens, denoiser.config.language.hidden_size)
    return Progress(x, jnp.zeros_like(x), place(jnp.zeros(shape, jnp.float32), "batch", None, None, None))


def advance(
    denoiser: Denoiser,
    params: dict[str, Any],
    contexts: Contexts,
    positions: Int[Array, "B M"],
    progress: Progress,
    steps: tuple[int, int],
) -> Progress:
    """Euler steps ``steps[0]`` .. ``steps[1] - 1``; stretch after stretch gives what one call over all steps gives.

    Args:
      positions: position ids of the latent patches.
    """
    settings = denoiser.settings
    t = schedule(settings.num_timesteps, settings.timestep_shift)
    start, end = settings.guided_steps
    whole = _Step(t[:-1], t[:-1] - t[1:], taylor.plan(len(t) - 1, start if end else 0))
    guided = num_branches(settings, contexts.image is not None)
    # Three scans, since the number of branches is a shape: before, within and after the guidance interval.
    for first, last, count in ((0, start, 1), (start, end, guided), (end, len(t) - 1, 1)):
        first, last = max(first, steps[0]), min(last, steps[1])
        if first < last:
            run = functools.partial(_run_step, denoiser, params, contexts, positions, count)
            part = slice(first, last)
            progress, _ = jax.lax.scan(run, progress, jax.tree.map(operator.itemgetter(part), whole))
    return progress


def estimate(settings: ImageSettings, progress: Progress, step: int) -> Float[Array, "B M C"]:
    """The clean latents that the last velocity leads to after ``step`` steps: x0 = x - t v; x itself at the end."""
    return progress.x - schedule(settings.num_timesteps, settings.timestep_shift)[step] * progress.v


def generate_latents(
    denoiser: Denoiser,
    params: dict[str, Any],
    contexts: Contexts,
    noise: Float[Array, "B M C"],
    positions: Int[Array, "B M"],
) -> Float[Array, "B M C"]:
    """All Euler steps from ``noise`` to the image's clean, scaled latents, float32; see ``begin`` and ``advance``."""
    progress = begin(denoiser, noise, contexts.image is not None)
    steps = (0, denoiser.settings.num_timesteps - 1)
    return advance(denoiser, params, contexts, positions, progress, steps).x


def num_branches(settings: ImageSettings, image_guidance: bool) -> int:
    """Branches of a guided step: the full context, the one without texts, and the one without images."""
    if settings.guided_steps == (0, 0):
        return 1
    return 2 + int(image_guidance and settings.image_scale > 1)


class Evaluations(NamedTuple):
    """Forward passes of one image: of all branches together, and of the guidance branches among them."""

    all: int
    guidance: int


def network_evaluations(settings: ImageSettings, image_guidance: bool, steps: int | None = None) -> Evaluations:
    """Forward passes of an image's first ``steps`` steps (all by default); TaylorSeer's skips are none."""
    start, end = settings.guided_steps
    count = settings.num_timesteps - 1
    full = taylor.plan(count, start).full if settings.taylorseer else np.ones(count, bool)
    full = full[:steps]
    guidance = (num_branches(settings, image_guidance) - 1) * int(full[start:end].sum())
    return Evaluations(int(full.sum()) + guidance, guidance)


def _run_step(
    denoiser: Denoiser,
    params: dict,
    contexts: Contexts,
    positions: Array,
    branches: int,
    progress: Progress,
    step: _Step,
) -> tuple[Progress, None]:
    """One Euler step with ``branches`` evaluated."""
    evaluate = functools.partial(_last_layer, denoiser, params, contexts, positions, branches, progress.x, step.t)
    if denoiser.settings.taylorseer:
        hidden, differences = _compute_or_extrapolate(step.plan, positions.shape[1], branches, progress, evaluate)
        hidden = hidden.astype(denoiser.compute.dtype)
    else:
        hidden, differences = evaluate(), progress.differences
    hidden = mot.final_norm(denoiser.config.language, params["language"]["norm"], "gen", hidden)
    velocities = jnp.split(bagel.velocity(params, hidden), branches, axis=1)
    v = _combine(denoiser.settings, velocities, contexts.has_image)
    return Progress(progress.x - step.dt * v, v, differences), None


def _compute_or_extrapolate(
    plan: taylor.Plan, tokens: int, branches: int, progress: Progress, evaluate: Callable[[], Array]
) -> tuple[Float[Array, "B T D"], Float[Array, "B O T D"]]:
    """TaylorSeer's last layer, float32, and its differences after the step; ``tokens`` of each branch."""
    count = branches * tokens
    # Differences come first in ``taylor``. A step with fewer branches leaves those of the others as they are.
    own = jnp.moveaxis(progress.differences[:, :, :count], 1, 0)
    known = jnp.where(jnp.arange(count) < tokens, plan.known[0], plan.known[1])
    own = jax.lax.cond(plan.full, lambda: taylor.renew(own, evaluate(), plan.distance, known), lambda: own)
    hidden = jnp.where(plan.full, own[0], taylor.extrapolate(own, plan.distance))
    return hidden, progress.differences.at[:, :, :count].set(jnp.moveaxis(own, 0, 1))


def _combine(settings: ImageSettings, velocities: list[Array], has_image: Array) -> Float[Array, "B M C"]:
    """The guided velocity of the branches' own: full context, without texts, without images."""
    if len(velocities) == 1:
        return velocities[0]
    full, text, *image = velocities
    return guide(
        full,
        text,
        image[0] if image else None,
        has_image,
        scales=(settings.text_scale, settings.image_scale),
        renorm=settings.renorm,
        renorm_min=settings.renorm_min,
    )


def _last_layer(
    denoiser: Denoiser, params: dict, contexts: Contexts, positions: Array, branches: int, x: Array, t: Array
) -> Float[Array, "B T D"]:
    """Last layer's output of the VAE tokens of every branch, T = branches * M, before the final norm."""
    config, compute = denoiser.config, denoiser.compute
    batch, tokens = positions.shape
    switches = jnp.tile(jnp.asarray(denoiser.switches, jnp.int32), (batch, branches))
    und = bagel.embed_text(compute, params, switches)
    # The branches differ in what they see alone: the same noisy image is embedded once for all.
    gen = bagel.embed_latents(config, compute, params, x, positions, jnp.full(positions.shape, t))
    streams = Streams(und, jnp.tile(gen, (1, branches, 1)))
    order, past = _arrange_branches(contexts, tokens, branches)
    streams, _ = mot.run_layers(config.language, compute, params["language"]["layers"], streams, order, past)
    return streams.gen


class _View(NamedTuple):
    """What one branch sees, per row: its rotary position and how many tokens of the two contexts."""

    rotary: Int[Array, " B"]
    in_full: Int[Array, " B"]
    in_image: Int[Array, " B"]


def _arrange_branches(contexts: Contexts, tokens: int, branches: int) -> tuple[Order, tuple[Past, ...]]:
    """Branches as documents of one sequence: each sees its own context and its own tokens."""
    full, image = contexts.full, contexts.image
    batch, span = full.length.shape[0], tokens + 2
    zero = jnp.zeros(batch, jnp.int32)
    # The texts since the last image end the context, so the branch without them sees a shorter piece of the same cache.
    views = [_View(full.rotary, full.length, zero), _View(contexts.text_rotary, contexts.text_length, zero)]
    if branches == 3:
        views.append(_View(image.rotary, zero, image.length))
    rotary, in_full, in_image = (jnp.repeat(jnp.stack(x, 1), span, axis=1) for x in zip(*views[:branches]))

    to_sequence = image_order(tokens, branches)
    to_stream = np.argsort(to_sequence)
    own = np.arange(branches * span) // span * span
    rows = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), (batch, branches * span))  # noqa: E731
    among = Intervals(rows(own), rows(own + span))
    order = Order(rotary[:, to_stream], rows(to_sequence), rows(to_stream), among, isolated_spans=branches)
    past = [Past(full.k, full.v, Intervals(rows(0), in_full))]
    if image is not None and branches == 3:
        past.append(Past(image.k, image.v, Intervals(rows(0), in_image)))
    return order, tuple(past)

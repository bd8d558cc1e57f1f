"""From noise to an image's latents: Euler steps of the learned flow in compiled scans.

    x_1 ~ N(0, 1),   x <- x - dt v(x, t),   v = guide(v_full, v_text, v_image)

The image's tokens see the whole context and each other. Their keys and values are never cached: they change with
every step. The branches of a guided step are concatenated to one sequence. Each has its own intervals and rotary
position, so the dense layers run once over all of them. Steps outside the guidance interval evaluate one branch.

Axis legend: B batch, M VAE tokens, C values of a VAE token, R branches, T = R M, O orders of TaylorSeer, D width.
"""

import dataclasses
import functools
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
from pdgen.models.attention import Intervals, Part
from pdgen.models.context import Cache, image_order
from pdgen.models.mot import Order, Streams
from pdgen.sharding import place


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How to sample an image; the defaults are BAGEL's for text to image.

    Attributes:
      num_timesteps: points of the schedule, at least 2; there is one Euler step less.
      timestep_shift: within [0.01, 100]; see ``rectified.shift_timesteps``.
      text_scale: text guidance, within [1, 100]; 1 = no guidance at all, whatever ``image_scale``.
      image_scale: image guidance, within [1, 100]; 1 = none.
      interval: guidance is on where interval[0] < t <= interval[1]; both within [0, 1].
      renorm, renorm_min: see ``guidance.guide``.
      taylorseer: whether two steps of three are extrapolated; see ``flow.taylor``.

    Raises:
      ValueError: a value is out of range; the message names it.
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
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"image settings: {rule}; got {self}")

    @property
    def guided_steps(self) -> tuple[int, int]:
        """Euler steps [first, end) with guidance; (0, 0) if none has."""
        t = np.minimum(schedule(self.num_timesteps, self.timestep_shift)[:-1], 1)  # rounding may give 1.0000001
        guided = np.flatnonzero((self.interval[0] < t) & (t <= self.interval[1]))
        if self.text_scale == 1 or not guided.size:
            return 0, 0
        return int(guided[0]), int(guided[-1]) + 1


class Contexts(NamedTuple):
    """The contexts of the guidance branches.

    Attributes:
      full: the whole context.
      text_length, text_rotary: number of tokens and next rotary position of ``full`` without the texts since the
        last image.
      image: the context without images; None turns image guidance off.
      has_image: rows whose context contains an image.
    """

    full: Cache
    text_length: Int[Array, " B"]
    text_rotary: Int[Array, " B"]
    image: Cache | None
    has_image: Bool[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """What is fixed at compilation: sizes, settings and the ids of <|vision_start|> and <|vision_end|>."""

    config: ModelConfig
    compute: ComputeConfig
    settings: ImageSettings
    switches: tuple[int, int]


class Progress(NamedTuple):
    """The state of a partly denoised image.

    Attributes:
      x: latents at the current timestep.
      v: guided velocity of the last step, 0 before the first.
      differences: TaylorSeer's finite differences; without TaylorSeer T is 0.
    """

    x: Float[Array, "B M C"]
    v: Float[Array, "B M C"]
    differences: Float[Array, "B O T D"]


class _Step(NamedTuple):
    """What an Euler step takes from the schedule: its first t, the decrease of t, and its part of ``taylor.Plan``."""

    t: Float[Array, "*steps"]
    dt: Float[Array, "*steps"]
    full: Bool[Array, "*steps"]
    distance: Int[Array, "*steps"]
    known: Int[Array, "*steps 2"]


def begin(denoiser: Denoiser, noise: Float[Array, "B M C"], image_guidance: bool) -> Progress:
    """Return the state of an image before its first step; ``noise`` is standard normal."""
    x, settings = place(noise.astype(jnp.float32), "batch", None, None), denoiser.settings
    tokens = count_branches(settings, image_guidance) * noise.shape[1] if settings.taylorseer else 0
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
    """Run Euler steps [steps[0], steps[1]). Consecutive calls give the same result as one call over all steps.

    ``positions`` are the position ids of the latent patches, ``progress`` is the state after ``steps[0]`` steps.
    """
    settings = denoiser.settings
    t = schedule(settings.num_timesteps, settings.timestep_shift)
    start, end = settings.guided_steps
    schedules = (t[:-1], t[:-1] - t[1:], *taylor.plan(len(t) - 1, start if end else 0))
    guided = count_branches(settings, contexts.image is not None)
    # Three scans, since the number of branches is a shape: before, within and after the guidance interval.
    for first, last, branches in ((0, start, 1), (start, end, guided), (end, len(t) - 1, 1)):
        first, last = max(first, steps[0]), min(last, steps[1])
        if first < last:
            run = functools.partial(_run_step, denoiser, params, contexts, positions, branches)
            progress, _ = jax.lax.scan(run, progress, _Step(*(jnp.asarray(x[first:last]) for x in schedules)))
    return progress


def estimate(settings: ImageSettings, progress: Progress, step: int) -> Float[Array, "B M C"]:
    """Estimate the clean latents x0 = x - t v after ``step`` steps, with the last step's velocity."""
    return progress.x - schedule(settings.num_timesteps, settings.timestep_shift)[step] * progress.v


def generate_latents(
    denoiser: Denoiser,
    params: dict[str, Any],
    contexts: Contexts,
    noise: Float[Array, "B M C"],
    positions: Int[Array, "B M"],
) -> Float[Array, "B M C"]:
    """Run all Euler steps from ``noise`` to the image's clean, scaled latents, float32; arguments as ``advance``."""
    progress = begin(denoiser, noise, contexts.image is not None)
    steps = (0, denoiser.settings.num_timesteps - 1)
    return advance(denoiser, params, contexts, positions, progress, steps).x


def count_branches(settings: ImageSettings, image_guidance: bool) -> int:
    """Count the branches of a guided step: the full context, the one without texts, the one without images."""
    if settings.guided_steps == (0, 0):
        return 1
    return 2 + int(image_guidance and settings.image_scale > 1)


def describe_guidance(settings: ImageSettings, image_guidance: bool) -> str:
    """Return the guidance that is applied to an image, such as "text 4 in 29 of 49 steps, image 1.5 in 29", or "none".

    ``image_guidance`` is whether other images precede it.
    """
    branches, (start, end) = count_branches(settings, image_guidance), settings.guided_steps
    if branches == 1:
        return "none"
    text = f"text {settings.text_scale:g} in {end - start} of {settings.num_timesteps - 1} steps"
    return text if branches == 2 else f"{text}, image {settings.image_scale:g} in {end - start}"


def find_idle_guidance(settings: ImageSettings) -> str:
    """Return why guidance that the settings ask for changes nothing, "" if there is no such guidance.

    The default ``image_scale`` asks for nothing where ``text_scale`` is 1.
    """
    text, image, (low, high) = settings.text_scale, settings.image_scale, settings.interval
    if text == 1:
        asked = image not in (1, ImageSettings.image_scale)
        return f"image_scale={image:g} has no effect, because text_scale=1 turns all guidance off" * asked
    if settings.guided_steps == (0, 0):
        return (
            f"text_scale={text:g} and image_scale={image:g} have no effect, because none of the "
            f"{settings.num_timesteps - 1} steps begins at a timestep above {low:g} and at most {high:g} (interval)"
        )
    return ""


class Evaluations(NamedTuple):
    """Forward passes for one image: of all branches, and of the guidance branches among them."""

    all: int
    guidance: int


def count_evaluations(settings: ImageSettings, image_guidance: bool, steps: int | None = None) -> Evaluations:
    """Count the forward passes of an image's first ``steps`` steps (None: all), without TaylorSeer's skipped ones."""
    start, end = settings.guided_steps
    count = settings.num_timesteps - 1
    full = taylor.plan(count, start).full if settings.taylorseer else np.ones(count, bool)
    full = full[:steps]
    guidance = (count_branches(settings, image_guidance) - 1) * int(full[start:end].sum())
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
    """Run one Euler step with ``branches`` branches."""
    evaluate = functools.partial(_last_layer, denoiser, params, contexts, positions, branches, progress.x, step.t)
    if denoiser.settings.taylorseer:
        hidden, differences = _compute_or_extrapolate(step, positions.shape[1], branches, progress, evaluate)
        hidden = hidden.astype(denoiser.compute.dtype)
    else:
        hidden, differences = evaluate(), progress.differences
    hidden = mot.final_norm(denoiser.config.language, params["language"]["norm"], "gen", hidden)
    v, *without = jnp.split(bagel.velocity(params, hidden), branches, axis=1)
    if without:
        text, image = without if len(without) == 2 else (*without, None)
        settings = denoiser.settings
        scales = settings.text_scale, settings.image_scale
        v = guide(v, text, image, contexts.has_image, scales, settings.renorm, settings.renorm_min)
    return Progress(progress.x - step.dt * v, v, differences), None


def _compute_or_extrapolate(
    step: _Step, tokens: int, branches: int, progress: Progress, evaluate: Callable[[], Array]
) -> tuple[Float[Array, "B T D"], Float[Array, "B O All D"]]:
    """Return the last layer's output by TaylorSeer, float32, and the differences after the step.

    ``tokens`` is the number of each branch. A step with fewer branches does not change the other branches'
    differences.
    """
    count = branches * tokens
    # In ``taylor`` the order is the first axis; in ``Progress`` it is the batch, as in all states that a mesh splits.
    own = jnp.moveaxis(progress.differences[:, :, :count], 1, 0)
    known = jnp.where(jnp.arange(count) < tokens, step.known[0], step.known[1])
    own = jax.lax.cond(step.full, lambda: taylor.update_differences(own, evaluate(), step.distance, known), lambda: own)
    hidden = jnp.where(step.full, own[0], taylor.extrapolate(own, step.distance))
    return hidden, progress.differences.at[:, :, :count].set(jnp.moveaxis(own, 0, 1))


def _last_layer(
    denoiser: Denoiser, params: dict, contexts: Contexts, positions: Array, branches: int, x: Array, t: Array
) -> Float[Array, "B T D"]:
    """Return the last layer's output for the VAE tokens of every branch, before the final norm."""
    config, compute = denoiser.config, denoiser.compute
    batch, tokens = positions.shape
    switches = jnp.tile(jnp.asarray(denoiser.switches, jnp.int32), (batch, branches))
    und = bagel.embed_text(compute, params, switches)
    # The branches differ only in what they see, so the noisy image is embedded once for all of them.
    gen = bagel.embed_latents(config, compute, params, x, positions, jnp.full(positions.shape, t))
    streams = Streams(und, jnp.tile(gen, (1, branches, 1)))
    order, past = _arrange_branches(contexts, tokens, branches)
    streams, _ = mot.run_layers(config.language, compute, params["language"]["layers"], streams, order, past)
    return streams.gen


def _arrange_branches(contexts: Contexts, tokens: int, branches: int) -> tuple[Order, tuple[Part, ...]]:
    """Lay the branches out as documents of one sequence: each sees its own context and its own tokens."""
    full, image = contexts.full, contexts.image
    batch, span = full.length.shape[0], tokens + 2
    zero = jnp.zeros(batch, jnp.int32)
    # Of each branch, its rotary position and how many tokens of either context it sees. The texts since the last image
    # come last in the context: without them, a branch sees a prefix of the same cache.
    views = [(full.rotary, full.length, zero), (contexts.text_rotary, contexts.text_length, zero)]
    if image is not None and branches == 3:
        views.append((image.rotary, zero, image.length))
    rotary, in_full, in_image = (jnp.repeat(jnp.stack(x, 1), span, axis=1) for x in zip(*views[:branches]))

    to_sequence = image_order(tokens, branches)
    to_stream = np.argsort(to_sequence)
    own = np.arange(branches * span) // span * span  # first slot of each token's own branch
    rows = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), (batch, branches * span))  # noqa: E731
    among = Intervals(rows(own), rows(own + span))
    order = Order(rotary[:, to_stream], rows(to_sequence), rows(to_stream), among, isolated_spans=branches)
    past = [Part(full.k, full.v, Intervals(rows(0), in_full))]
    if image is not None and branches == 3:
        past.append(Part(image.k, image.v, Intervals(rows(0), in_image)))
    return order, tuple(past)

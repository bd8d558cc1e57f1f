"""From noise to an image's latents: one compiled scan per stretch of the schedule.

The image's tokens see the whole context and each other and are never stored. Guidance branches stand side
by side in one sequence, each with its own intervals and rotary position, so the dense layers run once
over all of them; steps outside the guidance interval evaluate one branch only.

Axis legend: B batch, M VAE tokens, C values of a VAE token, R branches, D width.
"""

import dataclasses
import functools
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
from pdgen.models.mot import Order, Past


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How an image is sampled; the defaults are the base model's for text to image.

    Attributes:
      num_timesteps: points of the schedule; one less Euler steps. At least 2.
      timestep_shift: > 0; see ``rectified.shift_timesteps``.
      text_scale: text guidance, >= 1; 1 = no guidance at all, whatever ``image_scale``.
      image_scale: image guidance, >= 1; 1 = none.
      interval: guidance is on where interval[0] < t <= interval[1].
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
        rules = {
            "num_timesteps must be at least 2": self.num_timesteps >= 2,
            "timestep_shift must be above 0": self.timestep_shift > 0,
            "text_scale and image_scale must be at least 1": min(self.text_scale, self.image_scale) >= 1,
            f"renorm must be one of {', '.join(RENORMS)}": self.renorm in RENORMS,
            "renorm_min must be within [0, 1]": 0 <= self.renorm_min <= 1,
        }
        for rule, kept in rules.items():
            if not kept:
                raise ValueError(f"image settings: {rule}; got {self}")

    @property
    def guided_steps(self) -> tuple[int, int]:
        """First and last+1 Euler step with guidance (equal: none)."""
        t = schedule(self.num_timesteps, self.timestep_shift)[:-1]
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


def generate_latents(
    denoiser: Denoiser,
    params: dict[str, Any],
    contexts: Contexts,
    noise: Float[Array, "B M C"],
    positions: Int[Array, "B M"],
) -> Float[Array, "B M C"]:
    """Euler steps from ``noise`` to the image's clean, scaled latents, float32.

    Args:
      noise: standard normal values.
      positions: position ids of the latent patches.
    """
    settings = denoiser.settings
    t = schedule(settings.num_timesteps, settings.timestep_shift)
    steps, (begin, end) = len(t) - 1, settings.guided_steps
    full, distance, known = taylor.plan(steps, begin if end else 0)
    xs = (t[:-1], t[:-1] - t[1:], full, distance, known)
    branches = 1 if not end else 2 + int(contexts.image is not None and settings.image_scale > 1)
    state = (noise.astype(jnp.float32), _empty_differences(denoiser, noise, branches))
    for first, last, count in ((0, begin, 1), (begin, end, branches), (end, steps, 1)):
        if first < last:
            step = functools.partial(_step, denoiser, params, contexts, positions, count)
            state, _ = jax.lax.scan(step, state, tuple(x[first:last] for x in xs))
    return state[0]


def network_evaluations(settings: ImageSettings, image_guidance: bool) -> tuple[int, int]:
    """Euler steps, and forward passes counting each guidance branch, of one image (TaylorSeer's skips excluded)."""
    begin, end = settings.guided_steps
    steps = settings.num_timesteps - 1
    full = taylor.plan(steps, begin)[0] if settings.taylorseer else np.ones(steps, bool)
    extra = 1 + int(image_guidance and settings.image_scale > 1)
    return steps, int(full.sum() + extra * full[begin:end].sum())


def _empty_differences(denoiser: Denoiser, noise: Array, branches: int) -> Array:
    tokens = branches * noise.shape[1] if denoiser.settings.taylorseer else 0
    width = denoiser.config.language.hidden_size
    return jnp.zeros((taylor.ORDER + 1, noise.shape[0], tokens, width), jnp.float32)


def _step(
    denoiser: Denoiser, params: dict, contexts: Contexts, positions: Array, branches: int, state: tuple, xs: tuple
) -> tuple[tuple, None]:
    """One Euler step with ``branches`` evaluated."""
    (x, differences), (t, dt, full, distance, known) = state, xs
    settings = denoiser.settings

    def compute() -> Array:
        return _last_layer(denoiser, params, contexts, (x, positions, t), branches)

    if settings.taylorseer:
        tokens = branches * x.shape[1]
        own = differences[:, :, :tokens]
        per_token = jnp.where(jnp.arange(tokens) < x.shape[1], known[0], known[1])
        own = jax.lax.cond(full, lambda: taylor.renew(own, compute(), distance, per_token), lambda: own)
        hidden = jnp.where(full, own[0], taylor.extrapolate(own, distance)).astype(denoiser.compute.dtype)
        differences = differences.at[:, :, :tokens].set(own)
    else:
        hidden = compute()
    hidden = mot.final_norm(denoiser.config.language, params["language"]["norm"], "gen", hidden)
    v = jnp.split(bagel.velocity(params, hidden), branches, axis=1)
    if branches > 1:
        image = v[2] if branches == 3 else None
        guided = guide(v[0], v[1], image, contexts.has_image, scales=(settings.text_scale, settings.image_scale),
                       renorm=settings.renorm, renorm_min=settings.renorm_min)  # fmt: skip
    else:
        guided = v[0]
    return (x - dt * guided, differences), None


def _last_layer(denoiser: Denoiser, params: dict, contexts: Contexts, image: tuple, branches: int) -> Array:
    """Last layer's output of the VAE tokens of every branch, [B, R * M, D], before the final norm."""
    (x, positions, t), (config, compute) = image, (denoiser.config, denoiser.compute)
    batch, tokens = positions.shape
    switches = jnp.tile(jnp.asarray(denoiser.switches, jnp.int32), (batch, branches))
    und = bagel.embed_text(compute, params, switches)
    gen = bagel.embed_latents(config, compute, params, x, positions, jnp.full(positions.shape, t))
    streams = (und, jnp.tile(gen, (1, branches, 1)))
    order, past = _geometry(contexts, tokens, branches)
    (_, gen), _ = mot.run_layers(config.language, compute, params["language"]["layers"], streams, order, past)
    return gen


def _geometry(contexts: Contexts, tokens: int, branches: int) -> tuple[Order, tuple[Past, ...]]:
    """Branches as documents of one sequence: each sees its own context and its own tokens."""
    full, image = contexts.full, contexts.image
    batch, span = full.length.shape[0], tokens + 2
    zero = jnp.zeros(batch, jnp.int32)
    views = [(full.rotary, full.length, zero), (contexts.text_rotary, contexts.text_length, zero)]
    if branches == 3:
        views.append((image.rotary, zero, image.length))
    spread = lambda i: jnp.repeat(jnp.stack([v[i] for v in views[:branches]], 1), span, axis=1)  # noqa: E731
    rotary, in_full, in_image = (spread(i) for i in range(3))
    to_sequence = image_order(tokens, branches)
    to_stream = np.argsort(to_sequence)
    rows = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), (batch, branches * span))  # noqa: E731
    own = np.arange(branches * span) // span * span
    order = Order(rotary[:, to_stream], rows(to_sequence), rows(to_stream), Intervals(rows(own), rows(own + span)))
    past = [Past(full.k, full.v, Intervals(rows(0), in_full))]
    if branches == 3:
        past.append(Past(image.k, image.v, Intervals(rows(0), in_image)))
    return order, tuple(past)

"""Training losses: cross-entropy on texts and switch tokens, rectified flow on images.

    loss = lambda_CE * sum(w CE) / sum(w)  +  sum(MSE) / count

over the targets of the whole global batch: the sums of any split of it (devices, accumulation steps) add up
to the same loss, which is why ``loss_sums`` returns sums and weights and never a mean.

Axis legend: B batch, T text tokens, G VAE tokens, C values of a VAE token, D width, N vocabulary, K kinds of text
targets (``layout.TARGETS``), M timestep bands.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow.rectified import draw_timesteps, interpolate, velocity_target
from pdgen.models import bagel
from pdgen.sequence.layout import TARGETS, Pack

BANDS = 4  # of equal width in [0, 1], by which the flow's losses are told apart


class FlowInputs(NamedTuple):
    """What the VAE tokens of a batch carry: ``t`` [B, G] after the shift (0 = clean), noise [B, G, C]."""

    t: Float[Array, "B G"]
    noise: Float[Array, "B G C"]


class LossSums(NamedTuple):
    """Sums over a batch, float32: weighted cross-entropy and its weight by kind, MSE and its token count by band."""

    ce: Float[Array, " K"]
    ce_weight: Float[Array, " K"]
    mse: Float[Array, " M"]
    mse_count: Float[Array, " M"]


def no_loss() -> LossSums:
    """The sums over nothing."""
    return LossSums(*(jnp.zeros(size, jnp.float32) for size in (len(TARGETS), len(TARGETS), BANDS, BANDS)))


def draw_flow_inputs(config: ModelConfig, pack: Pack, key: Array) -> FlowInputs:
    """Timesteps (one per noised image) and noise, from ``key`` and each pack's own number.

    A pack's draw does not depend on the device, the batch or the accumulation step that it falls into.
    """

    def one_row(row: Array, image: Array) -> FlowInputs:
        t_key, noise_key = jax.random.split(jax.random.fold_in(key, row))
        t = draw_timesteps(t_key, image.shape[0], config.timestep_shift)[jnp.maximum(image, 0)]
        noise = jax.random.normal(noise_key, (image.shape[0], config.latent_dim), jnp.float32)
        return FlowInputs(jnp.where(image >= 0, t, 0), noise)

    return jax.vmap(one_row)(pack.row, pack.vae_image)


def token_losses(
    config: ModelConfig, compute: ComputeConfig, params: dict[str, Any], pack: Pack, flow: FlowInputs
) -> tuple[Float[Array, "B T"], Float[Array, "B G C"]]:
    """Cross-entropy of every text token and squared velocity error of every VAE value, float32.

    Values where the pack has no target are meaningless; their weights in the pack are 0.
    """
    latents = interpolate(pack.vae_latents, flow.noise, flow.t)
    und, gen = bagel.encode_pack(config, compute, params, pack, latents, flow.t)
    text = und[:, : pack.text_ids.shape[1]]
    ce = cross_entropy(compute, params, text, pack.text_targets)
    error = bagel.velocity(params, gen) - velocity_target(pack.vae_latents, flow.noise)
    return ce, error * error


def cross_entropy(
    compute: ComputeConfig, params: dict[str, Any], hidden: Float[Array, "B T D"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """-log softmax(logits)[target], ``compute.loss_chunk`` tokens of a row at a time.

    A chunk's logits are rebuilt in the backward pass, so [B, T, N] never exists.
    """
    batch, tokens, width = hidden.shape
    chunk = min(compute.loss_chunk, tokens)
    count = -(-tokens // chunk)
    pad = count * chunk - tokens
    rows = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(batch, count, chunk, width)
    labels = jnp.pad(targets, ((0, 0), (0, pad))).reshape(batch, count, chunk)

    @jax.checkpoint
    def visit(carry: None, x: tuple[Array, Array]) -> tuple[None, Array]:
        logits = bagel.logits(params, x[0])
        # A comparison, not a gather: the vocabulary may be split over devices.
        chosen = jnp.where(jnp.arange(logits.shape[-1]) == x[1][..., None], logits, 0).sum(-1)
        return carry, jax.nn.logsumexp(logits, axis=-1) - chosen

    _, ce = jax.lax.scan(visit, None, (jnp.moveaxis(rows, 1, 0), jnp.moveaxis(labels, 1, 0)))
    return jnp.moveaxis(ce, 0, 1).reshape(batch, count * chunk)[:, :tokens]


def target_weights(pack: Pack) -> tuple[Array, Array]:
    """Weight of a batch's text targets and number of its flow targets, float32 scalars."""
    return jnp.sum(pack.text_weights), jnp.sum(pack.vae_weights)


def loss_sums(
    config: ModelConfig, compute: ComputeConfig, params: dict[str, Any], pack: Pack, flow: FlowInputs
) -> LossSums:
    """Sums over the batch; see ``LossSums``."""
    ce, squares = token_losses(config, compute, params, pack, flow)
    band = jnp.minimum(jnp.floor(flow.t * BANDS), BANDS - 1).astype(jnp.int32)
    return LossSums(
        _sums(ce * pack.text_weights, pack.text_kinds, len(TARGETS)),
        _sums(pack.text_weights, pack.text_kinds, len(TARGETS)),
        _sums(jnp.mean(squares, axis=-1) * pack.vae_weights, band, BANDS),
        _sums(pack.vae_weights, band, BANDS),
    )


def _sums(values: Float[Array, "B n"], groups: Int[Array, "B n"], count: int) -> Float[Array, " count"]:
    return jnp.sum(jnp.where(groups[..., None] == jnp.arange(count), values[..., None], 0), axis=(0, 1))


def total_loss(sums: LossSums, ce_weight: float) -> Array:
    """The loss. A batch without targets of a kind contributes 0 for it; weights may be the totals alone, [] each."""
    ce, mse = mean(sums.ce.sum(), sums.ce_weight.sum()), mean(sums.mse.sum(), sums.mse_count.sum())
    return ce_weight * ce + mse


def mean(total: Array, weight: Array) -> Array:
    """total / weight, 0 where there is none."""
    return total / jnp.where(weight == 0, 1, weight)

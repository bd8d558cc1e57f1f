"""Training losses: cross-entropy on texts and switch tokens, rectified flow on images.

    loss = lambda_CE * sum(w CE) / sum(w)  +  sum(MSE) / count

over the targets of the whole global batch. The batch is split over devices and accumulation steps, so ``loss_sums``
returns sums and weights, never a mean: those of the parts add up to those of the batch.

Axis legend: B batch, T text tokens, G VAE tokens, C values of a VAE token, D width, N vocabulary, K kinds of text
targets (``layout.TARGETS``), M timestep bands.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow.rectified import draw_timesteps, interpolate, velocity_target
from pdgen.models import bagel
from pdgen.sequence.layout import TARGETS, Pack

BANDS = 4  # timestep bands of equal width in [0, 1], by which the flow loss is reported


class FlowInputs(NamedTuple):
    """Timestep and noise of every VAE token of a batch, float32.

    Attributes:
      t: after the shift, in [0, 1]; 0 is clean and 1 is noise.
      noise: standard normal.
    """

    t: Float[Array, "B G"]
    noise: Float[Array, "B G C"]


class LossSums(NamedTuple):
    """Sums over a batch, float32: weighted cross-entropy and its weight by kind, MSE and token count by band."""

    ce: Float[Array, " K"]
    ce_weight: Float[Array, " K"]
    mse: Float[Array, " M"]
    mse_count: Float[Array, " M"]


def zero_loss_sums() -> LossSums:
    """Return the sums over an empty batch."""
    return LossSums(*(jnp.zeros(size, jnp.float32) for size in (len(TARGETS), len(TARGETS), BANDS, BANDS)))


def draw_flow_inputs(config: ModelConfig, pack: Pack, key: PRNGKeyArray) -> FlowInputs:
    """Draw a timestep for each noised image and noise for each VAE token from ``key`` and the pack's number.

    The draw of a pack is the same on every device, in every batch and in every accumulation step.
    """

    def draw_row(row: Array, image: Array) -> FlowInputs:
        t_key, noise_key = jax.random.split(jax.random.fold_in(key, row))
        t = draw_timesteps(t_key, image.shape[0], config.timestep_shift)[jnp.maximum(image, 0)]
        noise = jax.random.normal(noise_key, (image.shape[0], config.latent_dim), jnp.float32)
        return FlowInputs(jnp.where(image >= 0, t, 0), noise)

    return jax.vmap(draw_row)(pack.row, pack.vae_image)


def token_losses(
    config: ModelConfig, compute: ComputeConfig, params: dict[str, Any], pack: Pack, flow: FlowInputs
) -> tuple[Float[Array, "B T"], Float[Array, "B G C"]]:
    """Compute the cross-entropy of every text token and the velocity error of every VAE value, float32.

    Values at positions without a target are meaningless; their weights in the pack are 0.
    """
    latents = interpolate(pack.vae_latents, flow.noise, flow.t)
    und, gen = bagel.encode_pack(config, compute, params, pack, latents, flow.t)
    text = und[:, : pack.text_ids.shape[1]]
    ce = cross_entropy(compute, params, text, pack.text_targets)
    return ce, bagel.velocity(params, gen) - velocity_target(pack.vae_latents, flow.noise)


def cross_entropy(
    compute: ComputeConfig, params: dict[str, Any], hidden: Float[Array, "B T D"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Compute -log softmax(logits)[target], float32, ``compute.loss_chunk`` tokens of a row at a time.

    The backward pass recomputes the logits of a chunk, so an array [B, T, N] never exists.
    """
    batch, tokens, width = hidden.shape
    chunk = min(compute.loss_chunk, tokens)
    count = -(-tokens // chunk)
    pad = count * chunk - tokens
    rows = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(batch, count, chunk, width)
    labels = jnp.pad(targets, ((0, 0), (0, pad))).reshape(batch, count, chunk)

    @jax.checkpoint
    def chunk_loss(carry: None, x: tuple[Array, Array]) -> tuple[None, Array]:
        chunk_hidden, chunk_labels = x
        logits = bagel.logits(params, chunk_hidden)
        # A comparison instead of a gather, because the vocabulary may be split over devices.
        is_target = jnp.arange(logits.shape[-1]) == chunk_labels[..., None]
        return carry, jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_target, logits, 0).sum(-1)

    _, ce = jax.lax.scan(chunk_loss, None, (jnp.moveaxis(rows, 1, 0), jnp.moveaxis(labels, 1, 0)))
    return jnp.moveaxis(ce, 0, 1).reshape(batch, count * chunk)[:, :tokens]


def target_weights(pack: Pack) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the total weight of a batch's text targets and the number of its flow targets, float32."""
    return jnp.sum(pack.text_weights), jnp.sum(pack.vae_weights)


def loss_sums(
    config: ModelConfig, compute: ComputeConfig, params: dict[str, Any], pack: Pack, flow: FlowInputs
) -> LossSums:
    """Compute the sums of the losses over the batch."""
    ce, errors = token_losses(config, compute, params, pack, flow)
    band = jnp.minimum(jnp.floor(flow.t * BANDS), BANDS - 1).astype(jnp.int32)
    return LossSums(
        _sum_by_group(ce * pack.text_weights, pack.text_kinds, len(TARGETS)),
        _sum_by_group(pack.text_weights, pack.text_kinds, len(TARGETS)),
        _sum_by_group(jnp.mean(errors * errors, axis=-1) * pack.vae_weights, band, BANDS),
        _sum_by_group(pack.vae_weights, band, BANDS),
    )


def _sum_by_group(values: Float[Array, "B n"], groups: Int[Array, "B n"], count: int) -> Float[Array, " {count}"]:
    """Sum the values of each group 0 .. count - 1."""
    return jnp.sum(jnp.where(groups[..., None] == jnp.arange(count), values[..., None], 0), axis=(0, 1))


def total_loss(sums: LossSums, ce_weight: float) -> Float[Array, ""]:
    """Compute the loss; without text or flow targets that part is 0. The weights in ``sums`` may be totals, [] each."""
    ce = weighted_mean(sums.ce.sum(), sums.ce_weight.sum())
    mse = weighted_mean(sums.mse.sum(), sums.mse_count.sum())
    return ce_weight * ce + mse


def weighted_mean(total: Float[Any, ""], weight: Float[Any, ""]) -> Float[Array, ""]:
    """Return total / weight, or 0 if the weight is 0."""
    return total / jnp.where(weight == 0, 1, weight)

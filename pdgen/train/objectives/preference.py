"""Direct preference optimisation of whole trajectories (docs/method.md, "Learning from preferences").

In a batch of pairs the documents 2 p and 2 p + 1 of a pack are the better and the worse trajectory of its pair p. The
loss is the mean over the pairs of the whole global batch of

    -log sigmoid(beta * margin),    margin = (l - l_ref)(better) - (l - l_ref)(worse)
    l = -ce_weight * sum_i w_i CE_i  -  flow_weight * sum_j |v(z_t, t) - (noise - latent)|_j^2

over a document's text targets i and noised VAE tokens j. l_ref is l of the reference, the model from which the run
starts, at the same timesteps and noise. Both sides share these as well: the n-th noised image of the one has the
timestep of the n-th of the other, and the n-th noised VAE token has its noise.

Axis legend: B batch, T text tokens, G VAE tokens, S sequence slots, C values of a VAE token, P pairs of a pack, n
tokens.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pdgen.config import ModelConfig
from pdgen.sequence.layout import Pack
from pdgen.train.objectives.loss import FlowInputs, draw_flow_inputs

SMALLEST_PAIR = 8  # text tokens: on each side two segments, each with two switch tokens


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Settings of learning from pairs of trajectories.

    Attributes:
      beta: weight of the margin, the inverse of the temperature; 0 learns records instead of preferences.
      flow_weight: weight of the squared velocity errors beside the log-likelihood of texts.

    Raises:
      ValueError: a value is out of range.
    """

    beta: float = 0.0
    flow_weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.beta >= 0 and self.flow_weight >= 0):
            raise ValueError(
                f"preference: beta {self.beta} and flow_weight {self.flow_weight}, expected at least 0 each"
            )


class PreferenceSums(NamedTuple):
    """Sums over the pairs of a batch, float32 [].

    Attributes:
      pairs: number of pairs.
      loss: -log sigmoid(beta * margin).
      correct: 1 where the margin is positive, 1/2 where it is 0.
      margin, text_margin, flow_margin: margins, and the parts of texts and images; they add up.
      better, worse: l - l_ref of the sides.
      text_kl, text_targets: estimate of KL(reference, model) of every text target, and the weight of these.
      flow_kl, flow_targets: squared distance of the velocities of model and reference, for every noised VAE token the
        mean over its values; and the number of these tokens.
      better_targets, worse_targets: number of targets, texts and images, of the sides.
    """

    pairs: Float[Array, ""]
    loss: Float[Array, ""]
    correct: Float[Array, ""]
    margin: Float[Array, ""]
    text_margin: Float[Array, ""]
    flow_margin: Float[Array, ""]
    better: Float[Array, ""]
    worse: Float[Array, ""]
    text_kl: Float[Array, ""]
    text_targets: Float[Array, ""]
    flow_kl: Float[Array, ""]
    flow_targets: Float[Array, ""]
    better_targets: Float[Array, ""]
    worse_targets: Float[Array, ""]


class TokenLosses(NamedTuple):
    """Cross-entropy of every text token and velocity error of every VAE value, float32; see ``loss.token_losses``."""

    ce: Float[Array, "B T"]
    errors: Float[Array, "B G C"]


def number_documents(pack: Pack) -> tuple[Int[Array, "B T"], Int[Array, "B G"]]:
    """Return the number in its pack of the document of each text token and each VAE token; -1 for padding."""

    def number_row(k_start: Array, k_end: Array, to_stream: Array) -> Array:
        is_token = k_end > 0
        # Every token of a document sees keys from the document's first slot on.
        opens = is_token & (k_start == jnp.arange(k_start.shape[0]))
        return jnp.where(is_token, jnp.cumsum(opens) - 1, -1)[to_stream]

    numbers = jax.vmap(number_row)(pack.k_start, pack.k_end, pack.to_stream)
    texts, vae = pack.text_ids.shape[1], pack.vae_positions.shape[1]
    return numbers[:, :texts], numbers[:, numbers.shape[1] - vae :]


def count_pairs(pack: Pack) -> Float[Array, ""]:
    """Return the number of pairs in a batch, float32."""
    documents, _ = number_documents(pack)
    return jnp.sum((jnp.max(documents, axis=1) + 1) // 2, dtype=jnp.float32)


def draw_paired_inputs(config: ModelConfig, pack: Pack, key: PRNGKeyArray) -> FlowInputs:
    """Draw timesteps and noise as ``loss.draw_flow_inputs``, with those of a pair's better side in the worse one."""
    _, documents = number_documents(pack)
    images, slots = jax.vmap(_match_draws)(pack.vae_image, documents)
    flow = draw_flow_inputs(config, dataclasses.replace(pack, vae_image=images), key)
    return flow._replace(noise=jax.vmap(lambda noise, own: noise[own])(flow.noise, slots))


def _match_draws(image: Int[Array, " G"], document: Int[Array, " G"]) -> tuple[Int[Array, " G"], Int[Array, " G"]]:
    """Return for each noised VAE token of a pack the image and the slot whose draws it takes.

    Numbers count on from those of the pair's first image and first slot, so no other pair has them.
    """
    noised = image >= 0
    slots = jnp.arange(image.shape[0])
    earlier_tokens = jnp.cumsum(noised) - noised
    latest = jax.lax.cummax(image)
    earlier_images = jnp.concatenate([jnp.zeros(1, latest.dtype), latest[:-1] + 1])

    def at_start(values: Array, group: Array) -> Array:
        """Return the value at the first slot of each slot's group; ``values`` never fall."""
        opens = jnp.concatenate([jnp.ones(1, bool), group[1:] != group[:-1]])
        return jax.lax.cummax(jnp.where(opens, values, 0))

    pair = document // 2
    rank = earlier_tokens - at_start(earlier_tokens, document)
    own_image = image - at_start(earlier_images, document) + at_start(earlier_images, pair)
    own_slot = at_start(slots, pair) + rank
    return jnp.where(noised, own_image, -1), jnp.where(noised, own_slot, slots)


def preference_sums(
    config: PreferenceConfig, ce_weight: float, pack: Pack, model: TokenLosses, reference: TokenLosses
) -> PreferenceSums:
    """Compute the sums over a batch of pairs from the losses of every token, the model's and the reference's."""
    text_documents, vae_documents = number_documents(pack)
    gain = (reference.ce - model.ce) * pack.text_weights
    squares = [jnp.sum(losses.errors * losses.errors, axis=-1) for losses in (reference, model)]
    text = ce_weight * _sum_by_side(gain, text_documents, pack)
    flow = config.flow_weight * _sum_by_side((squares[0] - squares[1]) * pack.vae_weights, vae_documents, pack)
    targets = _sum_by_side((pack.text_weights > 0).astype(jnp.float32), text_documents, pack)
    targets += _sum_by_side(pack.vae_weights, vae_documents, pack)
    sides = text + flow
    margins = {name: side[..., 0] - side[..., 1] for name, side in (("", sides), ("text_", text), ("flow_", flow))}
    is_pair = _find_pairs(text_documents, sides.shape[1])
    loss = jax.nn.softplus(-config.beta * margins[""])
    distance = jnp.mean(jnp.square(model.errors - reference.errors), axis=-1)
    return PreferenceSums(
        pairs=jnp.sum(is_pair, dtype=jnp.float32),
        loss=jnp.sum(jnp.where(is_pair, loss, 0)),
        correct=jnp.sum(jnp.where(is_pair, (jnp.sign(margins[""]) + 1) / 2, 0)),
        **{f"{name}margin": jnp.sum(margin) for name, margin in margins.items()},
        better=jnp.sum(sides[..., 0]),
        worse=jnp.sum(sides[..., 1]),
        text_kl=jnp.sum(_estimate_kl(reference.ce - model.ce) * pack.text_weights),
        text_targets=jnp.sum(pack.text_weights),
        flow_kl=jnp.sum(distance * pack.vae_weights),
        flow_targets=jnp.sum(pack.vae_weights),
        better_targets=jnp.sum(targets[..., 0]),
        worse_targets=jnp.sum(targets[..., 1]),
    )


def _sum_by_side(values: Float[Array, "B n"], documents: Int[Array, "B n"], pack: Pack) -> Float[Array, "B P 2"]:
    """Sum the values of the tokens of each side of each pair: better, worse."""
    pairs = max(pack.text_ids.shape[1] // SMALLEST_PAIR, 1)
    inside = documents[..., None] == jnp.arange(2 * pairs)
    sums = jnp.sum(jnp.where(inside, values[..., None], 0), axis=1)
    return jnp.stack([sums[:, 0::2], sums[:, 1::2]], axis=-1)


def _find_pairs(documents: Int[Array, "B T"], pairs: int) -> Bool[Array, "B P"]:
    return jnp.arange(pairs) < (jnp.max(documents, axis=1, keepdims=True) + 1) // 2


def _estimate_kl(gain: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Estimate KL(reference, model) from one token of the reference: r - 1 - log r, r = p / p_ref = exp(gain).

    Without a bias, as -log r, but never negative (Schulman, "Approximating KL divergence", 2020).
    """
    return jnp.expm1(gain) - gain


def mean_preference_loss(sums: PreferenceSums, pairs: Float[Any, ""]) -> Float[Array, ""]:
    """Return the mean loss of ``pairs`` pairs; 0 if there is none."""
    return sums.loss / jnp.maximum(pairs, 1)

"""Metrics of a step, computed on the devices within it. Each logged step is one line of JSON.

loss, ce, mse               of the step's batch; ce is not scaled by ce_weight
ce_plan .. ce_thought       by kind of text target, ``layout.TARGETS``
mse_0 .. mse_3              by timestep, from clean to noise, in bands of 1 / ``BANDS``
*_targets                   total weight of the targets of each of these
pair_accuracy, margin, text_kl, ...
                            of pairs, in place of the losses above, see ``preference_metrics``
grad_norm, update_norm, param_norm and each with _und, _gen, _other
                            of the trained parameters: both experts of the language model, and the rest
learning_rate               of the step's update, before the factors of single parameters
fill_text, fill_vit, fill_vae
                            share of the batch's slots that hold tokens
step_seconds, tokens_per_second, images_per_second, mfu, data_wait, memory_bytes
                            measured since the previous line, see ``pdgen.train.monitor.meter``
skipped_spikes              number of updates skipped so far, see ``pdgen.train.spikes``

A metric that does not exist is absent: a loss without targets in the batch, or a norm of an expert that is frozen.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from pdgen.config import ModelConfig
from pdgen.models.mot import EXPERTS
from pdgen.sequence.layout import STREAMS, TARGETS, Pack
from pdgen.train.monitor.flops import model_flops
from pdgen.train.objectives.loss import BANDS, LossSums, total_loss, weighted_mean
from pdgen.train.objectives.preference import PreferenceSums, mean_preference_loss

Metrics = dict[str, Array]
_NAMES = {"ce": [f"ce_{kind}" for kind in TARGETS], "mse": [f"mse_{band}" for band in range(BANDS)]}


def loss_metrics(sums: LossSums, ce_weight: float) -> Metrics:
    """Compute the loss, its means, and as ``<mean>_targets`` the weights of these, float32 scalars."""
    metrics = {"loss": total_loss(sums, ce_weight)}
    for name, totals, weights in (("ce", sums.ce, sums.ce_weight), ("mse", sums.mse, sums.mse_count)):
        metrics |= {name: weighted_mean(totals.sum(), weights.sum()), f"{name}_targets": weights.sum()}
        for number, part in enumerate(_NAMES[name]):
            metrics |= {part: weighted_mean(totals[number], weights[number]), f"{part}_targets": weights[number]}
    return metrics


def preference_metrics(sums: PreferenceSums) -> Metrics:
    """Compute the loss and means over the pairs of a batch, float32 scalars.

    ``pair_accuracy`` is the share of pairs whose margin is positive. ``margin`` is the sum of ``text_margin`` and
    ``flow_margin``. ``better_reward`` and ``worse_reward`` are l - l_ref of the sides: if both fall, the model leaves
    what it prefers as well. ``text_kl`` and ``flow_kl`` are means over tokens, see ``PreferenceSums``.
    ``better_length`` and ``worse_length`` are numbers of targets: a preference for length would show here.
    """
    mean = {
        "pair_accuracy": sums.correct,
        "margin": sums.margin,
        "text_margin": sums.text_margin,
        "flow_margin": sums.flow_margin,
        "better_reward": sums.better,
        "worse_reward": sums.worse,
        "better_length": sums.better_targets,
        "worse_length": sums.worse_targets,
    }
    metrics = {name: weighted_mean(total, sums.pairs) for name, total in mean.items()}
    metrics |= {"loss": mean_preference_loss(sums, sums.pairs), "pairs": sums.pairs}
    for name, total, targets in (
        ("text_kl", sums.text_kl, sums.text_targets),
        ("flow_kl", sums.flow_kl, sums.flow_targets),
    ):
        metrics |= {name: weighted_mean(total, targets), f"{name}_targets": targets}
    return metrics


def norm_metrics(name: str, tree: Mapping[str, Any]) -> Metrics:
    """Compute the Euclidean norm of a tree like the model's as ``name``, and those of its parts as ``name_<part>``."""
    squares: dict[str, Array] = {}
    for path, leaf in traverse_util.flatten_dict(tree, sep="/").items():
        part = next((expert for expert in EXPERTS if expert in path.split("/")), "other")
        squares[part] = squares.get(part, 0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    parts = {f"{name}_{part}": jnp.sqrt(total) for part, total in squares.items()}
    return {name: jnp.sqrt(sum(squares.values()))} | parts


def batch_metrics(config: ModelConfig, batch: Pack) -> Metrics:
    """Compute the fill of the streams, ``tokens`` without padding, noised ``images`` and model ``flops``, float32."""
    rows, slots = batch.k_end.shape
    is_token = batch.k_end > 0
    # A document of n tokens is one range of slots from k_start on, and 1 + 3 + .. + (2 n - 1) = n ** 2.
    squares = jnp.sum(jnp.where(is_token, 2.0 * (jnp.arange(slots) - batch.k_start) + 1, 0))
    sizes = (batch.text_ids.shape[1], batch.vit_positions.shape[1], batch.vae_positions.shape[1])
    tokens: dict[str, Any] = {}
    first = 0
    for name, size in zip(STREAMS, sizes):
        inside = (batch.to_sequence >= first) & (batch.to_sequence < first + size)
        tokens[name], first = jnp.sum(is_token & inside, dtype=jnp.float32), first + size
    total = sum(tokens.values())
    fill = {f"fill_{name}": tokens[name] / (rows * size) for name, size in zip(STREAMS, sizes) if size}
    images = jnp.sum(jnp.max(batch.vae_image, axis=1, initial=-1) + 1, dtype=jnp.float32)
    return fill | {"tokens": total, "images": images, "flops": model_flops(config, total, squares)}


def drop_absent(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values without the means that have no targets."""
    return {name: value for name, value in values.items() if values.get(f"{name.removesuffix('_targets')}_targets", 1)}

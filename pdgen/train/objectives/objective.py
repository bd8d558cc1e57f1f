"""What a training step minimises: the losses of records, or those of preferences between trajectories.

Both are sums over the packs of a micro-batch, which add up, and a loss of the whole batch that is linear in them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from pdgen.sequence.layout import Pack
from pdgen.train.monitor.metrics import Metrics, loss_metrics, preference_metrics
from pdgen.train.objectives.loss import (
    draw_flow_inputs,
    loss_sums,
    target_weights,
    token_losses,
    total_loss,
    zero_loss_sums,
)
from pdgen.train.objectives.preference import (
    PreferenceSums,
    TokenLosses,
    count_pairs,
    draw_paired_inputs,
    mean_preference_loss,
    preference_sums,
)
from pdgen.train.state import Params, StepConfig


class Objective(NamedTuple):
    """The functions of an objective; ``Sums`` is ``LossSums`` or ``PreferenceSums``.

    Attributes:
      zeros: () -> Sums of no pack.
      measure: (params, reference, packs, key) -> Sums. ``params`` are as ``attach_params`` returns them.
      weigh: (packs) -> the weights by which the sums of the whole batch are divided.
      loss: (Sums of a micro-batch, weights) -> its part of the batch's loss, float32 [].
      metrics: (Sums of a batch) -> metrics.
    """

    zeros: Callable[[], Any]
    measure: Callable[[Params, Params, Pack, PRNGKeyArray], Any]
    weigh: Callable[[Pack], Any]
    loss: Callable[[Any, Any], Array]
    metrics: Callable[[Any], Metrics]


def make_objective(config: StepConfig) -> Objective:
    """Make the objective of a run: of preferences if ``config.preference.beta`` is not 0."""
    return _make_preference_objective(config) if config.preference.beta else _make_record_objective(config)


def _make_record_objective(config: StepConfig) -> Objective:
    def measure(params: Params, reference: Params, pack: Pack, key: PRNGKeyArray) -> Any:
        del reference
        return loss_sums(config.model, config.compute, params, pack, draw_flow_inputs(config.model, pack, key))

    def loss(sums: Any, weights: tuple[Array, Array]) -> Array:
        ce_weight, mse_count = weights
        return total_loss(sums._replace(ce_weight=ce_weight, mse_count=mse_count), config.ce_weight)

    def metrics(sums: Any) -> Metrics:
        return loss_metrics(sums, config.ce_weight)

    return Objective(zero_loss_sums, measure, target_weights, loss, metrics)


def _make_preference_objective(config: StepConfig) -> Objective:
    def zeros() -> PreferenceSums:
        return PreferenceSums(*(jnp.zeros((), jnp.float32) for _ in PreferenceSums._fields))

    def measure(params: Params, reference: Params, pack: Pack, key: PRNGKeyArray) -> PreferenceSums:
        flow = draw_paired_inputs(config.model, pack, key)
        own, other = (
            TokenLosses(*token_losses(config.model, config.compute, tree, pack, flow))
            for tree in (params, jax.lax.stop_gradient(reference))
        )
        return preference_sums(config.preference, config.ce_weight, pack, own, other)

    return Objective(zeros, measure, count_pairs, mean_preference_loss, preference_metrics)

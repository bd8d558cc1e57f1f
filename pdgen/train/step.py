"""One training step: a pure function of state, batch and key."""

import dataclasses
from typing import Any

import jax
import optax
from jaxtyping import Array

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.interleave.layout import Pack
from pdgen.train.loss import draw_flow_inputs, loss_sums, total_loss
from pdgen.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Everything static in a step. ``ce_weight`` is the paper's lambda_CE."""

    model: ModelConfig
    compute: ComputeConfig
    ce_weight: float = 1.0


def train_step(
    config: StepConfig, optimizer: optax.GradientTransformation, state: TrainState, batch: Pack, key: Array
) -> tuple[TrainState, dict[str, Array]]:
    """Gradient of the loss over the whole global batch, then one optimiser update.

    Args:
      batch: packs with a leading axis, sharded over ``data`` and ``fsdp``.
      key: the run's key; noise is drawn from it and each pack's number, never from the step.

    Returns:
      The next state and float32 scalars: loss, ce, mse, ce_targets, mse_targets, grad_norm, param_norm.
    """
    flow = draw_flow_inputs(config.model, batch, key)

    def loss(params: Any) -> tuple[Array, dict[str, Array]]:
        sums = loss_sums(config.model, config.compute, params, batch, flow)
        value, means = total_loss(sums, config.ce_weight)
        return value, {"loss": value, **means, "ce_targets": sums.ce_weight, "mse_targets": sums.mse_count}

    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(params)}
    return TrainState(state.step + 1, params, opt_state), metrics

"""One training step: a pure function of state, batch and key."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from pdgen.sequence.layout import Pack
from pdgen.sharding import out_spec
from pdgen.train.ema import update_ema
from pdgen.train.loss import LossSums, draw_flow_inputs, loss_sums, no_loss, target_weights, total_loss
from pdgen.train.monitor.metrics import Metrics, batch_metrics, loss_metrics, norms
from pdgen.train.optimizer import learning_rate
from pdgen.train.spikes import judge, unless
from pdgen.train.state import Params, StepConfig, TrainState, make_run_optimizer, model_params


def train_step(config: StepConfig, state: TrainState, batch: Pack, key: Array) -> tuple[TrainState, Metrics]:
    """Gradient of the loss over the whole global batch, then one optimiser update.

    Args:
      batch: packs with a leading axis, sharded over ``data`` and ``fsdp``.
      key: the run's key; noise is drawn from it and each pack's number, never from the step.

    Returns:
      The next state and scalars (``pdgen.train.monitor.metrics``), float32 but for ``skipped_spikes`` and ``finite``.
      ``grad_norm`` is before clipping, ``update_norm`` that of an update even if it is left out, ``param_norm``
      after it. ``finite`` tells whether loss, gradients and parameters are.
    """
    grads, sums = gradients(config, state, batch, key)
    metrics = loss_metrics(sums, config.ce_weight) | norms("grad_norm", grads) | batch_metrics(config.model, batch)
    updates, opt_state = make_run_optimizer(config).update(grads, state.opt_state, state.trained)
    trained = cast(Params, optax.apply_updates(state.trained, updates))
    step, spikes = state.step + 1, state.spikes
    ema = update_ema(config.optimizer, state.ema, trained, step)
    updated = state.step  # the optimiser's own count
    if config.spike_factor:
        updated -= spikes["skipped"]
        spike, spikes = judge(config.spike_factor, spikes, state.step, metrics["loss"], metrics["grad_norm"])
        new, old = (trained, opt_state, ema), (state.trained, state.opt_state, state.ema)
        trained, opt_state, ema = unless(spike, new, old)
        metrics["skipped_spikes"] = spikes["skipped"]
    metrics |= norms("update_norm", cast(Params, updates)) | norms("param_norm", trained)
    metrics["learning_rate"] = jnp.float32(learning_rate(config.optimizer, config.num_steps)(updated))
    metrics["finite"] = jnp.isfinite(sum(metrics[name] for name in ("loss", "grad_norm", "param_norm")))
    return TrainState(step, trained, state.frozen, opt_state, ema, spikes), metrics


def compiled_step(config: StepConfig) -> Callable[[TrainState, Pack, Array], tuple[TrainState, Metrics]]:
    """``train_step`` jitted; it takes the state's memory for the next one's."""
    return jax.jit(functools.partial(train_step, config), donate_argnums=0)


def run_key(seed: int, mesh: Mesh) -> Array:
    """The run's key on every device of ``mesh``, those of other processes included."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=NamedSharding(mesh, PartitionSpec()))()


def gradients(config: StepConfig, state: TrainState, batch: Pack, key: Array) -> tuple[Any, LossSums]:
    """Gradient of the loss with respect to ``state.trained``, and the sums that the loss is made of.

    Every micro-batch's sums are divided by the whole batch's weights, so that its gradients add up to the batch's.

    Raises:
      ValueError: the rows do not divide by ``config.accumulate``.
    """
    ce_weight, mse_count = target_weights(batch)

    def loss(trained: Any, rows: Pack) -> tuple[Array, LossSums]:
        params = model_params(config, trained, state.frozen)
        flow = draw_flow_inputs(config.model, rows, key)
        sums = loss_sums(config.model, config.compute, params, rows, flow)
        whole = sums._replace(ce_weight=ce_weight, mse_count=mse_count)
        return total_loss(whole, config.ce_weight), sums

    def visit(carry: tuple[Any, LossSums], rows: Pack) -> tuple[tuple[Any, LossSums], None]:
        grads, sums = jax.grad(loss, has_aux=True)(state.trained, rows)
        return jax.tree.map(jnp.add, carry, (grads, sums)), None

    if config.accumulate == 1:  # no second copy of the gradients
        return jax.grad(loss, has_aux=True)(state.trained, batch)
    zeros = jax.tree.map(jnp.zeros_like, state.trained), no_loss()
    return jax.lax.scan(visit, zeros, _micro_batches(batch, config.accumulate))[0]


def _micro_batches(batch: Pack, count: int) -> Pack:
    """A new first axis of ``count``. Each device's rows stay where they are: it has some in every micro-batch."""
    rows = batch.row.shape[0]
    if rows % count:
        raise ValueError(f"a batch of {rows} rows does not divide into accumulate = {count} micro-batches")

    def split(leaf: Array) -> Array:
        spec = out_spec("batch", *[None] * leaf.ndim)
        return jnp.moveaxis(jnp.reshape(leaf, (rows // count, count, *leaf.shape[1:]), out_sharding=spec), 1, 0)

    return jax.tree.map(split, batch)

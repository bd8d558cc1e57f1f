"""The training step: a pure function of state, batch and key."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from pdgen.sequence.layout import Pack
from pdgen.sharding import out_spec
from pdgen.train.ema import update_ema
from pdgen.train.monitor.metrics import Metrics, batch_metrics, norm_metrics
from pdgen.train.objectives.objective import make_objective
from pdgen.train.optimizer import make_schedule
from pdgen.train.spikes import detect_spike, select_update
from pdgen.train.state import Params, StepConfig, TrainState, attach_params, make_run_optimizer


def train_step(
    config: StepConfig, state: TrainState, batch: Pack, key: PRNGKeyArray, reference: Params | None = None
) -> tuple[TrainState, Metrics]:
    """Compute the gradient of the loss over the whole global batch and apply one optimizer update.

    Args:
      config: static settings.
      state: state before the step.
      batch: packs with a leading axis, sharded over ``data`` and ``fsdp``.
      key: the run's key. Noise depends on it and on the number of each pack, not on the step.
      reference: the parameters of ``init`` if ``config.needs_reference``.

    Returns:
      The next state and the metrics (``pdgen.train.monitor.metrics``): float32 scalars, except ``skipped_spikes``
      (int32) and ``finite`` (bool: loss, gradients and parameters are finite). ``grad_norm`` is measured before
      clipping, ``update_norm`` also for a skipped update, ``param_norm`` after the update.
    """
    grads, sums = compute_gradients(config, state, batch, key, reference)
    metrics = make_objective(config).metrics(sums)
    metrics |= norm_metrics("grad_norm", grads) | batch_metrics(config.model, batch)
    updates, opt_state = make_run_optimizer(config).update(grads, state.opt_state, state.trained)
    trained = cast(Params, optax.apply_updates(state.trained, updates))
    step, spikes = state.step + 1, state.spikes
    ema = update_ema(config.optimizer, state.ema, trained, step)
    updates_done = state.step  # the optimizer's own count, which excludes skipped updates
    if config.spike_factor:
        updates_done -= spikes["skipped"]
        spike, spikes = detect_spike(config.spike_factor, spikes, state.step, metrics["loss"], metrics["grad_norm"])
        new, old = (trained, opt_state, ema), (state.trained, state.opt_state, state.ema)
        trained, opt_state, ema = select_update(spike, new, old)
        metrics["skipped_spikes"] = spikes["skipped"]
    metrics |= norm_metrics("update_norm", cast(Params, updates)) | norm_metrics("param_norm", trained)
    metrics["learning_rate"] = jnp.float32(make_schedule(config.optimizer, config.num_steps)(updates_done))
    metrics["finite"] = jnp.isfinite(sum(metrics[name] for name in ("loss", "grad_norm", "param_norm")))
    return TrainState(step, trained, state.frozen, opt_state, ema, spikes), metrics


def jit_step(config: StepConfig) -> jax.stages.Wrapped:
    """Jit ``train_step`` as a function of (state, batch, key, reference). It donates the state to the next one."""
    return jax.jit(functools.partial(train_step, config), donate_argnums=0)


def make_run_key(seed: int, mesh: Mesh) -> PRNGKeyArray:
    """Make the run's key, replicated over all devices of ``mesh``, those of other processes included."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=NamedSharding(mesh, PartitionSpec()))()


def compute_gradients(
    config: StepConfig, state: TrainState, batch: Pack, key: PRNGKeyArray, reference: Params | None = None
) -> tuple[Params, Any]:
    """Compute the gradient of the loss with respect to ``state.trained``, and the sums behind the loss.

    The sums of each micro-batch are divided by the weights of the whole batch, so the gradients of micro-batches add up
    to those of the batch.

    Raises:
      ValueError: the number of rows is not a multiple of ``config.accumulate``.
    """
    objective = make_objective(config)
    weights = objective.weigh(batch)

    def loss(trained: Params, rows: Pack) -> tuple[Array, Any]:
        params = attach_params(config, trained, state.frozen)
        sums = objective.measure(params, state.frozen if reference is None else reference, rows, key)
        return objective.loss(sums, weights), sums

    def add_micro_batch(carry: tuple[Params, Any], rows: Pack) -> tuple[tuple[Params, Any], None]:
        grads, sums = jax.grad(loss, has_aux=True)(state.trained, rows)
        return jax.tree.map(jnp.add, carry, (grads, sums)), None

    if config.accumulate == 1:  # a scan would hold a second copy of the gradients
        return jax.grad(loss, has_aux=True)(state.trained, batch)
    zeros = jax.tree.map(jnp.zeros_like, state.trained), objective.zeros()
    return jax.lax.scan(add_micro_batch, zeros, _split_micro_batches(batch, config.accumulate))[0]


def _split_micro_batches(batch: Pack, count: int) -> Pack:
    """Add a leading axis of ``count``. No row changes its device: each device has rows in every micro-batch."""
    rows = batch.row.shape[0]
    if rows % count:
        raise ValueError(f"a batch of {rows} rows does not divide into accumulate = {count} micro-batches")

    def split(leaf: Array) -> Array:
        spec = out_spec("batch", *[None] * leaf.ndim)
        return jnp.moveaxis(jnp.reshape(leaf, (rows // count, count, *leaf.shape[1:]), out_sharding=spec), 1, 0)

    return jax.tree.map(split, batch)

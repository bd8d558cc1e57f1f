"""Skipping of loss spikes: updates whose loss or gradient norm is far above its running average.

The averages are part of the training state, so a resumed run skips the same updates as an uninterrupted one.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

DECAY = 0.98  # of the running averages

SpikeState = dict[str, Array]
Tree = TypeVar("Tree")


def init_spike_state(factor: float) -> SpikeState:
    """Return running averages of loss and gradient norm and the number of skipped updates; {} for factor 0."""
    if not factor:
        return {}
    return {"loss": jnp.zeros(()), "grad_norm": jnp.zeros(()), "skipped": jnp.zeros((), jnp.int32)}


def detect_spike(
    factor: float, state: SpikeState, step: Int[Array, ""], loss: Float[Array, ""], grad_norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], SpikeState]:
    """Detect whether an update is a spike, and update the running averages.

    Args:
      factor: an update is a spike if its loss or gradient norm exceeds ``factor`` running averages.
      state: see ``init_spike_state``.
      step: number of the update. 0 is the first of the run and never a spike.
      loss, grad_norm: of the batch, before clipping.

    Returns:
      Whether the update is a spike, and the next state.
    """
    values = {"loss": loss, "grad_norm": grad_norm}
    averages = {name: jnp.where(step == 0, value, state[name]) for name, value in values.items()}
    above = [value > factor * averages[name] for name, value in values.items()]
    spike = above[0] | above[1]
    # A spike enters the average clipped to factor averages, so a loss that stays high is accepted in time.
    updated = {
        name: DECAY * average + (1 - DECAY) * jnp.minimum(values[name], factor * average)
        for name, average in averages.items()
    }
    return spike, updated | {"skipped": state["skipped"] + spike}


def select_update(spike: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """Return the tree ``old`` if the update is a spike, else ``new``."""
    return jax.tree.map(lambda after, before: jnp.where(spike, before, after), new, old)

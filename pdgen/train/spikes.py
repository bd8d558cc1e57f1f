"""Loss spikes: an update whose loss or gradient is far above its running average is left out.

The averages are part of the state, so that a run that is resumed decides as one that was never interrupted.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

DECAY = 0.98  # of the averages

Spikes = dict[str, Array]


def start_spikes(factor: float) -> Spikes:
    """Running averages of the loss and the gradient's norm and the number of updates left out; {} for factor 0."""
    if not factor:
        return {}
    return {"loss": jnp.zeros(()), "grad_norm": jnp.zeros(()), "skipped": jnp.zeros((), jnp.int32)}


def judge(
    factor: float, spikes: Spikes, step: Array, loss: Float[Array, ""], grad_norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], Spikes]:
    """Whether the update of ``step`` (0 is the run's first, never left out) is a spike, and the averages after it.

    A spike counts as no more than ``factor`` averages, so that a loss that stays high is accepted in time.
    """
    values = {"loss": loss, "grad_norm": grad_norm}
    averages = {name: jnp.where(step == 0, value, spikes[name]) for name, value in values.items()}
    above = [value > factor * averages[name] for name, value in values.items()]
    spike = above[0] | above[1]
    after = {
        name: DECAY * average + (1 - DECAY) * jnp.minimum(values[name], factor * average)
        for name, average in averages.items()
    }
    return spike, after | {"skipped": spikes["skipped"] + spike}


def unless(spike: Bool[Array, ""], new: Any, old: Any) -> Any:
    """The tree ``new``, or ``old`` where the update is a spike."""
    return jax.tree.map(lambda after, before: jnp.where(spike, before, after), new, old)

"""TaylorSeer: most steps extrapolate the last layer's output instead of computing it.

At a full step the finite differences of the last layer's output are renewed:

    D_0 = output,   D_{i+1} = (D_i - previous D_i) / steps since the last full step

and a skipped step, d steps after it, uses sum_i D_i d^i / i!. Which steps are full, and how many
differences exist, follows from the schedule alone, so it is worked out before compiling.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

ORDER = 6
WARM_UP = 5  # steps 0..4 are full
EVERY = 3


class Plan(NamedTuple):
    """What each step does.

    Attributes:
      full: whether the step computes the last layer's output.
      distance: steps since the last full one; at a full step to the previous full one (1 at the first).
      known: differences D_1.. that a full step can renew, in the main branch and in the guidance branches.
    """

    full: Bool[np.ndarray, " steps"]
    distance: Int[np.ndarray, " steps"]
    known: Int[np.ndarray, "steps 2"]


def plan(num_steps: int, joins: int) -> Plan:
    """Plans the full steps of a schedule.

    Args:
      num_steps: Euler steps.
      joins: first step of the guidance branches; it is full, for they have nothing to extrapolate from.
    """
    full, distance = np.zeros(num_steps, bool), np.ones(num_steps, np.int32)
    known = np.zeros((num_steps, 2), np.int32)
    last, orders = -1, [-1, -1]
    for step in range(num_steps):
        distance[step] = max(1, step - last) if last >= 0 else 1
        full[step] = step < WARM_UP or step - last >= EVERY or step == joins
        if full[step]:
            for branch, start in enumerate((0, joins)):
                if step >= start:
                    grows = step >= WARM_UP - 1 and orders[branch] >= 0
                    orders[branch] = min(ORDER, orders[branch] + 1) if grows else 0
                    known[step, branch] = orders[branch]
            last = step
    return Plan(full, distance, known)


def renew(
    differences: Float[Array, "O B M D"], output: Float[Array, "B M D"], distance: Array, known: Array
) -> Float[Array, "O B M D"]:
    """Differences after a full step; ``known`` of D_1..D_6 exist, per token [M] or scalar, the rest are 0."""
    rows = [output.astype(differences.dtype)]
    known = jnp.broadcast_to(known, output.shape[1:2])[:, None]
    for i in range(ORDER):
        rows.append(jnp.where(i < known, (rows[i] - differences[i]) / distance, 0))
    return jnp.stack(rows)


def extrapolate(differences: Float[Array, "O B M D"], distance: Array) -> Float[Array, "B M D"]:
    """sum_i D_i d^i / i!"""
    factors = [distance.astype(differences.dtype) ** i / math.factorial(i) for i in range(ORDER + 1)]
    return sum(factor * row for factor, row in zip(factors, differences))

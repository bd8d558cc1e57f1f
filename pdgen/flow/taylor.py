"""TaylorSeer (Liu et al., 2025): most steps extrapolate the last layer's output instead of computing it.

A full step computes the output and updates its finite differences:

    D_0 = output,   D_{i+1} = (D_i - previous D_i) / steps since the last full step

A skipped step, d steps after the last full one, uses sum_i D_i d^i / i!. Which steps are full, and how many
differences exist, follows from the schedule alone, so ``plan`` computes it before compilation.

Axis legend: O orders 0 .. ORDER, B batch, M VAE tokens of all branches, D width.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

ORDER = 6
WARM_UP = 5  # steps 0..4 are full
EVERY = 3  # after the warm-up one step in three is full


class Plan(NamedTuple):
    """Which steps are full, and the distances and orders that the extrapolation needs.

    Attributes:
      full: whether the step computes the last layer's output.
      distance: steps since the last full step before this one, at least 1.
      known: number of differences D_1, D_2, ... that exist after a full step, in the main branch and in the
        guidance branches; 0 at skipped steps.
    """

    full: Bool[np.ndarray, " steps"]
    distance: Int[np.ndarray, " steps"]
    known: Int[np.ndarray, "steps 2"]


def plan(num_steps: int, guidance_start: int) -> Plan:
    """Choose the full steps of a schedule.

    Args:
      num_steps: number of Euler steps.
      guidance_start: first step with guidance branches. It is full: they have nothing to extrapolate from yet.
    """
    full, distance = np.zeros(num_steps, bool), np.ones(num_steps, np.int32)
    known = np.zeros((num_steps, 2), np.int32)
    last, orders = -1, [-1, -1]
    for step in range(num_steps):
        distance[step] = max(1, step - last)
        full[step] = step < WARM_UP or step - last >= EVERY or step == guidance_start
        if full[step]:
            for branch, start in enumerate((0, guidance_start)):
                if step >= start:
                    # A difference needs two full steps. The first WARM_UP - 1 steps change too fast to be used.
                    has_previous = step >= WARM_UP - 1 and orders[branch] >= 0
                    orders[branch] = min(ORDER, orders[branch] + 1) if has_previous else 0
                    known[step, branch] = orders[branch]
            last = step
    return Plan(full, distance, known)


def update_differences(
    differences: Float[Array, "O B M D"],
    output: Float[Array, "B M D"],
    distance: Int[Array, ""],
    known: Int[Array, " M"],
) -> Float[Array, "O B M D"]:
    """Return the differences after a full step, ``distance`` steps after the last one, which had ``differences``.

    ``output`` is the last layer's output, and ``known`` how many of D_1, D_2, ... exist, per token; the others are 0.
    """
    updated = [output.astype(differences.dtype)]
    for i in range(ORDER):
        updated.append(jnp.where(i < known[:, None], (updated[i] - differences[i]) / distance, 0))
    return jnp.stack(updated)


def extrapolate(differences: Float[Array, "O B M D"], distance: Int[Array, ""]) -> Float[Array, "B M D"]:
    """Return sum_i D_i d^i / i!, the output ``distance`` steps d after the last full step."""
    factors = [distance.astype(differences.dtype) ** i / math.factorial(i) for i in range(ORDER + 1)]
    total = factors[0] * differences[0]
    for factor, difference in zip(factors[1:], differences[1:]):
        total += factor * difference
    return total

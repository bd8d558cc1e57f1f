"""Exponential moving average of the trained parameters: ema <- decay * ema + (1 - decay) * params.

The average is computed in float32. If it is stored in bfloat16, it is rounded stochastically. At a decay near 1 an
update is far below half the gap between two bfloat16 numbers, so rounding to the nearest would lose it every time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Int, PRNGKeyArray

from pdgen.sharding import has_mesh
from pdgen.train.optimizer import OptimizerConfig

SEED = 0  # of the stochastic rounding


def init_ema(config: OptimizerConfig, params: Any) -> Any:
    """Return the average before the first step: a copy of ``params`` in ``ema_dtype``, or {} if ``ema_decay`` is 0."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, config.ema_dtype, copy=True), params) if config.ema_decay else {}


def update_ema(config: OptimizerConfig, ema: Any, params: Any, step: Int[Array, ""]) -> Any:
    """Return the average after ``step``, which produced ``params``; {} stays {}."""
    if not config.ema_decay:
        return ema
    key = jax.random.fold_in(jax.random.key(SEED), step)
    leaves, tree = jax.tree.flatten(ema)
    updated = []
    for number, (average, leaf) in enumerate(zip(leaves, jax.tree.leaves(params), strict=True)):
        value = config.ema_decay * average.astype(jnp.float32) + (1 - config.ema_decay) * leaf.astype(jnp.float32)
        stochastic = average.dtype == jnp.bfloat16
        updated.append(round_stochastically(value, jax.random.fold_in(key, number)) if stochastic else value)
    return tree.unflatten(updated)


def round_stochastically(x: Float32[Array, "*n"], key: PRNGKeyArray) -> BFloat16[Array, "*n"]:
    """Round float32 to one of the two neighbouring bfloat16 numbers, so that the expected value is ``x``."""
    sharding = jax.typeof(x).sharding if has_mesh() else None
    # bfloat16 is the upper half of float32: adding 16 random bits carries into it with the right probability.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    carry = jax.random.bits(key, x.shape, jnp.uint16, out_sharding=sharding).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + carry) & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)

"""Moving average of the trained parameters: ema <- decay * ema + (1 - decay) * params.

Computed in float32. An average kept in bfloat16 is rounded up or down at random, in proportion to the distance:
a step of 1e-4 of a difference is far below half of what separates two bfloat16 numbers, and would be lost every
time if it were rounded to the nearest.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pdgen.sharding import has_mesh
from pdgen.train.optimizer import OptimizerConfig

SEED = 0  # of the rounding


def start_ema(config: OptimizerConfig, params: Any) -> Any:
    """The average before the first step: a copy of ``params``, or {} if none is kept."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, config.ema_dtype, copy=True), params) if config.ema_decay else {}


def update_ema(config: OptimizerConfig, ema: Any, params: Any, step: Int[Array, ""]) -> Any:
    """The average after ``step`` has made ``params``; {} stays {}."""
    if not config.ema_decay:
        return ema
    key = jax.random.fold_in(jax.random.key(SEED), step)
    leaves, tree = jax.tree.flatten(ema)
    updated = []
    for number, (average, leaf) in enumerate(zip(leaves, jax.tree.leaves(params), strict=True)):
        value = config.ema_decay * average.astype(jnp.float32) + (1 - config.ema_decay) * leaf.astype(jnp.float32)
        random = average.dtype == jnp.bfloat16
        updated.append(round_at_random(value, jax.random.fold_in(key, number)) if random else value)
    return tree.unflatten(updated)


def round_at_random(x: Array, key: Array) -> Array:
    """float32 to one of the two neighbouring bfloat16 numbers, so that the expected value is ``x``."""
    sharding = jax.typeof(x).sharding if has_mesh() else None
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    carry = jax.random.bits(key, x.shape, jnp.uint16, out_sharding=sharding).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + carry) & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)

"""A scan over layers whose parameters may be in host memory: each layer is copied to the device one layer ahead.

While layer n computes, layer n + 1 is on its way. So the device holds two layers of what is in host memory. The copy
depends on nothing that is computed, which lets XLA start it first and wait for it last. Memory spaces are part of the
types of arrays, so a program is compiled for the place where its arguments are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pdgen.sharding import in_host_memory, to_device_memory


def scan_layers(run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, layers: Any) -> tuple[Any, Any]:
    """Run all layers, as ``jax.lax.scan(run, carry, layers)`` does and with the same numbers.

    Args:
      run: maps the carry and one layer, on the device, to the new carry and an output.
      carry: the first layer's.
      layers: arrays with a leading axis of layers, on the device or in host memory.

    Returns:
      The last carry, and the stacked outputs.
    """
    leaves, tree = jax.tree.flatten(layers)
    remote = [in_host_memory(leaf) for leaf in leaves]
    if not any(remote):
        return jax.lax.scan(run, carry, layers)
    last = leaves[0].shape[0] - 1

    def fetch(number: Any) -> list[jax.Array]:
        slices = [jax.lax.dynamic_index_in_dim(x, number, keepdims=False) for x, far in zip(leaves, remote) if far]
        return [to_device_memory(x) for x in slices]

    def step(state: tuple, near: list[jax.Array]) -> tuple[tuple, Any]:
        # XLA copies a slice by DMA, and not with a kernel, where its place is a counter of the loop.
        number, carry, far = state
        coming = fetch(jnp.minimum(number + 1, last))
        sources = {True: iter(far), False: iter(near)}
        carry, output = run(carry, jax.tree.unflatten(tree, [next(sources[is_far]) for is_far in remote]))
        return (number + 1, carry, coming), output

    near = [leaf for leaf, far in zip(leaves, remote) if not far]
    (_, carry, _), outputs = jax.lax.scan(step, (0, carry, fetch(0)), near, length=last + 1)
    return carry, outputs

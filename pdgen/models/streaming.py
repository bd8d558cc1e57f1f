"""A scan over layers of which a part is in host memory: each layer's part is copied to the device one layer ahead.

While layer n computes, layer n + 1 is on its way. So the device holds two layers of what is in host memory. The copy
depends on nothing that is computed, which lets XLA start it first and wait for it last.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pdgen.sharding import to_device_memory


@jax.tree_util.register_pytree_with_keys_class
class HostLayers(dict):
    """Parameters of stacked layers that are in host memory: a dict whose type says so wherever it is traced.

    The types of arrays do not: those that are read into host memory have the type of others.
    """

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """Return the children with their keys, in the order of a plain dict, and the names."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: Iterable[Any]) -> "HostLayers":
        """Return the dict with these children."""
        return cls(zip(names, children, strict=True))


def scan_layers(
    run: Callable[[Any, tuple[Any, Mapping[str, Any]]], tuple[Any, Any]],
    carry: Any,
    layers: Any,
    params: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Run all layers, as ``jax.lax.scan(run, carry, (layers, params))`` does and with the same numbers.

    Args:
      run: maps the carry and one layer of both arguments, on the device, to the new carry and an output.
      carry: the first layer's.
      layers: arrays on the device with a leading axis of layers.
      params: such arrays too, by name; those that are ``HostLayers`` are in host memory.

    Returns:
      The last carry, and the stacked outputs.
    """
    far = {name: dict(tree) for name, tree in params.items() if isinstance(tree, HostLayers)}
    if not far:
        return jax.lax.scan(run, carry, (layers, params))
    near = {name: tree for name, tree in params.items() if name not in far}
    count = jax.tree.leaves(far)[0].shape[0]

    def fetch(number: Any) -> Any:
        return jax.tree.map(lambda x: to_device_memory(jax.lax.dynamic_index_in_dim(x, number, keepdims=False)), far)

    def step(state: tuple, slices: tuple) -> tuple[tuple, Any]:
        # XLA copies a slice by DMA, and not with a kernel, where its place is a counter of the loop.
        number, carry, fetched = state
        coming = fetch(jnp.minimum(number + 1, count - 1))
        carry, output = run(carry, (slices[0], slices[1] | fetched))
        return (number + 1, carry, coming), output

    (_, carry, _), outputs = jax.lax.scan(step, (0, carry, fetch(0)), (layers, near), length=count)
    return carry, outputs

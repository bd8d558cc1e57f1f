"""Attention with the whole matrix of masks and logits in memory: the reference for the backends."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pdgen.models.attention.intervals import MASKED, Part, allowed_matrix


def attend_dense(q: Float[Array, "B Q H h"], parts: Sequence[Part]) -> Float[Array, "B Q H h"]:
    """Attend as ``attend`` does, by the definition; memory is quadratic."""
    batch, queries, heads, size = q.shape
    k = jnp.concatenate([p.k for p in parts], axis=1)
    v = jnp.concatenate([p.v for p in parts], axis=1)
    mask = jnp.concatenate([allowed_matrix(p.intervals, p.k.shape[1]) for p in parts], axis=-1)
    grouped = q.reshape(batch, queries, k.shape[2], heads // k.shape[2], size)
    logits = jnp.einsum("bqkgh,bskh->bkgqs", grouped, k, preferred_element_type=jnp.float32) * size**-0.5
    mask = mask[:, None, None]
    # The softmax of a row without an allowed key is uniform over all keys, so the weights are masked again.
    weights = jax.nn.softmax(jnp.where(mask, logits, MASKED), axis=-1)
    weights = jnp.where(mask, weights, 0).astype(v.dtype)
    return jnp.einsum("bkgqs,bskh->bqkgh", weights, v).reshape(q.shape)

"""What a training run carries from step to step, and how it is laid out on a mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from pdgen.config import ModelConfig
from pdgen.models import bagel
from pdgen.sharding import parameter_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """``step`` counts finished steps; ``params`` is the model's tree (the autoencoder is not trained here)."""

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: Any


def init_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, key: Array, dtype: Any = jnp.float32
) -> TrainState:
    """A fresh state; jit it with ``out_shardings=state_shardings(...)`` so that no device holds it whole."""
    params = bagel.init_params(config, key, dtype)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, dtype: Any = jnp.float32
) -> TrainState:
    """Shapes and dtypes of ``init_state`` without computing it."""
    params = nn.unbox(bagel.abstract_params(config, dtype))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, params, jax.eval_shape(optimizer.init, params))


def state_shardings(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """NamedShardings of every leaf: optimiser moments lie as their parameters do, scalars everywhere."""
    boxed = bagel.abstract_params(config)
    params = parameter_shardings(boxed, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, nn.unbox(boxed)),
        params,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, params, opt_state)

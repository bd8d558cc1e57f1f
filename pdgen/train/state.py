"""The state of a training run: parameters, optimizer, averages, and their sharding over a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PRNGKeyArray

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.models import bagel, parameters
from pdgen.models.lora import attach, merge
from pdgen.sharding import parameter_shardings
from pdgen.train.ema import init_ema
from pdgen.train.lora import LoraConfig, declare_adapters
from pdgen.train.objectives.preference import PreferenceConfig
from pdgen.train.optimizer import OptimizerConfig, make_optimizer, match_factors
from pdgen.train.spikes import init_spike_state

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Static settings of a training step.

    Attributes:
      model: sizes of the model.
      compute: dtypes, remat, tiles. ``param_dtype`` also applies to frozen parameters; adapters are float32.
      optimizer, num_steps, ce_weight, accumulate, lora, spike_factor, preference: see
        ``pdgen.train.run_config.RunConfig``.
    """

    model: ModelConfig
    compute: ComputeConfig
    optimizer: OptimizerConfig
    num_steps: int
    ce_weight: float = 1.0
    accumulate: int = 1
    lora: LoraConfig = LoraConfig()
    spike_factor: float = 0.0
    preference: PreferenceConfig = PreferenceConfig()

    @property
    def needs_reference(self) -> bool:
        """Whether a step needs the parameters of ``init`` besides the state; with adapters the state holds them."""
        return bool(self.preference.beta) and not self.lora.rank


@jax.tree_util.register_dataclass
@no_type_check  # a tree's leaves may be anything, such as specs or None
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The parameters, trained and frozen, and the state of their training. The autoencoder is not trained.

    Leaves are arrays, their shapes (``abstract_state``) or their shardings (``state_shardings``).

    Attributes:
      step: number of finished steps, int32 [].
      trained: the parameters that the optimizer updates; with LoRA the adapters.
      frozen: the other parameters; with LoRA all of the model's.
      opt_state: optimizer state of ``trained``.
      ema: moving average of ``trained``, {} if the run keeps none.
      spikes: running averages of loss and gradient norm, {} if the run skips no spikes; see ``pdgen.train.spikes``.
    """

    step: Any
    trained: Params
    frozen: Params
    opt_state: Any
    ema: Params
    spikes: dict[str, Any]


def combine_params(config: StepConfig, trained: Params, frozen: Params) -> Params:
    """Return the model's whole tree with adapters merged. ``trained`` may also be the average (``TrainState.ema``)."""
    return _combine(merge, config, trained, frozen)


def attach_params(config: StepConfig, trained: Params, frozen: Params) -> Params:
    """Return the tree that a step computes with: as ``combine_params``, but the layers' adapters are not yet merged."""
    return _combine(attach, config, trained, frozen)


def _combine(add: Callable[..., Params], config: StepConfig, trained: Params, frozen: Params) -> Params:
    if config.lora.rank:
        return add(frozen, trained, config.lora.scale)
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(trained))


def find_trained(config: StepConfig) -> dict[str, float]:
    """Return the learning rate factor of every trained parameter by its "/"-joined name.

    Raises:
      ValueError: the factors do not match every parameter once, nothing is trained, or an adapter is frozen.
    """
    factors = match_factors(config.optimizer.factors, traverse_util.flatten_dict(_declare_trainable(config), sep="/"))
    if config.lora.rank and not all(factors.values()):
        raise ValueError("optimizer.factors freeze an adapter; narrow lora.kernels instead")
    trained = {n: factor for n, factor in factors.items() if factor and n.split("/")[0] not in bagel.FIXED_TABLES}
    if not trained:
        raise ValueError("optimizer.factors freeze every parameter; give a factor above 0 to what is to be trained")
    return trained


def make_run_optimizer(config: StepConfig) -> optax.GradientTransformation:
    """Make the optimizer of ``TrainState.trained``. Raises ValueError, see ``find_trained`` and ``make_schedule``."""
    leaves = traverse_util.flatten_dict(_declare_trainable(config), sep="/")
    return make_optimizer(config.optimizer, config.num_steps, find_trained(config), leaves)


def make_state(
    config: StepConfig, params: Params, key: PRNGKeyArray, adapters: Mapping[str, Any] | None = None
) -> TrainState:
    """Make the state before the first step. Jit it with ``out_shardings=state_shardings(...)``.

    Args:
      config: static settings.
      params: the model's whole tree.
      key: for the initial values of adapters.
      adapters: initial values of some adapters by "/"-joined name, see ``pdgen.train.lora.read_initial_adapters``.
    """
    if config.lora.rank:
        fresh = nn.unbox(parameters.Parameters(_declare_adapters(config)).init(key)["params"])
        given = traverse_util.flatten_dict(fresh, sep="/") | dict(adapters or {})
        trained, frozen = traverse_util.unflatten_dict(given, sep="/"), params
    else:
        trained, frozen = _split_params(config, params)
    opt_state, ema = make_run_optimizer(config).init(trained), init_ema(config.optimizer, trained)
    return TrainState(jnp.zeros((), jnp.int32), trained, frozen, opt_state, ema, init_spike_state(config.spike_factor))


def init_state(config: StepConfig, key: PRNGKeyArray) -> TrainState:
    """Initialise a state from scratch. Jit it with ``out_shardings``, so that no device holds the whole state."""
    params_key, adapters_key = jax.random.split(key)
    return make_state(config, bagel.init_params(config.model, params_key, config.compute.param_dtype), adapters_key)


def abstract_state(config: StepConfig) -> TrainState:
    """Return the shapes and dtypes of ``init_state`` without computing it."""
    return jax.eval_shape(functools.partial(init_state, config), jax.random.key(0))


def state_shardings(config: StepConfig, mesh: Mesh | AbstractMesh) -> TrainState:
    """Return the sharding of every leaf: moments and averages like their parameters, scalars replicated."""
    replicated = NamedSharding(mesh, PartitionSpec())
    params = parameter_shardings(bagel.abstract_params(config.model), mesh)
    if config.lora.rank:
        adapters = parameters.abstract(_declare_adapters(config), jnp.float32)
        trained, frozen = parameter_shardings(adapters, mesh), params
    else:
        trained, frozen = _split_params(config, params)
    shardings = traverse_util.flatten_dict(trained, sep="/")

    def find_sharding(path: tuple, _: Any) -> NamedSharding:
        # The dict keys of a moment's path are those of its parameter, whatever the optimizer wraps around them.
        keys = (str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        return shardings.get("/".join(keys).removeprefix("muon/").removeprefix("adam/"), replicated)

    state = abstract_state(config)
    opt_state = jax.tree_util.tree_map_with_path(find_sharding, state.opt_state)
    ema = trained if config.optimizer.ema_decay else {}
    spikes = jax.tree.map(lambda _: replicated, state.spikes)
    return TrainState(replicated, trained, frozen, opt_state, ema, spikes)


def add_shardings(tree: Any, shardings: Any) -> Any:
    """Return a tree of ``jax.ShapeDtypeStruct`` with the shapes and dtypes of ``tree`` and these shardings."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


def _declare_trainable(config: StepConfig) -> parameters.Spec:
    """Declare what may be trained: the adapters, or the model's own parameters."""
    return _declare_adapters(config) if config.lora.rank else bagel.spec(config.model)


def _declare_adapters(config: StepConfig) -> parameters.Spec:
    return declare_adapters(config.lora, bagel.spec(config.model))


def _split_params(config: StepConfig, params: Params) -> tuple[Params, Params]:
    """Split a tree like the model's into the trained part and the rest."""
    factors, flat = find_trained(config), traverse_util.flatten_dict(params, sep="/")
    trained = {n: leaf for n, leaf in flat.items() if n in factors}
    frozen = {n: leaf for n, leaf in flat.items() if n not in factors}
    return traverse_util.unflatten_dict(trained, sep="/"), traverse_util.unflatten_dict(frozen, sep="/")

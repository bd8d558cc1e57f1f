"""What a training run carries from step to step, and how it is laid out on a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.models import bagel, parameters
from pdgen.models.lora import merge
from pdgen.sharding import parameter_shardings
from pdgen.train.ema import start_ema
from pdgen.train.lora import LoraConfig, adapter_spec
from pdgen.train.optimizer import OptimizerConfig, make_optimizer, match_factors
from pdgen.train.spikes import start_spikes

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Everything static in a step.

    Attributes:
      model: sizes.
      compute: dtypes, remat, tiles. ``param_dtype`` is that of the parameters, frozen ones too; adapters are float32.
      optimizer: see there.
      num_steps: of the whole run, for the schedule.
      ce_weight: the paper's lambda_CE.
      accumulate: micro-batches that a step's rows are computed in, one after the other.
      lora: adapters, if any.
      spike_factor: an update whose loss or gradient exceeds this many running averages is left out; 0: none is.
    """

    model: ModelConfig
    compute: ComputeConfig
    optimizer: OptimizerConfig
    num_steps: int
    ce_weight: float = 1.0
    accumulate: int = 1
    lora: LoraConfig = LoraConfig()
    spike_factor: float = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The model's tree (the autoencoder is not trained here) in two parts, and what goes with the first.

    The leaves are arrays, or what describes them: shapes (``abstract_state``) or shardings (``state_shardings``).

    Attributes:
      step: number of finished steps, int32 [].
      trained: what the optimiser changes: the model's parameters but the frozen ones; with LoRA the adapters.
      frozen: the other parameters; with LoRA all of the model's.
      opt_state: of ``trained``.
      ema: moving average of ``trained``, {} if none is kept.
      spikes: running averages of loss and gradient, {} if no update is ever left out.
    """

    step: Any
    trained: Params
    frozen: Params
    opt_state: Any
    ema: Params
    spikes: dict[str, Any]


def model_params(config: StepConfig, trained: Params, frozen: Params) -> Params:
    """The model's whole tree, adapters merged; ``trained`` may be the average (``TrainState.ema``) as well."""
    if config.lora.rank:
        return merge(frozen, trained, config.lora.scale)
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(trained))


def trained_factors(config: StepConfig) -> dict[str, float]:
    """Factor of the learning rate of everything that is trained, by name.

    Raises:
      ValueError: the factors do not match everything once, nothing is trained, or an adapter is frozen.
    """
    factors = match_factors(config.optimizer.factors, traverse_util.flatten_dict(_declared(config), sep="/"))
    if config.lora.rank and not all(factors.values()):
        raise ValueError("optimizer.factors freeze an adapter; narrow lora.kernels instead")
    trained = {n: factor for n, factor in factors.items() if factor and n.split("/")[0] not in bagel.FIXED_TABLES}
    if not trained:
        raise ValueError("optimizer.factors freeze every parameter; give a factor above 0 to what is to be trained")
    return trained


def make_run_optimizer(config: StepConfig) -> optax.GradientTransformation:
    """The optimiser of ``TrainState.trained``."""
    spec = traverse_util.flatten_dict(_declared(config), sep="/")
    return make_optimizer(config.optimizer, config.num_steps, trained_factors(config), spec)


def start_state(config: StepConfig, params: Params, key: Array) -> TrainState:
    """The state before the first step: ``params`` is the model's whole tree, ``key`` fills the adapters.

    Jit it with ``out_shardings=state_shardings(...)``.
    """
    if config.lora.rank:
        declared = parameters.Parameters(_adapters(config)).init(key)["params"]
        trained, frozen = nn.unbox(declared), params
    else:
        trained, frozen = _divide(config, params)
    opt_state, ema = make_run_optimizer(config).init(trained), start_ema(config.optimizer, trained)
    return TrainState(jnp.zeros((), jnp.int32), trained, frozen, opt_state, ema, start_spikes(config.spike_factor))


def init_state(config: StepConfig, key: Array) -> TrainState:
    """A fresh state; jit it with ``out_shardings=state_shardings(...)`` so that no device holds it whole."""
    params_key, adapters_key = jax.random.split(key)
    return start_state(config, bagel.init_params(config.model, params_key, config.compute.param_dtype), adapters_key)


def abstract_state(config: StepConfig) -> TrainState:
    """Shapes and dtypes of ``init_state`` without computing it."""
    return jax.eval_shape(functools.partial(init_state, config), jax.random.key(0))


def state_shardings(config: StepConfig, mesh: Mesh | AbstractMesh) -> TrainState:
    """NamedShardings of every leaf: moments and averages lie as their parameters do, scalars everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = parameter_shardings(bagel.abstract_params(config.model), mesh)
    if config.lora.rank:
        trained, frozen = parameter_shardings(_abstract_adapters(config), mesh), params
    else:
        trained, frozen = _divide(config, params)
    names = traverse_util.flatten_dict(trained, sep="/")

    def place(path: tuple, _: Any) -> NamedSharding:
        """Moments hang on the keys of their parameter, whatever the optimiser wraps around them."""
        keys = (str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        return names.get("/".join(keys).removeprefix("muon/").removeprefix("adam/"), everywhere)

    opt_state = jax.tree_util.tree_map_with_path(place, abstract_state(config).opt_state)
    ema = trained if config.optimizer.ema_decay else {}
    spikes = jax.tree.map(lambda _: everywhere, abstract_state(config).spikes)
    return TrainState(everywhere, trained, frozen, opt_state, ema, spikes)


def _declared(config: StepConfig) -> parameters.Spec:
    """The adapters, or the model's own parameters."""
    return _adapters(config) if config.lora.rank else bagel.spec(config.model)


def _adapters(config: StepConfig) -> parameters.Spec:
    return adapter_spec(config.lora, bagel.spec(config.model))


def _abstract_adapters(config: StepConfig) -> Any:
    return jax.eval_shape(parameters.Parameters(_adapters(config)).init, jax.random.key(0))["params"]


def _divide(config: StepConfig, params: Params) -> tuple[Params, Params]:
    """A tree like the model's: the part that is trained, and the rest."""
    factors, flat = trained_factors(config), traverse_util.flatten_dict(params, sep="/")
    trained = {n: leaf for n, leaf in flat.items() if n in factors}
    frozen = {n: leaf for n, leaf in flat.items() if n not in factors}
    return traverse_util.unflatten_dict(trained, sep="/"), traverse_util.unflatten_dict(frozen, sep="/")

"""Adam or Muon with gradient clipping, a learning rate schedule, and learning rate factors by parameter name."""

import dataclasses
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from pdgen.messages import name_some
from pdgen.models.parameters import Leaf
from pdgen.sharding import has_mesh

Dtype = Literal["float32", "bfloat16"]

# Largest relative rounding error of bfloat16: half the gap above a power of two.
BFLOAT16_ROUNDING = 2.0**-8
# Root mean square of Muon's updates. It is close to that of Adam's, so one learning rate fits both (arXiv 2502.16982).
MUON_RMS = 0.2
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al., "Muon" (2024)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, learning rate, and the moving average of the parameters.

    Attributes:
      learning_rate: peak of the schedule, reached after the warm-up.
      name: "adam"; or "muon", which orthogonalises the updates of the layers' matrices and uses Adam for the rest.
      factors: pairs (regular expression, factor of the learning rate). Each parameter name, such as
        "language/layers/gen/mlp/up/kernel", must fully match exactly one of them. Factor 0 freezes a parameter: it has
        no gradient, moments or average. The layers of a stack are one array. With LoRA the names are those of the
        adapters. The fixed position tables must match as well and are never trained.
      warmup_steps: steps of linear growth from 0.
      schedule: "cosine", which falls to a tenth of the peak at step ``decay_steps``, or "constant".
      decay_steps: step at which "cosine" ends; later steps have its last learning rate. 0: the run's last step.
      b1, b2, eps: Adam's decay rates and the constant in its denominator. There is no weight decay. Muon uses b2 as
        its momentum.
      clip_norm: largest global norm of the gradient of the trained parameters.
      mu_dtype, nu_dtype: dtypes of Adam's first and second moments.
      ema_decay: decay of the moving average, which starts at the initial parameters; 0 keeps no average.
      ema_dtype: dtype of the average; see ``pdgen.train.ema``.

    Raises:
      ValueError: a value is out of range, or a pattern is not a regular expression.
    """

    learning_rate: float = 2e-5
    name: Literal["adam", "muon"] = "adam"
    factors: tuple[tuple[str, float], ...] = ((".*", 1.0),)
    warmup_steps: int = 0
    schedule: str = "cosine"
    decay_steps: int = 0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-15
    clip_norm: float = 1.0
    mu_dtype: Dtype = "float32"
    nu_dtype: Dtype = "float32"
    ema_decay: float = 0.0
    ema_dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "warmup_steps", "decay_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        for name in ("eps", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name in ("b1", "b2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0 and below 1")
        for decay, dtype in (("b1", "mu_dtype"), ("b2", "nu_dtype")):
            if getattr(self, dtype) != "float32" and self.name == "muon":
                raise ValueError(f"{dtype} is {getattr(self, dtype)}, but Muon keeps float32; leave it out")
            if getattr(self, dtype) == "bfloat16" and 1 - getattr(self, decay) < BFLOAT16_ROUNDING:
                raise ValueError(
                    f"{dtype} bfloat16 rounds away what {decay} {getattr(self, decay)} changes; use float32"
                )
        for pattern, factor in self.factors:
            if factor < 0:
                raise ValueError(f"factors: {pattern!r} has {factor}, expected at least 0")
            try:
                re.compile(pattern)
            except re.error as fault:
                raise ValueError(f"factors: {pattern!r} is no regular expression ({fault})") from None


def match_factors(rules: Iterable[tuple[str, float]], names: Iterable[str]) -> dict[str, float]:
    """Return the factor of each name by the rules (regular expression, factor).

    Raises:
      ValueError: a name matches no rule or several, or a rule matches no name; the message counts them.
    """
    names, rules = list(names), list(rules)
    matches = {name: [rule for rule in rules if re.fullmatch(rule[0], name)] for name in names}
    unmatched = [name for name, found in matches.items() if not found]
    ambiguous = [
        f"{name} (by {' and '.join(repr(pattern) for pattern, _ in found)})"
        for name, found in matches.items()
        if len(found) > 1
    ]
    unused = [repr(rule[0]) for rule in rules if not any(rule in found for found in matches.values())]
    faults = {"matched by no rule": unmatched, "matched more than once": ambiguous, "rules without a match": unused}
    if any(faults.values()):
        listed = "; ".join(f"{fault} ({len(found)}): {name_some(found)}" for fault, found in faults.items() if found)
        raise ValueError(f"optimizer.factors must match every parameter exactly once, from end to end; {listed}")
    return {name: found[0][1] for name, found in matches.items()}


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Make the learning rate schedule over ``num_steps``. Raises ValueError for an unknown name or a long warm-up."""
    if config.schedule not in ("cosine", "constant"):
        raise ValueError(f"optimizer.schedule={config.schedule!r} is unknown; choose cosine or constant")
    end = config.decay_steps or num_steps
    if config.warmup_steps >= end:
        name = "optimizer.decay_steps" if config.decay_steps else "num_steps"
        raise ValueError(f"optimizer.warmup_steps={config.warmup_steps} must be below {name}={end}")
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.learning_rate, end - config.warmup_steps, alpha=0.1)
    else:
        main = optax.constant_schedule(config.learning_rate)
    return optax.join_schedules([warmup, main], [config.warmup_steps]) if config.warmup_steps else main


def make_optimizer(
    config: OptimizerConfig, num_steps: int, factors: Mapping[str, float], leaves: Mapping[str, Leaf]
) -> optax.GradientTransformation:
    """Chain clipping by global norm, Adam or Muon, and the learning rate times the factor of each parameter.

    Args:
      config: the settings.
      num_steps: steps of the whole run.
      factors: factor of every trained parameter by its "/"-joined name.
      leaves: declarations of at least these parameters. Only Muon reads them, to find the stacked matrices.

    Raises:
      ValueError: see ``make_schedule``.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _scale_by_adam(config) if config.name == "adam" else _scale_by_muon(config, factors, leaves),
        optax.stateless(lambda updates, _: _scale_by_factors(updates, factors)),
        optax.scale_by_learning_rate(make_schedule(config, num_steps)),
    )


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype)

    def init(params: Any) -> optax.ScaleByAdamState:
        state = adam.init(params)  # optax has no nu_dtype, but its updates keep the dtype of nu
        assert isinstance(state, optax.ScaleByAdamState)
        return state._replace(nu=jax.tree.map(lambda leaf: leaf.astype(config.nu_dtype), state.nu))

    return optax.GradientTransformation(init, adam.update)


def _scale_by_muon(
    config: OptimizerConfig, names: Iterable[str], leaves: Mapping[str, Leaf]
) -> optax.GradientTransformation:
    """Muon for the matrices of stacked layers; Adam for vectors, embeddings, head and patch projections."""
    trained = {name: leaves[name] for name in names}
    matrices = {name for name, leaf in trained.items() if leaf.stacked and leaf.inputs}

    def orthogonalise(updates: Any) -> Any:
        flat = traverse_util.flatten_dict(updates, sep="/")
        flat |= {name: _orthogonalise(flat[name], trained[name].inputs) for name in matrices}
        return traverse_util.unflatten_dict(flat, sep="/")

    momentum = optax.trace(config.b2, nesterov=True)
    parts: dict[Hashable, optax.GradientTransformation] = {
        "muon": optax.chain(momentum, optax.stateless(lambda updates, _: orthogonalise(updates))),
        "adam": _scale_by_adam(config),
    }
    labels = {name: "muon" if name in matrices else "adam" for name in trained}
    return optax.partition(parts, traverse_util.unflatten_dict(labels, sep="/"))


def _orthogonalise(x: Float[Array, "L ..."], inputs: int) -> Float[Array, "L ..."]:
    """Approximate U V^T of each layer's matrix by five Newton-Schulz steps, scaled to a root mean square ``MUON_RMS``.

    Args:
      x: updates of L layers.
      inputs: number of trailing input axes; a matrix is outputs by inputs.
    """
    # optax.contrib.muon does the same but does not run on an explicit mesh.
    mesh, outputs = has_mesh(), math.prod(x.shape[1 : x.ndim - inputs])
    spec = jax.typeof(x).sharding.spec if mesh else None
    if mesh:
        # A device holds whole layers if fsdp divides their number, else all layers.
        split = "fsdp" if x.shape[0] % jax.sharding.get_abstract_mesh().shape["fsdp"] == 0 else None
        x = jax.sharding.reshard(x, PartitionSpec(split))
    m = x.reshape(x.shape[0], outputs, -1)
    wide = outputs <= m.shape[2]
    m = m if wide else jnp.swapaxes(m, 1, 2)
    m /= jnp.linalg.norm(m, axis=(1, 2), keepdims=True) + 1e-8
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        square = m @ jnp.swapaxes(m, 1, 2)
        m = a * m + (b * square + c * square @ square) @ m
    scale = MUON_RMS * max(m.shape[1:]) ** 0.5
    m = (scale * (m if wide else jnp.swapaxes(m, 1, 2))).reshape(x.shape)
    return jax.sharding.reshard(m, spec) if mesh else m


def _scale_by_factors(updates: Any, factors: Mapping[str, float]) -> Any:
    flat = traverse_util.flatten_dict(updates, sep="/")
    return traverse_util.unflatten_dict({name: jnp.asarray(factors[name] * u) for name, u in flat.items()}, sep="/")

"""AdamW or Muon, with clipping and a schedule as the base model's trainer has them; rates and freezing by name."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from pdgen.models.parameters import Leaf
from pdgen.sharding import has_mesh

Dtype = Literal["float32", "bfloat16"]

# Half the step between bfloat16 numbers just above a power of two, relative to them.
BFLOAT16_ROUNDING = 2.0**-8
# Root mean square of Muon's updates, about that of Adam's, so that one learning rate suits both (arXiv 2502.16982).
MUON_RMS = 0.2
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al., "Muon" (2024)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Learning rate, Adam, and the moving average of the parameters.

    Attributes:
      learning_rate: peak, reached after ``warmup_steps`` of linear growth from 0.
      factors: pairs (regular expression, factor of the learning rate). Each name, such as
        "language/layers/gen/mlp/up/kernel", must match exactly one of them from end to end. Factor 0 freezes: no
        gradient, no moments, no average. The layers of a stack are one array. With LoRA the names are those of the
        adapters. The fixed position tables are matched like the others and never trained.
      name: "adam"; or "muon", which orthogonalises the updates of the layers' matrices and leaves the rest to Adam.
      schedule: "cosine" (falls to a tenth of the peak at the last step) or "constant".
      b1, b2, eps: Adam's decay rates and denominator; no weight decay.
      clip_norm: largest global norm of the gradient, taken over what is trained.
      mu_dtype, nu_dtype: in which Adam's first and second moments are kept.
      ema_decay: of the parameters' moving average, which starts as the first parameters; 0 keeps none.
      ema_dtype: in which the average is kept; see ``pdgen.train.ema``.

    Raises:
      ValueError: a value out of range, or no regular expression.
    """

    learning_rate: float = 2e-5
    name: Literal["adam", "muon"] = "adam"
    factors: tuple[tuple[str, float], ...] = ((".*", 1.0),)
    warmup_steps: int = 0
    schedule: str = "cosine"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-15
    clip_norm: float = 1.0
    mu_dtype: Dtype = "float32"
    nu_dtype: Dtype = "float32"
    ema_decay: float = 0.0
    ema_dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "warmup_steps"):
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
    """The factor of each name.

    Raises:
      ValueError: names that no rule or several rules match, and rules that match no name; all are listed.
    """
    names, rules = list(names), list(rules)
    matches = {name: [rule for rule in rules if re.fullmatch(rule[0], name)] for name in names}
    unmatched = [name for name, found in matches.items() if not found]
    doubled = [
        f"{name} (by {' and '.join(repr(pattern) for pattern, _ in found)})"
        for name, found in matches.items()
        if len(found) > 1
    ]
    idle = [repr(rule[0]) for rule in rules if not any(rule in found for found in matches.values())]
    faults = {"matched by no rule": unmatched, "matched more than once": doubled, "rules without a match": idle}
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {', '.join(found)}" for fault, found in faults.items() if found)
        raise ValueError(f"optimizer.factors must match every parameter exactly once, from end to end; {listed}")
    return {name: found[0][1] for name, found in matches.items()}


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The schedule over ``num_steps``. Raises ValueError for an unknown name or a warm-up that does not fit."""
    if config.schedule not in ("cosine", "constant"):
        raise ValueError(f"optimizer.schedule={config.schedule!r} is unknown; choose cosine or constant")
    if config.warmup_steps >= num_steps:
        raise ValueError(f"optimizer.warmup_steps={config.warmup_steps} must be below num_steps={num_steps}")
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    rest = num_steps - config.warmup_steps
    after = {
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest, alpha=0.1),
        "constant": optax.constant_schedule(config.learning_rate),
    }[config.schedule]
    return optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after


def make_optimizer(
    config: OptimizerConfig,
    num_steps: int,
    factors: Mapping[str, float],
    leaves: Mapping[str, Leaf] | None = None,
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW without decay, each parameter at its own factor of the learning rate.

    Args:
      config: the settings.
      num_steps: of the whole run, for the schedule.
      factors: of every parameter of the nested dict that is trained, by its "/"-joined name.
      leaves: how each of them is declared, for Muon, which takes the stacked matrices.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _scale_by_adam(config) if config.name == "adam" else _scale_by_muon(config, factors, leaves),
        optax.stateless(lambda updates, _: _scaled(updates, factors)),
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
    )


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype)

    def init(params: Any) -> optax.ScaleByAdamState:
        state = adam.init(params)  # an update keeps nu in the dtype that it finds
        assert isinstance(state, optax.ScaleByAdamState)
        return state._replace(nu=jax.tree.map(lambda leaf: leaf.astype(config.nu_dtype), state.nu))

    return optax.GradientTransformation(init, adam.update)


def _scale_by_muon(
    config: OptimizerConfig, names: Iterable[str], leaves: Mapping[str, Leaf]
) -> optax.GradientTransformation:
    """Muon on every layer's own matrices, outputs by inputs; Adam on vectors, embeddings, head and patch maps."""
    trained = {name: leaves[name] for name in names}
    matrices = {name for name, leaf in trained.items() if leaf.stacked and leaf.inputs}

    def orthogonalise(updates: Any) -> Any:
        flat = traverse_util.flatten_dict(updates, sep="/")
        flat |= {name: _orthogonalised(flat[name], trained[name].inputs) for name in matrices}
        return traverse_util.unflatten_dict(flat, sep="/")

    momentum = optax.trace(config.b2, nesterov=True)
    parts = {
        "muon": optax.chain(momentum, optax.stateless(lambda updates, _: orthogonalise(updates))),
        "adam": _scale_by_adam(config),
    }
    labels = {name: "muon" if name in matrices else "adam" for name in trained}
    return optax.partition(parts, traverse_util.unflatten_dict(labels, sep="/"))


def _orthogonalised(x: Float[Array, "L ..."], inputs: int) -> Float[Array, "L ..."]:
    """Nearly U V^T of every layer's matrix, outputs by inputs, of root mean square ``MUON_RMS``.

    Five quintic Newton-Schulz steps as optax's Muon takes, which an explicit mesh does not: here each device has whole
    layers where their number allows, else all of them.
    """
    mesh, outputs = has_mesh(), math.prod(x.shape[1 : x.ndim - inputs])
    own = jax.typeof(x).sharding.spec if mesh else None
    if mesh:
        split = "fsdp" if x.shape[0] % jax.sharding.get_abstract_mesh().shape["fsdp"] == 0 else None
        x = jax.sharding.reshard(x, PartitionSpec(split))
    m = x.reshape(x.shape[0], outputs, -1)
    wide = outputs <= m.shape[2]
    m = m if wide else jnp.swapaxes(m, 1, 2)
    m /= jnp.linalg.norm(m, axis=(1, 2), keepdims=True) + 1e-8
    for _ in range(5):
        square = m @ jnp.swapaxes(m, 1, 2)
        m = NEWTON_SCHULZ[0] * m + (NEWTON_SCHULZ[1] * square + NEWTON_SCHULZ[2] * square @ square) @ m
    scale = MUON_RMS * max(m.shape[1:]) ** 0.5
    m = (scale * (m if wide else jnp.swapaxes(m, 1, 2))).reshape(x.shape)
    return jax.sharding.reshard(m, own) if mesh else m


def _scaled(updates: dict[str, Any], factors: Mapping[str, float]) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(updates, sep="/")
    return traverse_util.unflatten_dict({name: jnp.asarray(factors[name] * u) for name, u in flat.items()}, sep="/")

"""Low-rank adapters (LoRA, arXiv 2106.09685): a linear kernel W becomes W + scale * B A; only A and B are trained.

A training step lays the adapters beside the kernels of the language model's layers, which are merged one layer at a
time (``pdgen.models.lora.attach``). A checkpoint is read with all of them merged (``pdgen.models.lora.merge``).

Axis legend: L layers (where kernels are stacked), o.. output axes, i.. input axes, r rank.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from pdgen.checkpoints.adapters.peft import Factors, read_adapter
from pdgen.checkpoints.mapping import places
from pdgen.config import ModelConfig
from pdgen.messages import name_some
from pdgen.models import bagel, parameters


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Settings of the adapters.

    Attributes:
      rank: rank r of every adapter; 0 trains the parameters themselves.
      alpha: the product B A is scaled by alpha / rank.
      kernels: regular expression that must fully match the names of the kernels to adapt, such as
        "language/layers/gen/mlp/up/kernel".
      init: folder of a PEFT adapter with which the run starts; "" starts with new adapters, which change nothing.

    Raises:
      ValueError: a value is out of range, ``init`` is given without a rank, or ``kernels`` is not a regular expression.
    """

    rank: int = 0
    alpha: float = 16.0
    kernels: str = "language/layers/.*"
    init: str = ""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"lora: rank {self.rank} and alpha {self.alpha}, expected at least 0 and more than 0")
        if self.init and not self.rank:
            raise ValueError(f"lora.init is {self.init}, but lora.rank is 0; set it to the adapter's rank")
        try:
            re.compile(self.kernels)
        except re.error as fault:
            raise ValueError(f"lora.kernels {self.kernels!r} is no regular expression ({fault})") from None

    @property
    def scale(self) -> float:
        """Scale of B A; the rank must not be 0."""
        return self.alpha / self.rank


def declare_adapters(config: LoraConfig, model: parameters.Spec) -> parameters.Spec:
    """Declare the adapters of ``model``'s kernels: ``{.. "kernel": {"a": [L, r, i..], "b": [L, o.., r]}}``.

    A is initialised uniformly in +-1 / sqrt(inputs), like a linear layer in PyTorch, and B with zeros, so training
    starts at W.

    Raises:
      ValueError: no linear kernel matches.
    """
    linear = {name: leaf for name, leaf in traverse_util.flatten_dict(model, sep="/").items() if leaf.inputs}
    adapted = {name: leaf for name, leaf in linear.items() if re.fullmatch(config.kernels, name)}
    if not adapted:
        raise ValueError(f"lora.kernels {config.kernels!r} matches no linear kernel; there are: {name_some(linear)}")
    return traverse_util.unflatten_dict(
        {name: _declare_adapter(config.rank, leaf) for name, leaf in adapted.items()}, sep="/"
    )


def read_initial_adapters(config: LoraConfig, model: ModelConfig) -> dict[str, np.ndarray]:
    """Read the PEFT adapter with which a run starts, ``config.init``.

    Returns:
      A [L, r, i..] and B [L, o.., r] of each kernel that the folder adapts, by "/"-joined name with "/a" or "/b",
      float32. B is scaled so that the product is PEFT's with the run's own ``scale``.

    Raises:
      CheckpointError: see ``pdgen.checkpoints.adapters.peft.read_adapter``.
      ValueError: the rank is another one, a kernel is not among ``kernels``, or not all of its layers are adapted.
    """
    declared = traverse_util.flatten_dict(declare_adapters(config, bagel.spec(model)), sep="/")
    found = read_adapter(config.init, model)
    kernels: dict[str, list[Factors]] = {}
    for place in places(model, ("model",)).values():  # in the order of the layers
        if place.name in found:
            kernels.setdefault(place.path.removeprefix("model/"), []).append(found[place.name])
    adapters = {}
    for name, layers in kernels.items():
        if f"{name}/a" not in declared:
            raise ValueError(
                f"lora.init {config.init} adapts {name}, which lora.kernels {config.kernels!r} does not match; widen it"
            )
        a, b = declared[f"{name}/a"], declared[f"{name}/b"]
        ranks = sorted({factors.a.shape[0] for factors in layers})
        if ranks != [config.rank]:
            raise ValueError(
                f"lora.init {config.init} has rank {' and '.join(map(str, ranks))} at {name}, but lora.rank is "
                f"{config.rank}; they must agree"
            )
        if sum(factors.a.size for factors in layers) != math.prod(a.shape):
            raise ValueError(
                f"lora.init {config.init} adapts {len(layers)} of {a.shape[0]} layers of {name}, but training adapts "
                "all of them; merge it into init (launch/convert.py --base) and train new adapters"
            )
        adapters[f"{name}/a"] = np.concatenate([factors.a.ravel() for factors in layers]).reshape(a.shape)
        scaled = [factors.b.ravel() * (factors.scale / config.scale) for factors in layers]
        adapters[f"{name}/b"] = np.concatenate(scaled).astype(np.float32).reshape(b.shape)
    return adapters


def _declare_adapter(rank: int, kernel: parameters.Leaf) -> dict[str, parameters.Leaf]:
    first = int(kernel.stacked)  # the rank axis of A follows the axis of layers

    def split_axes(axes: tuple, r: Any) -> tuple[tuple, tuple]:
        """Return the axes of A and B from those of the kernel: either sizes or names."""
        return axes[:first] + (r,) + axes[-kernel.inputs :], axes[: -kernel.inputs] + (r,)

    (a_shape, b_shape), (a_names, b_names) = split_axes(kernel.shape, rank), split_axes(kernel.names, None)
    # Variance 1 / (3 * inputs) is that of the uniform distribution in +-1 / sqrt(inputs).
    uniform = nn.initializers.variance_scaling(
        1 / 3,
        "fan_in",
        "uniform",
        in_axis=tuple(range(first + 1, len(a_shape))),
        out_axis=first,
        batch_axis=tuple(range(first)),
    )
    return {
        "a": parameters.Leaf(a_shape, a_names, uniform),
        "b": parameters.Leaf(b_shape, b_names, nn.initializers.zeros),
    }

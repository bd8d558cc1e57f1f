"""Low-rank adapters (LoRA, arXiv 2106.09685): a linear kernel W becomes W + scale * B A; only A and B are trained.

``pdgen.models.lora.merge`` adds the product to the stacked kernels before the model uses them, in training and when a
checkpoint is read. So the code of the model does not depend on adapters.

Axis legend: L layers (where kernels are stacked), o.. output axes, i.. input axes, r rank.
"""

import dataclasses
import re
from typing import Any

from flax import linen as nn
from flax import traverse_util

from pdgen.messages import name_some
from pdgen.models import parameters


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Settings of the adapters.

    Attributes:
      rank: rank r of every adapter; 0 trains the parameters themselves.
      alpha: the product B A is scaled by alpha / rank.
      kernels: regular expression that must fully match the names of the kernels to adapt, such as
        "language/layers/gen/mlp/up/kernel".

    Raises:
      ValueError: a value is out of range, or ``kernels`` is not a regular expression.
    """

    rank: int = 0
    alpha: float = 16.0
    kernels: str = "language/layers/.*"

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"lora: rank {self.rank} and alpha {self.alpha}, expected at least 0 and more than 0")
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

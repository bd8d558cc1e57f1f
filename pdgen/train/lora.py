"""Low-rank adapters (LoRA, arXiv 2106.09685): a linear kernel W is trained as W + scale * B A, W itself frozen.

``pdgen.models.lora.merge`` takes the sum on the stacked kernels before the model sees them, for training and reading
alike, so the model's code knows nothing of adapters.

Axis legend: L layers (where kernels are stacked), o.. output axes, i.. input axes, r rank.
"""

import dataclasses
import re
from typing import Any

from flax import linen as nn
from flax import traverse_util

from pdgen.models import parameters


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and how.

    Attributes:
      rank: r of every adapter; 0 trains the parameters themselves.
      alpha: the product is scaled by alpha / rank.
      kernels: regular expression that the names of the adapted kernels match from end to end, among the linear
        kernels such as "language/layers/gen/mlp/up/kernel".

    Raises:
      ValueError: a value out of range, or no regular expression.
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
        """Factor of B A; the rank must not be 0."""
        return self.alpha / self.rank


def adapter_spec(config: LoraConfig, model: parameters.Spec) -> parameters.Spec:
    """Declares the adapters of ``model``'s kernels: ``{.. "kernel": {"a": [L, r, i..], "b": [L, o.., r]}}``.

    A is uniform in +-1 / sqrt(inputs), as torch fills a linear layer, B zero: training starts at W.

    Raises:
      ValueError: no linear kernel matches.
    """
    linear = {name: leaf for name, leaf in traverse_util.flatten_dict(model, sep="/").items() if leaf.inputs}
    chosen = {name: leaf for name, leaf in linear.items() if re.fullmatch(config.kernels, name)}
    if not chosen:
        raise ValueError(f"lora.kernels {config.kernels!r} matches no linear kernel; there are: {', '.join(linear)}")
    return traverse_util.unflatten_dict({name: _adapter(config.rank, leaf) for name, leaf in chosen.items()}, sep="/")


def _adapter(rank: int, kernel: parameters.Leaf) -> dict[str, parameters.Leaf]:
    first = int(kernel.stacked)

    def joined(axes: tuple, r: Any) -> tuple[tuple, tuple]:
        """Shapes, or names, of A and B."""
        return axes[:first] + (r,) + axes[-kernel.inputs :], axes[: -kernel.inputs] + (r,)

    (a_shape, b_shape), (a_names, b_names) = joined(kernel.shape, rank), joined(kernel.names, None)
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

"""Model FLOPs of a training step, counted as BAGEL's own trainer counts them for MFU.

    6 * (L * one expert's layer + 2 * N * D) * tokens  +  12 * h * H * L * sum(sample_length ** 2)

Each token passes one expert: 2 FLOPs per parameter in the forward pass and 4 in the backward pass. Attention is counted
as if every token attended to its whole sample. Recomputation, ViT, connector, autoencoder and padding are not counted.
So the numbers are comparable with those published for BAGEL (github.com/ByteDance-Seed/Bagel, train/).

Axis legend: L layers, N vocabulary, D width, F mlp width, H query heads, K key/value heads, h head size.
"""

from typing import TypeVar

from jaxtyping import Array

from pdgen.config import LanguageConfig, ModelConfig

Number = TypeVar("Number", float, Array)

# Dense bf16 peaks in FLOP/s by a substring of jax's ``device_kind``, from the vendors' data sheets (NVIDIA's SXM
# figures without sparsity; cloud.google.com/tpu/docs/system-architecture). The first match counts.
_PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "TPU7x": 2307e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Return the peak dense bf16 FLOP/s of one device by jax's ``device_kind``; None for an unknown device."""
    return next((peak for name, peak in _PEAKS.items() if name in device_kind), None)


def expert_parameters(config: LanguageConfig) -> int:
    """Count the parameters of the linear maps in one expert's layers, which each token is multiplied with."""
    D, F, heads = config.hidden_size, config.intermediate_size, 2 * (config.num_heads + config.num_kv_heads)
    return config.num_layers * (D * heads * config.head_dim + 3 * D * F)


def model_flops(config: ModelConfig, tokens: Number, squares: Number) -> Number:
    """Compute the model FLOPs of one step, forward and backward.

    Args:
      config: sizes of the model.
      tokens: number of tokens in the step without padding: text, switch, ViT and VAE tokens, every copy of an image.
      squares: sum of the squared token counts of the documents.

    Returns:
      FLOPs; divide by seconds * devices * ``peak_flops`` for the MFU.
    """
    language = config.language
    parameters = expert_parameters(language) + 2 * language.vocab_size * language.hidden_size
    attention = 12 * language.head_dim * language.num_heads * language.num_layers
    return 6.0 * parameters * tokens + float(attention) * squares

"""Floating point operations of a training step, by the count that BAGEL's own trainer states MFU with.

    6 * (L * one expert's layer + 2 * N * D) * tokens  +  12 * h * H * L * sum(sample_length ** 2)

A token passes one expert, forward once and backward twice at 2 operations a parameter; attention is counted as
if every token saw its whole sample. Recomputation, ViT, connector and autoencoder are not counted, nor is padding:
so that numbers can be set beside those published for BAGEL (github.com/ByteDance-Seed/Bagel, train/).

Axis legend: L layers, N vocabulary, D width, F mlp width, H query heads, K key/value heads, h head size.
"""

from typing import TypeVar

from jaxtyping import Array

from pdgen.config import LanguageConfig, ModelConfig

Number = TypeVar("Number", float, Array)

# Dense bf16 peaks in FLOP/s by a name in jax's ``device_kind``, from the makers' data sheets (NVIDIA's SXM figures
# without sparsity; cloud.google.com/tpu/docs/system-architecture). The first name that is found counts.
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
    """Dense bf16 FLOP/s of one device by jax's ``device_kind``; None for a device that is not known."""
    return next((peak for name, peak in _PEAKS.items() if name in device_kind), None)


def expert_parameters(config: LanguageConfig) -> int:
    """Parameters of the linear maps of one expert's layers: what one token is multiplied with."""
    D, F, heads = config.hidden_size, config.intermediate_size, 2 * (config.num_heads + config.num_kv_heads)
    return config.num_layers * (D * heads * config.head_dim + 3 * D * F)


def model_flops(config: ModelConfig, tokens: Number, squares: Number) -> Number:
    """Operations of one step (forward and backward), for MFU.

    Args:
      config: sizes.
      tokens: of all documents in the step: text, switch, ViT and VAE tokens, every copy of an image, no padding.
      squares: sum of the squared token counts of these documents.

    Returns:
      FLOPs; divide by seconds * devices * ``peak_flops`` for the MFU.
    """
    language = config.language
    parameters = expert_parameters(language) + 2 * language.vocab_size * language.hidden_size
    attention = 12 * language.head_dim * language.num_heads * language.num_layers
    return 6.0 * parameters * tokens + float(attention) * squares

"""The FLUX autoencoder: images to latents and back.

The networks are those of Esser et al., "Taming Transformers" (2021), in FLUX's configuration:

    residual block: x + conv(swish(norm(conv(swish(norm(x))))))       3 x 3 convolutions, group norms
    middle:         block, x + proj(softmax(q k^T / sqrt(C)) v), block
    encoder:        conv, (blocks, halve the side)..., middle, conv -> mean, log-variance
    decoder:        conv, middle, (blocks, double the side)..., conv -> image
    latent:         scale (z - shift),  z ~ N(mean, exp(log-variance))

Activations are channels-last. Convolution kernels keep PyTorch's order (out, in, row, column), so every parameter
has the shape of its tensor in the checkpoint. The parameter tree follows the checkpoint's names, one level per dot,
with a number joined to the name before it: ``encoder.down.0.block.1.conv1.weight`` is
``encoder/down_0/block_1/conv1/kernel``, and the weight of a norm is its ``scale``. The parameters are replicated on
every device, so they have no logical axes.

Axis legend: B images, H W pixels or input positions, h w latent or output positions, z latent channels, C channels,
I O input and output channels, N = h w positions of the middle attention, n positions of a chunk.
"""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from pdgen.config import AutoencoderConfig
from pdgen.models.parameters import Leaf, Parameters, Spec, norm

Params = Mapping[str, Any]
Values = TypeVar("Values", Array, np.ndarray)
Activations = Float[Array, "B H W C"]

GROUP_NORM_EPS = 1e-6
# The middle attention of a 1024-pixel image has 16,384 positions, hence 1 GiB of float32 logits per image. Beyond
# MAX_DENSE_POSITIONS it computes QUERY_CHUNK queries at a time.
MAX_DENSE_POSITIONS = 4096
QUERY_CHUNK = 1024

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), whose variance is 1 / (3 fan_in).
_conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=1, out_axis=0)


def _conv_spec(inputs: int, outputs: int, size: int = 3) -> Spec:
    return {
        "kernel": Leaf((outputs, inputs, size, size), (None,) * 4, _conv_init),
        "bias": Leaf((outputs,), (None,), nn.initializers.zeros),
    }


def _block_spec(inputs: int, outputs: int) -> Spec:
    spec = {
        "norm1": norm(inputs, bias=True),
        "conv1": _conv_spec(inputs, outputs),
        "norm2": norm(outputs, bias=True),
        "conv2": _conv_spec(outputs, outputs),
    }
    if inputs != outputs:
        spec["nin_shortcut"] = _conv_spec(inputs, outputs, 1)
    return spec


def _middle_spec(channels: int) -> Spec:
    projections = {name: _conv_spec(channels, channels, 1) for name in ("q", "k", "v", "proj_out")}
    return {
        "block_1": _block_spec(channels, channels),
        "attn_1": {"norm": norm(channels, bias=True), **projections},
        "block_2": _block_spec(channels, channels),
    }


def _encoder_spec(config: AutoencoderConfig) -> Spec:
    last = len(config.multipliers) - 1
    channels = config.channels
    spec: dict[str, Any] = {"conv_in": _conv_spec(config.in_channels, channels)}
    for level, multiplier in enumerate(config.multipliers):
        stage = spec[f"down_{level}"] = {}
        for index in range(config.num_blocks):
            stage[f"block_{index}"] = _block_spec(channels, config.channels * multiplier)
            channels = config.channels * multiplier
        if level < last:
            stage["downsample"] = {"conv": _conv_spec(channels, channels)}
    spec["mid"] = _middle_spec(channels)
    spec["norm_out"] = norm(channels, bias=True)
    spec["conv_out"] = _conv_spec(channels, 2 * config.z_channels)
    return spec


def _decoder_spec(config: AutoencoderConfig) -> Spec:
    channels = config.channels * config.multipliers[-1]
    spec: dict[str, Any] = {"conv_in": _conv_spec(config.z_channels, channels), "mid": _middle_spec(channels)}
    for level in reversed(range(len(config.multipliers))):
        stage = spec[f"up_{level}"] = {}
        for index in range(config.num_blocks + 1):
            stage[f"block_{index}"] = _block_spec(channels, config.channels * config.multipliers[level])
            channels = config.channels * config.multipliers[level]
        if level > 0:
            stage["upsample"] = {"conv": _conv_spec(channels, channels)}
    spec["norm_out"] = norm(channels, bias=True)
    spec["conv_out"] = _conv_spec(channels, config.out_channels)
    return spec


def spec(config: AutoencoderConfig) -> Spec:
    """Declare the parameters {"encoder": ..., "decoder": ...}."""
    return {"encoder": _encoder_spec(config), "decoder": _decoder_spec(config)}


@functools.partial(jax.jit, static_argnames=("config", "param_dtype"))
def init_params(config: AutoencoderConfig, key: PRNGKeyArray, param_dtype: Any = jnp.float32) -> dict[str, Any]:
    """Draw {"encoder": ..., "decoder": ...}: kernels U(-1/sqrt(fan_in), 1/sqrt(fan_in)), scales 1, biases 0.

    Raises:
      ValueError: the channels of a resolution are not a multiple of ``config.num_groups``.
    """
    groups = config.num_groups
    odd = [m * config.channels for m in (1, *config.multipliers) if m * config.channels % groups]
    if odd:
        raise ValueError(
            f"autoencoder of {config.channels} channels and multipliers {config.multipliers}: "
            f"{odd[0]} channels do not divide into {groups} groups; choose multiples of {groups}"
        )
    return nn.unbox(Parameters(spec(config), param_dtype).init(key)["params"])


def abstract_params(config: AutoencoderConfig, param_dtype: Any = jnp.float32) -> dict[str, Any]:
    """Return the tree of ``init_params`` with ShapeDtypeStructs for arrays, and compute nothing."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), param_dtype))


def _conv(
    params: Params, x: Float[Array, "B H W I"], stride: int = 1, padding: tuple[int, int] | None = None
) -> Float[Array, "B h w O"]:
    """Convolve in x's dtype; ``padding`` (before, after) is that of both axes and by default preserves the size."""
    if padding is None:
        padding = (params["kernel"].shape[-1] // 2,) * 2
    y = jax.lax.conv_general_dilated(
        x,
        params["kernel"].astype(x.dtype),
        window_strides=(stride, stride),
        padding=(padding, padding),
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )
    return y + params["bias"].astype(x.dtype)


def _group_norm(groups: int, params: Params, x: Activations) -> Activations:
    """Normalise each image over (H, W) and the channels of a group, in float32; the result has x's dtype."""
    batch, height, width, channels = x.shape
    wide = x.astype(jnp.float32).reshape(batch, height, width, groups, channels // groups)
    wide = wide - wide.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(wide).mean((1, 2, 4), keepdims=True)
    normed = (wide * jax.lax.rsqrt(variance + GROUP_NORM_EPS)).reshape(x.shape)
    return (normed * params["scale"].astype(jnp.float32) + params["bias"].astype(jnp.float32)).astype(x.dtype)


def _norm_swish(groups: int, params: Params, x: Activations) -> Activations:
    return nn.swish(_group_norm(groups, params, x))


def _residual_block(groups: int, params: Params, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
    y = _conv(params["conv1"], _norm_swish(groups, params["norm1"], x))
    y = _conv(params["conv2"], _norm_swish(groups, params["norm2"], y))
    return y + (_conv(params["nin_shortcut"], x) if "nin_shortcut" in params else x)


def attend_positions(
    q: Float[Array, "B N C"], k: Float[Array, "B N C"], v: Float[Array, "B N C"]
) -> Float[Array, "B N C"]:
    """Return softmax(q k^T / sqrt(C)) v with one head, the softmax in float32.

    Beyond MAX_DENSE_POSITIONS positions the queries are computed QUERY_CHUNK at a time, and the backward pass
    recomputes the logits of each chunk. So the N x N logits are never in memory as a whole.
    """

    def attend(q: Float[Array, "B n C"]) -> Float[Array, "B n C"]:
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5)
        return jnp.einsum("bqk,bkc->bqc", weights.astype(v.dtype), v)

    batch, positions, channels = q.shape
    if positions <= MAX_DENSE_POSITIONS:
        return attend(q)
    chunks = -(-positions // QUERY_CHUNK)
    # The last chunk is padded with zero queries, whose results are dropped.
    q = jnp.pad(q, ((0, 0), (0, chunks * QUERY_CHUNK - positions), (0, 0)))
    q = q.reshape(batch, chunks, QUERY_CHUNK, channels).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(attend), q)
    return out.swapaxes(0, 1).reshape(batch, chunks * QUERY_CHUNK, channels)[:, :positions]


def _attention_block(groups: int, params: Params, x: Activations) -> Activations:
    y = _group_norm(groups, params["norm"], x)
    batch, height, width, channels = x.shape
    q, k, v = (_conv(params[name], y).reshape(batch, height * width, channels) for name in "qkv")
    return x + _conv(params["proj_out"], attend_positions(q, k, v).reshape(x.shape))


def _middle(groups: int, params: Params, x: Activations) -> Activations:
    x = _residual_block(groups, params["block_1"], x)
    x = _attention_block(groups, params["attn_1"], x)
    return _residual_block(groups, params["block_2"], x)


def encode(
    config: AutoencoderConfig, params: Params, images: Float[Array, "B H W 3"], dtype: Any = jnp.float32
) -> tuple[Float[Array, "B h w z"], Float[Array, "B h w z"]]:
    """Compute mean and log-variance of the latents of images in [-1, 1], float32, before scale and shift.

    h = H / config.downsample, w = W / config.downsample. Of ``params``, the tree of ``init_params``, only "encoder" is
    read. ``dtype`` is that of activations and products; norms and softmax are always float32.

    Raises:
      ValueError: H or W is not a multiple of config.downsample.
    """
    if any(side % config.downsample for side in images.shape[1:3]):
        raise ValueError(
            f"image of {images.shape[1]} x {images.shape[2]} pixels: "
            f"the autoencoder needs sides that are multiples of {config.downsample}"
        )
    params = params["encoder"]
    x = _conv(params["conv_in"], images.astype(dtype))
    for level in range(len(config.multipliers)):
        stage = params[f"down_{level}"]
        for index in range(config.num_blocks):
            x = _residual_block(config.num_groups, stage[f"block_{index}"], x)
        if "downsample" in stage:
            # The original pads on the right and at the bottom only.
            x = _conv(stage["downsample"]["conv"], x, stride=2, padding=(0, 1))
    x = _middle(config.num_groups, params["mid"], x)
    moments = _conv(params["conv_out"], _norm_swish(config.num_groups, params["norm_out"], x)).astype(jnp.float32)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, logvar


def sample_posterior(mean: Array, logvar: Array, key: PRNGKeyArray) -> Array:
    """Draw from N(mean, exp(logvar)); the result has the shape and dtype of ``mean``."""
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)


def latent_from_moments(config: AutoencoderConfig, x: Values) -> Values:
    """Return scale (x - shift), the generator's latents, from a mean or a draw of the posterior."""
    # The cast only helps the type checker, which takes the result for either of the two types.
    return cast(Values, config.scale_factor * (x - config.shift_factor))


def decode(
    config: AutoencoderConfig, params: Params, latents: Float[Array, "B h w z"], dtype: Any = jnp.float32
) -> Float[Array, "B H W 3"]:
    """Decode scaled latents, see ``latent_from_moments``, to images, float32, about within [-1, 1] but not clipped.

    H = h * config.downsample, W = w * config.downsample. Of ``params`` only "decoder" is read. ``dtype`` is as in
    ``encode``.
    """
    params = params["decoder"]
    z = latents.astype(jnp.float32) / config.scale_factor + config.shift_factor
    x = _middle(config.num_groups, params["mid"], _conv(params["conv_in"], z.astype(dtype)))
    for level in reversed(range(len(config.multipliers))):
        stage = params[f"up_{level}"]
        for index in range(config.num_blocks + 1):
            x = _residual_block(config.num_groups, stage[f"block_{index}"], x)
        if "upsample" in stage:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)  # nearest neighbours
            x = _conv(stage["upsample"]["conv"], x)
    return _conv(params["conv_out"], _norm_swish(config.num_groups, params["norm_out"], x)).astype(jnp.float32)

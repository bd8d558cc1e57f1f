"""BAGEL (Deng et al., 2025): embeddings of text, ViT and VAE tokens, the two experts, logits and velocities.

    text:  x = E[token]
    ViT:   x = connector(SigLIP(patches)) + position
    VAE:   x = W_in z_t + b + time_embedder(t) + position      z_t noised, or a clean latent with t = 0
    h = RMS(layers(x))                                         (``mot``; the final norm is the expert's)
    logits of a text token = W_head h,   velocity of a VAE token = W_out h + b

``spec`` declares the parameters. Everything is computed by pure functions on the parameter tree, which training,
sampling and conversion share.

Axis legend: B batch, T text tokens, V ViT tokens, G VAE tokens, S = T + V + G, D width, N vocabulary,
C values of a VAE token, P values of a ViT patch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.models import mot, parameters, vision
from pdgen.models.attention import Intervals
from pdgen.models.embeddings import sincos_table, timestep_features
from pdgen.models.linear import apply_kernel, look_up, quantize_spec
from pdgen.models.mot import Order, Streams
from pdgen.sequence.layout import Pack
from pdgen.sharding import out_spec

FIXED_TABLES = ("vit_position", "latent_position")


def spec(config: ModelConfig) -> dict[str, parameters.Spec]:
    """Declare every parameter of the model but the autoencoder's."""
    D, C, N = config.language.hidden_size, config.latent_dim, config.language.vocab_size
    linear = functools.partial(parameters.linear, bias=True)

    def table(side: int) -> dict[str, parameters.Leaf]:
        fill = lambda key, shape, dtype: jnp.asarray(sincos_table(side, shape[1]), dtype)  # noqa: E731
        return {"table": parameters.Leaf((side * side, D), (None, None), fill)}

    return {
        "language": {
            "embed": {"embedding": parameters.Leaf((N, D), ("vocab", "embed"), nn.initializers.normal(0.02))},
            "layers": parameters.stack_layers(mot.layer_spec(config.language), config.language.num_layers),
            "norm": {expert: parameters.norm(D) for expert in mot.EXPERTS},
            "head": parameters.linear((N,), (D,), ("vocab",), ("embed",), bias=False),
        },
        "vision": vision.spec(config.vision),
        "connector": {
            "fc1": linear((D,), (config.vision.hidden_size,), (None,), ("embed",)),
            "fc2": linear((D,), (D,), (None,), ("embed",)),
        },
        "vit_position": table(config.vision.max_side),
        "latent_position": table(config.max_latent_size),
        "time_embedder": {
            "fc1": linear((D,), (config.time_frequency_dim,), ("embed",), (None,)),
            "fc2": linear((D,), (D,), (None,), ("embed",)),
        },
        "latent_in": linear((D,), (C,), ("embed",), (None,)),
        # Zeros: a new model predicts velocity 0, so its first loss is the targets' mean square.
        "latent_out": linear((C,), (D,), (None,), ("embed",), scale=0.0),
    }


def init_params(config: ModelConfig, key: Array, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Draw new parameters: Gaussians scaled by fan-in, unit norms, sin-cos tables, and zeros in ``latent_out``."""
    return nn.unbox(parameters.Parameters(spec(config), jnp.dtype(dtype)).init(key)["params"])


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32, int8: bool = False) -> Any:
    """Return shapes and logical axes of all parameters and allocate none.

    Leaves are ``nn.LogicallyPartitioned`` boxes of ``ShapeDtypeStruct``; ``nn.unbox`` strips the boxes and
    ``sharding.parameter_specs`` reads them. With ``int8`` they are those of an int8 checkpoint, see ``linear``.
    """
    declared = quantize_spec(spec(config)) if int8 else spec(config)
    return parameters.abstract(declared, dtype)


def embed_text(compute: ComputeConfig, params: dict[str, Any], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Look up token embeddings, in the compute dtype."""
    return look_up(params["language"]["embed"], ids, compute.dtype)


def embed_vit(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    patches: Float[Array, "B V P"],
    positions: Int[Array, "B V"],
    image: tuple[Int[Array, "B V"], Int[Array, "B V"]],
) -> Float[Array, "B V D"]:
    """Return connector(ViT(patches)) + vit_position; arguments as ``vision.encode``."""
    x = vision.encode(config.vision, compute, params["vision"], patches, positions, image)
    return connect(params, x) + _fixed(params, "vit_position", positions).astype(x.dtype)


def connect(params: dict[str, Any], x: Float[Array, "B V C"]) -> Float[Array, "B V D"]:
    """Map from the ViT's width to the language model's: two linear maps with a tanh-GELU between them."""
    x = jax.nn.gelu(_dense(params["connector"]["fc1"], x), approximate=True)
    return _dense(params["connector"]["fc2"], x)


def embed_timestep(config: ModelConfig, params: dict[str, Any], t: Float[Array, "B G"]) -> Float[Array, "B G D"]:
    """Return fc2 silu(fc1 features(t)), float32; t in [0, 1] after the shift, 0 at a clean image."""
    x = timestep_features(t, config.time_frequency_dim)
    # In float32, whatever the compute dtype: bfloat16 would merge neighbouring timesteps.
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params["time_embedder"])
    return _dense(wide["fc2"], jax.nn.silu(_dense(wide["fc1"], x)))


def embed_latents(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    latents: Float[Array, "B G C"],
    positions: Int[Array, "B G"],
    t: Float[Array, "B G"],
) -> Float[Array, "B G D"]:
    """Return latent_in(latents) + time embedding + latent_position, in the compute dtype; t as ``embed_timestep``."""
    x = _dense(params["latent_in"], latents.astype(compute.dtype))
    return x + (embed_timestep(config, params, t) + _fixed(params, "latent_position", positions)).astype(x.dtype)


def logits(params: dict[str, Any], hidden: Float[Array, "B T D"]) -> Float[Array, "B T N"]:
    """Return the language head's logits of normalised hidden states, float32."""
    # Products of bfloat16 values, summed in float32: a softmax over 152,064 needs more than bfloat16's 8 bits.
    spec = out_spec("batch", None, "vocab")
    return apply_kernel(params["language"]["head"], "btd,nd->btn", hidden, spec, jnp.float32)


def velocity(params: dict[str, Any], hidden: Float[Array, "B G D"]) -> Float[Array, "B G C"]:
    """Return the predicted velocity (noise - latent) of VAE tokens from normalised hidden states, float32."""
    return _dense(params["latent_out"], hidden).astype(jnp.float32)


def embed_pack(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    pack: Pack,
    latents: Float[Array, "B G C"],
    t: Float[Array, "B G"],
) -> Streams:
    """Embed packs with a leading axis B: und is text and then ViT tokens, gen is VAE tokens.

    ``latents`` are the values of the VAE tokens, clean or noised, and ``t`` their timesteps, 0 if clean.
    """
    text = embed_text(compute, params, pack.text_ids)
    # One row of patches holds several images; each patch has the interval of its own image.
    image = (pack.vit_start, pack.vit_end)
    vit = embed_vit(config, compute, params, pack.vit_patches, pack.vit_positions, image)
    und = jnp.concatenate([text, vit], axis=1)
    return Streams(und, embed_latents(config, compute, params, latents, pack.vae_positions, t))


def encode_pack(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    pack: Pack,
    latents: Float[Array, "B G C"],
    t: Float[Array, "B G"],
) -> Streams:
    """Return the hidden states of both streams after the final norms; arguments as ``embed_pack``."""
    streams = embed_pack(config, compute, params, pack, latents, t)
    order = Order(
        pack.rotary, pack.to_sequence, pack.to_stream, Intervals(pack.k_start, pack.k_end, pack.q_start, pack.q_end)
    )
    language = params["language"]
    streams, _ = mot.run_layers(config.language, compute, language["layers"], streams, order)
    return Streams(*(mot.final_norm(config.language, language["norm"], e, x) for e, x in zip(mot.EXPERTS, streams)))


def _dense(p: dict[str, Array], x: Array) -> Array:
    """Return W x + b in x's dtype."""
    return apply_kernel(p, "bsd,nd->bsn", x, out_spec("batch", None, None)) + p["bias"].astype(x.dtype)


def _fixed(params: dict[str, Any], name: str, positions: Array) -> Array:
    """Look up rows of a fixed table, which is part of the checkpoint and never trained."""
    table = jax.lax.stop_gradient(params[name]["table"])
    return table.at[positions].get(out_sharding=out_spec("batch", None, None)).astype(jnp.float32)

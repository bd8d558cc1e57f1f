"""The unified model: embeds text, ViT and VAE tokens, runs the two experts, reads logits and velocities.

``Bagel`` is the Linen module that declares every parameter; all mathematics is in pure functions on the
parameter tree, so training, sampling and conversion share them.

Axis legend: B batch, T text tokens, V ViT tokens, G VAE tokens, S = T + V + G, D width, N vocabulary,
C values of a VAE token, P values of a ViT patch.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.models import mot, parameters, vision
from pdgen.models.attention import Intervals
from pdgen.models.embeddings import sincos_table, timestep_features
from pdgen.models.mot import Order, Streams
from pdgen.sharding import out_spec, place

if TYPE_CHECKING:
    from pdgen.sequence.layout import Pack

FIXED_TABLES = ("vit_position", "latent_position")


def spec(config: ModelConfig) -> parameters.Spec:
    """Declares every parameter of the model but the autoencoder's."""
    D, C, N = config.language.hidden_size, config.latent_dim, config.language.vocab_size
    linear = functools.partial(parameters.linear, bias=True)

    def table(side: int) -> dict[str, parameters.Leaf]:
        fill = lambda key, shape, dtype: jnp.asarray(sincos_table(side, shape[1]), dtype)  # noqa: E731
        return {"table": parameters.Leaf((side * side, D), (None, None), fill)}

    return {
        "language": {
            "embed": {"embedding": parameters.Leaf((N, D), ("vocab", "embed"), parameters.normal())},
            "layers": parameters.stacked(mot.layer_spec(config.language), config.language.num_layers),
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
        # Zeros, so that a fresh model's velocity is 0 and its first losses are those of the data alone.
        "latent_out": linear((C,), (D,), (None,), ("embed",), scale=0.0),
    }


class Bagel(nn.Module):
    """Declares the parameters and evaluates a pack: ``Bagel(config).apply({"params": params}, pack, latents, t)``."""

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, pack: Pack, latents: Array, t: Array) -> Streams:
        """See ``encode_pack``."""
        return encode_pack(self.config, self.compute, self.declare(), pack, latents, t)

    @nn.compact
    def declare(self) -> dict[str, Any]:
        """The parameter tree."""
        spec_tree, dtype = spec(self.config), jnp.dtype(self.compute.param_dtype)
        return {name: parameters.Parameters(child, dtype, name=name)() for name, child in spec_tree.items()}


def init_params(config: ModelConfig, key: Array, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Fresh parameters: Gaussians scaled by fan-in, unit norms, fixed sin-cos tables; the velocity is 0 at first."""
    model = Bagel(config, ComputeConfig(param_dtype=jnp.dtype(dtype).name))
    return nn.unbox(model.init(key, method="declare")["params"])


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> Any:
    """Shapes and logical axes of every parameter, without making one (``jax.eval_shape``).

    Leaves are ``nn.LogicallyPartitioned`` boxes of ``ShapeDtypeStruct``; ``nn.unbox`` strips the boxes and
    ``sharding.parameter_specs`` reads them.
    """
    model = Bagel(config, ComputeConfig(param_dtype=jnp.dtype(dtype).name))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), method="declare"))["params"]


def embed_text(compute: ComputeConfig, params: dict[str, Any], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Token embeddings in the compute dtype."""
    # Gathered whole, in the compute dtype: a lookup in a split table makes XLA replicate the activations.
    table = place(params["language"]["embed"]["embedding"].astype(compute.dtype), None, None)
    return table.at[ids].get(out_sharding=out_spec("batch", None, None))


def embed_vit(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    patches: Float[Array, "B V P"],
    positions: Int[Array, "B V"],
    image: tuple[Int[Array, "B V"], Int[Array, "B V"]],
) -> Float[Array, "B V D"]:
    """connector(ViT(patches)) + vit_position; arguments as ``vision.encode``."""
    x = vision.encode(config.vision, compute, params["vision"], patches, positions, image)
    return connect(params, x) + _fixed(params, "vit_position", positions).astype(x.dtype)


def connect(params: dict[str, Any], x: Float[Array, "B V C"]) -> Float[Array, "B V D"]:
    """The connector from the ViT's width to the language model's: two layers with a tanh-GELU between."""
    x = jax.nn.gelu(_dense(params["connector"]["fc1"], x), approximate=True)
    return _dense(params["connector"]["fc2"], x)


def embed_timestep(config: ModelConfig, params: dict[str, Any], t: Float[Array, "B G"]) -> Float[Array, "B G D"]:
    """MLP of the timestep's features, float32; t in [0, 1] after the shift, 0 = a clean image."""
    # In float32, whatever the compute dtype: bfloat16 would merge neighbouring timesteps.
    x = timestep_features(t, config.time_frequency_dim)
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
    """latent_in(latents) + time embedding + latent_position, in the compute dtype."""
    x = _dense(params["latent_in"], latents.astype(compute.dtype))
    return x + (embed_timestep(config, params, t) + _fixed(params, "latent_position", positions)).astype(x.dtype)


def logits(params: dict[str, Any], hidden: Float[Array, "B T D"]) -> Float[Array, "B T N"]:
    """Language head on normed hidden states, float32 (a softmax over 152,064 needs more than bfloat16)."""
    # The products are bfloat16's, the sums float32's: hidden states need not be cast up.
    kernel = params["language"]["head"]["kernel"].astype(hidden.dtype)
    spec = out_spec("batch", None, "vocab")
    return jnp.einsum("btd,nd->btn", hidden, kernel, preferred_element_type=jnp.float32, out_sharding=spec)


def velocity(params: dict[str, Any], hidden: Float[Array, "B G D"]) -> Float[Array, "B G C"]:
    """Flow velocity (noise - latent) of each VAE token from normed hidden states, float32."""
    return _dense(params["latent_out"], hidden).astype(jnp.float32)


def embed_pack(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    pack: Pack,
    latents: Float[Array, "B G C"],
    t: Float[Array, "B G"],
) -> Streams:
    """Input embeddings of a batch of packs: text and then ViT tokens, and VAE tokens.

    Args:
      pack: a batch of packs (leading axis B).
      latents: what the VAE tokens carry: clean or noised.
      t: timestep of each VAE token, 0 if clean.
    """
    text = embed_text(compute, params, pack.text_ids)
    # Several images lie in one row of patches; each patch names the first and last+1 of its own image.
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
    """Hidden states after the final norms, stream by stream; arguments as ``embed_pack``."""
    streams = embed_pack(config, compute, params, pack, latents, t)
    order = Order(
        pack.rotary, pack.to_sequence, pack.to_stream, Intervals(pack.k_start, pack.k_end, pack.q_start, pack.q_end)
    )
    language = params["language"]
    streams, _ = mot.run_layers(config.language, compute, language["layers"], streams, order)
    return Streams(*(mot.final_norm(config.language, language["norm"], e, x) for e, x in zip(mot.EXPERTS, streams)))


def _dense(p: dict[str, Array], x: Array) -> Array:
    kernel, bias = p["kernel"].astype(x.dtype), p["bias"].astype(x.dtype)
    return jnp.einsum("bsd,nd->bsn", x, kernel, out_sharding=out_spec("batch", None, None)) + bias


def _fixed(params: dict[str, Any], name: str, positions: Array) -> Array:
    """Rows of a fixed table: part of the checkpoint, never trained."""
    table = jax.lax.stop_gradient(params[name]["table"])
    return table.at[positions].get(out_sharding=out_spec("batch", None, None)).astype(jnp.float32)

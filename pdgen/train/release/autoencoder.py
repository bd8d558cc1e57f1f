"""Training the small autoencoder of shapes world: squared error, a weak KL term, normalised latents.

A BAGEL folder gives one scale and one shift for all latent channels; the generator learns
scale * (x - shift). So that the model config's numbers (FLUX's) hold for a network trained here, training has
two stages:

1. Encoder and decoder learn together.
2. The encoder's last convolution takes in an affine map per channel after which scale * (x - shift) has mean
   zero and variance one over the training pictures, and the decoder's first convolution takes in its inverse.
   That is exact but at the picture's border, where the zero padding now stands for another value. So the
   decoder learns on alone, while the encoder, and with it the latents' statistics, stays as it is.

The posterior's noise has then done its work, which is a decoder that bears inexact latents. It is taken out of the
encoder, for it is up to half of a latent's variance here, and a generator would be trained to predict it.

Axis legend: n pictures, H W pixels, h w latent positions, z latent channels.
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from tqdm import trange

from pdgen.checkpoints.mapping import autoencoder_places
from pdgen.config import AutoencoderConfig
from pdgen.models.autoencoder import decode, encode, init_params, latent_from_moments, sample_posterior
from pdgen.shapes.painter import paint
from pdgen.shapes.placement import FREE, LATTICE
from pdgen.shapes.world import MAX_OBJECTS, sample_scene

Params = Mapping[str, Any]

WARMUP_SHARE = 0.05
CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device
MEASURE_BATCH = 50
NARROW = 0.03  # of the posterior, before the scale, as a large autoencoder has it
TRAINING, HELD_OUT = 0, 1  # streams of scenes that are independent under one seed


class DivergedError(ArithmeticError):
    """The loss is no longer finite; the message names the step."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it is trained.

    Attributes:
      steps: optimiser steps of both stages together; each has at least one.
      decoder_share: the fraction of them that belongs to stage 2.
      batch_size: pictures a step, drawn with replacement.
      learning_rate: Adam's peak; each stage rises to it linearly over 5% of its steps and falls as a cosine.
      kl_weight: of the mean KL divergence of a latent value from N(0, 1), relative to the mean squared error
        of a pixel value in [-1, 1].
      seed: of parameters, batches and posterior draws.
    """

    steps: int
    decoder_share: float
    batch_size: int
    learning_rate: float
    kl_weight: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.decoder_share < 1:
            raise ValueError(f"decoder_share={self.decoder_share}: give a fraction between 0 and 1")
        for name, least in (("steps", 2), ("batch_size", 1), ("learning_rate", 1e-12), ("kl_weight", 0.0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: give {least} or more")


@dataclasses.dataclass(frozen=True)
class Quality:
    """What an autoencoder makes of pictures; latents are scale * (x - shift), x drawn from the posterior.

    Attributes:
      psnr: 10 log10(4 / mean squared error) in dB, decoded from the posterior's mean, all pictures pooled.
      mean, std: of the latents, per channel [z].
      posterior_std: root mean square of the posterior's standard deviation, per channel [z].
    """

    psnr: float
    mean: np.ndarray
    std: np.ndarray
    posterior_std: np.ndarray


def as_input(pictures: UInt8[Array, "*n H W 3"]) -> Float[Array, "*n H W 3"]:
    """Values 0 to 255 as -1 to 1."""
    return pictures.astype(jnp.float32) / 127.5 - 1


def gaussian_kl(mean: Array, logvar: Array) -> Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each value."""
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)


def loss(
    config: AutoencoderConfig, kl_weight: float, params: Params, pictures: Array, key: PRNGKeyArray
) -> Float[Array, ""]:
    """Mean squared error of pictures decoded from a posterior draw, plus ``kl_weight`` times the mean KL.

    An absolute error would at first be least where small things are not drawn at all.
    """
    images = as_input(pictures)
    mean, logvar = encode(config, params, images)
    latents = latent_from_moments(config, sample_posterior(mean, logvar, key))
    error = jnp.square(decode(config, params, latents) - images).mean()
    return error + kl_weight * gaussian_kl(mean, logvar).mean()


def normalised(config: AutoencoderConfig, params: Params, mean: Array, std: Array) -> dict[str, Any]:
    """Parameters whose latents have mean zero, variance one where those of ``params`` had ``mean``, ``std``.

    With x = shift + latent / scale, the new x' = a x + b, where a = 1 / std and
    b = shift (1 - a) - a mean / scale; the log-variance grows by 2 log a. The decoder is given
    x = std (x' - b), exactly but for the zero padding of its first convolution.

    Args:
      config: scale and shift.
      params: the tree to start from; it is left as it is.
      mean, std: per channel [z], of latents scale * (x - shift).
    """
    a = 1 / std
    b = config.shift_factor * (1 - a) - a * mean / config.scale_factor
    last, first = params["encoder"]["conv_out"], params["decoder"]["conv_in"]
    rows = jnp.concatenate([a, jnp.ones_like(a)])
    kernel = first["kernel"] * std[:, None, None]
    conv_out = {
        "kernel": last["kernel"] * rows[:, None, None, None],
        "bias": last["bias"] * rows + jnp.concatenate([b, 2 * jnp.log(a)]),
    }
    conv_in = {"kernel": kernel, "bias": first["bias"] - jnp.einsum("ozij,z->o", kernel, b)}
    return {
        "encoder": {**params["encoder"], "conv_out": conv_out},
        "decoder": {**params["decoder"], "conv_in": conv_in},
    }


def narrowed(params: Params) -> dict[str, Any]:
    """Parameters whose posterior has the same mean and, everywhere, the standard deviation ``NARROW``."""
    last = params["encoder"]["conv_out"]
    half = last["bias"].shape[0] // 2
    conv_out = {
        "kernel": last["kernel"].at[half:].set(0),
        "bias": last["bias"].at[half:].set(2 * math.log(NARROW)),
    }
    return {**params, "encoder": {**params["encoder"], "conv_out": conv_out}}


@functools.partial(jax.jit, static_argnames="config")
def _moments_and_error(
    config: AutoencoderConfig, params: Params, pictures: UInt8[Array, "n H W 3"]
) -> tuple[Array, Array, Array]:
    """Mean and variance of the posterior [n, h, w, z], squared error of the picture decoded from the mean."""
    images = as_input(pictures)
    mean, logvar = encode(config, params, images)
    decoded = decode(config, params, latent_from_moments(config, mean))
    return mean, jnp.exp(logvar), jnp.square(jnp.clip(decoded, -1, 1) - images)


def measure(config: AutoencoderConfig, params: Params, pictures: UInt8[np.ndarray, "n H W 3"]) -> Quality:
    """Reconstruction error and latent statistics, the latter in closed form from the posterior's moments."""
    starts = range(0, len(pictures), MEASURE_BATCH)
    batches = [_moments_and_error(config, params, pictures[i : i + MEASURE_BATCH]) for i in starts]
    mean, variance, error = (np.concatenate(parts).astype(np.float64) for parts in zip(*batches))
    latents, axes = latent_from_moments(config, mean), (0, 1, 2)
    posterior = config.scale_factor**2 * variance.mean(axes)
    return Quality(
        psnr=float(10 * np.log10(4 / error.mean())),
        mean=latents.mean(axes),
        std=np.sqrt(latents.var(axes) + posterior),
        posterior_std=np.sqrt(posterior),
    )


def _optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    warmup = round(WARMUP_SHARE * steps)
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, warmup, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


@functools.partial(jax.jit, static_argnames=("config", "settings", "steps"))
def _update(
    config: AutoencoderConfig,
    settings: Settings,
    steps: int,
    trained: Params,
    fixed: Params,
    state: optax.OptState,
    pictures: Array,
    key: PRNGKeyArray,
) -> tuple[Params, optax.OptState, Array]:
    """One step on the ``trained`` of the parameters {**fixed, **trained}; gives their loss before it as well."""
    batch_key, draw_key = jax.random.split(key)
    batch = pictures[jax.random.randint(batch_key, (settings.batch_size,), 0, len(pictures))]

    def batch_loss(trained: Params) -> Array:
        return loss(config, settings.kl_weight, {**fixed, **trained}, batch, draw_key)

    value, gradients = jax.value_and_grad(batch_loss)(trained)
    updates, state = _optimizer(settings, steps).update(gradients, state)
    return optax.apply_updates(trained, updates), state, value


def _stage(
    config: AutoencoderConfig,
    settings: Settings,
    params: Params,
    pictures: Array,
    key: PRNGKeyArray,
    parts: tuple[str, ...],
    steps: int,
) -> Params:
    """Trains the named ``parts`` ("encoder", "decoder") of ``params`` for ``steps`` steps."""
    trained = {name: params[name] for name in parts}
    fixed = {name: tree for name, tree in params.items() if name not in parts}
    state = _optimizer(settings, steps).init(trained)
    progress = trange(steps, desc=" and ".join(parts), unit="step")
    for step in progress:
        step_key = jax.random.fold_in(key, step)
        trained, state, value = _update(config, settings, steps, trained, fixed, state, pictures, step_key)
        if step % CHECK_EVERY == 0 or step == steps - 1:
            if not np.isfinite(value):
                raise DivergedError(f"the loss is {value} at step {step} of {steps}; lower learning_rate")
            progress.set_postfix(loss=f"{value:.4f}")
    return {**fixed, **trained}


def train(config: AutoencoderConfig, settings: Settings, pictures: UInt8[np.ndarray, "n H W 3"]) -> dict[str, Any]:
    """Both stages, from random parameters, then ``narrowed``. The same settings and pictures give the same result.

    Returns:
      float32 parameters, {"encoder": ..., "decoder": ...}.

    Raises:
      DivergedError: the loss is not finite.
    """
    init_key, both_key, decoder_key = jax.random.split(jax.random.key(settings.seed), 3)
    alone = min(max(round(settings.steps * settings.decoder_share), 1), settings.steps - 1)
    params, device_pictures = init_params(config, init_key), jnp.asarray(pictures)
    both = ("encoder", "decoder")
    params = _stage(config, settings, params, device_pictures, both_key, both, settings.steps - alone)
    quality = measure(config, params, pictures)
    params = normalised(config, params, jnp.float32(quality.mean), jnp.float32(quality.std))
    return narrowed(_stage(config, settings, params, device_pictures, decoder_key, ("decoder",), alone))


def write_autoencoder(path: pathlib.Path, config: AutoencoderConfig, params: Params) -> None:
    """Writes ``params`` by their torch names as float16, in the layout of a BAGEL folder's ae.safetensors.

    The file appears whole or not at all; ``pdgen.checkpoints.torch_checkpoint.read_autoencoder`` reads it.
    """
    arrays = traverse_util.flatten_dict({"autoencoder": params}, sep="/")
    tensors = {name: np.asarray(arrays[place.path], np.float16) for name, place in autoencoder_places(config).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    safetensors.numpy.save_file(tensors, partial)
    os.replace(partial, path)


def scene_pictures(seed: int, stream: int, count: int, size: int, free_share: float) -> UInt8[np.ndarray, "n H W 3"]:
    """Paints random scenes of 1 to ``MAX_OBJECTS`` objects.

    Args:
      seed: The seed of all scenes.
      stream: ``TRAINING`` or ``HELD_OUT``; scenes of different streams are independent.
      count: How many scenes, n.
      size: Height and width in pixels.
      free_share: The expected share of scenes with objects anywhere, 0 to 1; the others keep to the lattice.
    """
    pictures = np.empty((count, size, size, 3), np.uint8)
    for index in trange(count, desc="painting", unit="picture"):
        rng = np.random.default_rng((seed, stream, index))
        placement = FREE if rng.random() < free_share else LATTICE
        pictures[index] = paint(sample_scene(rng, int(rng.integers(1, MAX_OBJECTS + 1)), placement), size)
    return pictures

"""Training of shapes world's small autoencoder: squared error, a weak KL term, normalised latents.

The generator learns scale * (x - shift), and a BAGEL folder has one scale and one shift for all latent channels x. They
are FLUX's in the model config. Training has two stages, so that they also fit the network trained here:

1. Encoder and decoder are trained together.
2. An affine map per channel makes scale * (x - shift) zero-mean with unit variance over the training pictures. It is
   folded into the encoder's last convolution, and its inverse into the decoder's first one. This is exact except at
   the border of a picture, where the zero padding now represents another value. So the decoder is trained further,
   while the encoder, and with it the statistics of the latents, is frozen.

The noise of the posterior teaches the decoder to tolerate inexact latents. Afterwards it is removed from the encoder:
it is up to half of a latent's variance, and a generator would learn to predict it.

Axis legend: n pictures, H W pixels, h w latent positions, z latent channels.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any, cast

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
from pdgen.files import new_file
from pdgen.models.autoencoder import decode, encode, init_params, latent_from_moments, sample_posterior
from pdgen.shapes.painter import paint
from pdgen.shapes.placement import FREE, LATTICE
from pdgen.shapes.world import MAX_OBJECTS, sample_scene

Params = Mapping[str, Any]

WARMUP_SHARE = 0.05
CHECK_EVERY = 20  # steps between reads of the loss, each of which waits for the device
MEASURE_BATCH = 50
POSTERIOR_STD = 0.03  # of the shipped encoder, before the scale; a large autoencoder has about as much
TRAINING, HELD_OUT = 0, 1  # independent streams of scenes under one seed


class DivergedError(ValueError):
    """The loss is not finite; the message names the step."""


@dataclasses.dataclass(frozen=True)
class AutoencoderTrainConfig:
    """Hyperparameters of the training.

    Attributes:
      steps: optimizer steps of both stages together, at least 2.
      decoder_share: fraction of the steps in stage 2, between 0 and 1; each stage has at least one step.
      batch_size: pictures per step, drawn with replacement.
      learning_rate: peak of Adam's learning rate. Each stage warms up over 5% of its steps, then decays as a cosine.
      kl_weight: weight of the mean KL divergence of a latent value from N(0, 1), relative to the mean squared error of
        a pixel value in [-1, 1].
      seed: seed of parameters, batches and posterior draws.

    Raises:
      ValueError: a value is out of range.
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
        for name, minimum in (("steps", 2), ("batch_size", 1), ("learning_rate", 1e-12), ("kl_weight", 0.0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)}: give {minimum} or more")


@dataclasses.dataclass(frozen=True)
class AutoencoderQuality:
    """Reconstruction quality and statistics of the latents scale * (x - shift) with x from the posterior.

    Attributes:
      psnr: 10 log10(4 / mean squared error) in dB over all pictures, decoded from the mean of the posterior.
      mean, std: mean and standard deviation of each latent channel.
      posterior_std: root mean square of the posterior's standard deviation in each channel.
    """

    psnr: float
    mean: Float[np.ndarray, " z"]
    std: Float[np.ndarray, " z"]
    posterior_std: Float[np.ndarray, " z"]


def scale_pixels(pictures: UInt8[Any, "*n H W 3"]) -> Float[Array, "*n H W 3"]:
    """Map pixel values from 0 .. 255 to -1 .. 1."""
    pictures = jnp.asarray(pictures)
    return pictures.astype(jnp.float32) / 127.5 - 1


def gaussian_kl(mean: Array, logvar: Array) -> Array:
    """Compute KL(N(mean, exp(logvar)) || N(0, 1)) of each value."""
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)


def compute_loss(
    config: AutoencoderConfig, kl_weight: float, params: Params, pictures: UInt8[Any, "n H W 3"], key: PRNGKeyArray
) -> Float[Array, ""]:
    """Compute the mean squared error of pictures decoded from a posterior draw, plus ``kl_weight`` times mean KL."""
    # Squared, not absolute: the absolute error is at first smallest if small objects are not drawn at all.
    images = scale_pixels(pictures)
    mean, logvar = encode(config, params, images)
    latents = latent_from_moments(config, sample_posterior(mean, logvar, key))
    error = jnp.square(decode(config, params, latents) - images).mean()
    return error + kl_weight * gaussian_kl(mean, logvar).mean()


def normalise_latents(
    config: AutoencoderConfig, params: Params, mean: Float[Array, " z"], std: Float[Array, " z"]
) -> dict[str, Any]:
    """Return parameters with zero-mean, unit-variance latents.

    With x = shift + latent / scale, the new x' is a x + b, where a = 1 / std and b = shift (1 - a) - a mean / scale;
    the log-variance grows by 2 log a. The decoder inverts this: x = std (x' - b), exactly except for the zero padding
    of its first convolution.

    ``mean`` and ``std`` are those of each channel of the latents scale * (x - shift) of ``params``.
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


def narrow_posterior(params: Params) -> dict[str, Any]:
    """Return parameters whose posterior has the same mean and the standard deviation ``POSTERIOR_STD`` everywhere."""
    last = params["encoder"]["conv_out"]
    half = last["bias"].shape[0] // 2
    conv_out = {
        "kernel": last["kernel"].at[half:].set(0),
        "bias": last["bias"].at[half:].set(2 * math.log(POSTERIOR_STD)),
    }
    return {**params, "encoder": {**params["encoder"], "conv_out": conv_out}}


@functools.partial(jax.jit, static_argnames="config")
def _reconstruct(
    config: AutoencoderConfig, params: Params, pictures: UInt8[Any, "n H W 3"]
) -> tuple[Float[Array, "n h w z"], Float[Array, "n h w z"], Float[Array, "n H W 3"]]:
    """Return mean and variance of the posterior and the squared error of the pictures decoded from the mean."""
    images = scale_pixels(pictures)
    mean, logvar = encode(config, params, images)
    decoded = decode(config, params, latent_from_moments(config, mean))
    return mean, jnp.exp(logvar), jnp.square(jnp.clip(decoded, -1, 1) - images)


def measure(config: AutoencoderConfig, params: Params, pictures: UInt8[np.ndarray, "n H W 3"]) -> AutoencoderQuality:
    """Measure reconstruction error and latent statistics, the latter in closed form from the posterior's moments."""
    starts = range(0, len(pictures), MEASURE_BATCH)
    batches = [_reconstruct(config, params, pictures[i : i + MEASURE_BATCH]) for i in starts]
    mean, variance, error = (np.concatenate(parts).astype(np.float64) for parts in zip(*batches))
    latents, axes = latent_from_moments(config, mean), (0, 1, 2)
    posterior = config.scale_factor**2 * variance.mean(axes)
    return AutoencoderQuality(
        psnr=float(10 * np.log10(4 / error.mean())),
        mean=latents.mean(axes),
        std=np.sqrt(latents.var(axes) + posterior),
        posterior_std=np.sqrt(posterior),
    )


def _make_optimizer(settings: AutoencoderTrainConfig, steps: int) -> optax.GradientTransformation:
    warmup = round(WARMUP_SHARE * steps)
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, warmup, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


@functools.partial(jax.jit, static_argnames=("config", "settings", "steps"))
def _update(
    config: AutoencoderConfig,
    settings: AutoencoderTrainConfig,
    steps: int,
    trained: Params,
    frozen: Params,
    state: optax.OptState,
    pictures: Array,
    key: PRNGKeyArray,
) -> tuple[Params, optax.OptState, Array]:
    """Update the ``trained`` part of the parameters; return it, the optimizer state and the loss before the update."""
    batch_key, draw_key = jax.random.split(key)
    batch = pictures[jax.random.randint(batch_key, (settings.batch_size,), 0, len(pictures))]

    def batch_loss(trained: Params) -> Array:
        return compute_loss(config, settings.kl_weight, {**frozen, **trained}, batch, draw_key)

    value, gradients = jax.value_and_grad(batch_loss)(trained)
    updates, state = _make_optimizer(settings, steps).update(gradients, state)
    return cast(Params, optax.apply_updates(cast(optax.Params, trained), updates)), state, value


def _train_stage(
    config: AutoencoderConfig,
    settings: AutoencoderTrainConfig,
    params: Params,
    pictures: Array,
    key: PRNGKeyArray,
    parts: tuple[str, ...],
    steps: int,
) -> Params:
    """Train the named ``parts`` ("encoder", "decoder") of ``params`` for ``steps`` steps and return all parameters."""
    trained = {name: params[name] for name in parts}
    frozen = {name: tree for name, tree in params.items() if name not in parts}
    state = _make_optimizer(settings, steps).init(trained)
    progress = trange(steps, desc=" and ".join(parts), unit="step")
    for step in progress:
        step_key = jax.random.fold_in(key, step)
        trained, state, value = _update(config, settings, steps, trained, frozen, state, pictures, step_key)
        if step % CHECK_EVERY == 0 or step == steps - 1:
            if not np.isfinite(value):
                raise DivergedError(f"the loss is {value} at step {step} of {steps}; lower learning_rate")
            progress.set_postfix(loss=f"{value:.4f}")
    return {**frozen, **trained}


def train_autoencoder(
    config: AutoencoderConfig, settings: AutoencoderTrainConfig, pictures: UInt8[np.ndarray, "n H W 3"]
) -> dict[str, Any]:
    """Train both stages from random parameters and narrow the posterior. The same arguments give the same result.

    Returns:
      float32 parameters, {"encoder": ..., "decoder": ...}.

    Raises:
      DivergedError: the loss is not finite.
    """
    init_key, both_key, decoder_key = jax.random.split(jax.random.key(settings.seed), 3)
    decoder_steps = min(max(round(settings.steps * settings.decoder_share), 1), settings.steps - 1)
    params, device_pictures = init_params(config, init_key), jnp.asarray(pictures)
    both = ("encoder", "decoder")
    params = _train_stage(config, settings, params, device_pictures, both_key, both, settings.steps - decoder_steps)
    quality = measure(config, params, pictures)
    params = normalise_latents(config, params, jnp.float32(quality.mean), jnp.float32(quality.std))
    params = _train_stage(config, settings, params, device_pictures, decoder_key, ("decoder",), decoder_steps)
    return narrow_posterior(params)


def write_autoencoder(path: pathlib.Path, config: AutoencoderConfig, params: Params) -> None:
    """Write ``params`` atomically by their torch names as float16, as the ae.safetensors of a BAGEL folder."""
    arrays = traverse_util.flatten_dict({"autoencoder": params}, sep="/")
    tensors = {name: np.asarray(arrays[place.path], np.float16) for name, place in autoencoder_places(config).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        safetensors.numpy.save_file(tensors, partial)


def paint_scenes(seed: int, stream: int, count: int, size: int, free_share: float) -> UInt8[np.ndarray, "n H W 3"]:
    """Paint ``count`` random scenes of 1 to ``MAX_OBJECTS`` objects, ``size`` pixels high and wide.

    Scenes of different streams, ``TRAINING`` and ``HELD_OUT``, are independent. ``free_share`` is the expected share of
    scenes, 0 to 1, whose objects are placed freely; the others use the lattice.
    """
    pictures = np.empty((count, size, size, 3), np.uint8)
    for index in trange(count, desc="painting", unit="picture"):
        rng = np.random.default_rng((seed, stream, index))
        placement = FREE if rng.random() < free_share else LATTICE
        pictures[index] = paint(sample_scene(rng, int(rng.integers(1, MAX_OBJECTS + 1)), placement), size)
    return pictures

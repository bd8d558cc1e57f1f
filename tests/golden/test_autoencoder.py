"""The autoencoder on the golden folders: moments, latents, decoded images, padded training latents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.models import autoencoder


def channels_last(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


@pytest.fixture(scope="session")
def coder(golden):
    """The config's encode and decode, compiled, with the folder's parameters."""
    config = golden.config.autoencoder
    params = read_autoencoder(golden.folder, config)
    encode = jax.jit(functools.partial(autoencoder.encode, config))
    decode = jax.jit(functools.partial(autoencoder.decode, config))
    return functools.partial(encode, params), functools.partial(decode, params), config


def test_moments(golden, coder):
    encode, _, _ = coder
    moments = jnp.concatenate(encode(channels_last(golden.numbers["vae.image"])), -1)
    golden.check("vae.moments", channels_first(moments))


def test_latent_is_the_scaled_mean(golden, coder):
    encode, _, config = coder
    mean, _ = encode(channels_last(golden.numbers["vae.image"]))
    golden.check("vae.latent_mean", channels_first(autoencoder.latent_from_moments(config, mean)))


def test_decoded(golden, coder):
    _, decode, _ = coder
    golden.check("vae.decoded", channels_first(decode(channels_last(golden.numbers["vae.latent_mean"]))))


def test_zero_padded_training_images(golden, coder):
    encode, _, config = coder
    mean, _ = encode(channels_last(golden.numbers["train.padded_images"]))
    golden.check("train.padded_latent", channels_first(autoencoder.latent_from_moments(config, mean)))

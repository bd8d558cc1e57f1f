"""Latent moments: those of the autoencoder, stored with the right picture, whatever the batch."""

import io

import jax
import numpy as np
import PIL.Image
import pytest

from pdgen.config import AutoencoderConfig
from pdgen.data.latents import add_latents, batched_encoder
from pdgen.interleave.trajectory import Image, Text
from pdgen.models import autoencoder

from . import handmade

NANO = AutoencoderConfig(channels=32, multipliers=(1, 1), num_blocks=1, z_channels=2)


@pytest.fixture(scope="module")
def params():
    return autoencoder.init_params(NANO, jax.random.key(0))


@pytest.fixture(scope="module")
def encode(params):
    return batched_encoder(NANO, params, batch_size=8)


@pytest.fixture(scope="module")
def made():
    return handmade.records(6)


def images_of(records):
    return [s for r in records for s in r.segments if isinstance(s, Image)]


def test_each_picture_has_its_own_moments(params, encode, made):
    filled = add_latents(made, encode)
    for before, after in zip(images_of(made), images_of(filled), strict=True):
        picture = np.asarray(PIL.Image.open(io.BytesIO(before.png)), np.float32)
        mean, logvar = autoencoder.encode(NANO, params, picture[None] / 127.5 - 1)
        assert after.latent_shape == (16, 16, 2)
        assert (after.png, after.stage, after.target) == (before.png, before.stage, before.target)
        for stored, expected in ((after.latent_mean, mean), (after.latent_logvar, logvar)):
            values = np.frombuffer(stored, np.float16).reshape(after.latent_shape)
            np.testing.assert_allclose(values, expected[0], rtol=2e-3, atol=2e-3)
    for before, after in zip(made, filled, strict=True):
        assert [s for s in before.segments if isinstance(s, Text)] == [
            s for s in after.segments if isinstance(s, Text)
        ]


def test_moments_do_not_depend_on_the_batch(encode):
    pictures = np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), np.uint8)
    together = encode(pictures)
    for start, stop in ((0, 1), (3, 11), (18, 19)):
        for alone, all_of_them in zip(encode(pictures[start:stop]), together, strict=True):
            assert (alone == all_of_them[start:stop]).all()


def test_equal_pictures_are_encoded_once(made):
    batches = []

    def counting(pictures):
        batches.append(pictures)
        return np.zeros((2, len(pictures), 1, 1, 1))

    add_latents([*made, *made], counting)
    (batch,) = batches
    assert len(batch) == len({s.png for s in images_of(made)}) == len(np.unique(batch, axis=0))


def test_unusable_moments_and_mixed_sizes_are_refused(made):
    with pytest.raises(ValueError, match="not finite in float16"):
        add_latents(made, lambda pictures: np.full((2, len(pictures), 1, 1, 1), 1e6))
    large = handmade.records(1, (48, 48))
    with pytest.raises(ValueError, match=r"\(32, 32\), \(48, 48\)"):
        add_latents([*made, *large], lambda pictures: np.zeros((2, len(pictures), 1, 1, 1)))


def test_no_records_need_no_encoder():
    assert add_latents([], pytest.fail) == []

"""Latent moments: the autoencoder's, stored with the right picture, independent of the batch."""

import io

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import PIL.Image
import pytest

from pdgen.config import AutoencoderConfig
from pdgen.data import latents
from pdgen.data.latents import LatentError, add_latents, make_encoder
from pdgen.models import autoencoder
from pdgen.sequence.images import ImageError, SizeRule, decode_image
from pdgen.sequence.trajectory import Image, Text

from . import handmade

NANO = AutoencoderConfig(channels=32, multipliers=(1, 1), num_blocks=1, z_channels=2)


@pytest.fixture(scope="module")
def params():
    return autoencoder.init_params(NANO, jax.random.key(0))


@pytest.fixture(scope="module")
def encode(params):
    return make_encoder(NANO, params, batch_size=8)


@pytest.fixture(scope="module")
def made():
    return handmade.records(6)


def images_of(records):
    return [s for r in records for s in r.segments if isinstance(s, Image)]


def constant_moments(pictures, value):
    moments = np.full((len(pictures), 1, 1, 1), value, np.float32)
    return moments, moments


def test_each_picture_has_its_own_moments(params, encode, made):
    filled = add_latents(made, encode)
    for before, after in zip(images_of(made), images_of(filled), strict=True):
        picture = np.asarray(PIL.Image.open(io.BytesIO(before.png)), np.float32)
        mean, logvar = autoencoder.encode(NANO, params, jnp.asarray(picture[None] / 127.5 - 1))
        assert after.latent_shape == (16, 16, 2)
        assert (after.png, after.stage, after.target) == (before.png, before.stage, before.target)
        for stored, expected in ((after.latent_mean, mean), (after.latent_logvar, logvar)):
            values = np.frombuffer(stored, np.float16).reshape(after.latent_shape)
            np.testing.assert_allclose(values, expected[0], rtol=2e-3, atol=2e-3)
    for before, after in zip(made, filled, strict=True):
        assert [s for s in before.segments if isinstance(s, Text)] == [s for s in after.segments if isinstance(s, Text)]


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
        return constant_moments(pictures, 0)

    add_latents([*made, *made], counting)
    (batch,) = batches
    assert len(batch) == len({s.png for s in images_of(made)}) == len(np.unique(batch, axis=0))


def test_pictures_of_several_sizes_are_encoded_by_size(params, encode, made):
    large = handmade.records(3, (48, 40))
    shapes = []

    def noting(pictures):
        shapes.append(pictures.shape)
        return encode(pictures)

    mixed = add_latents([*made, *large], noting)
    assert shapes == [(len({s.png for s in images_of(made)}), 32, 32, 3), (4, 40, 48, 3)]
    assert {s.latent_shape for s in images_of(mixed[len(made) :])} == {(20, 24, 2)}
    assert mixed == add_latents(made, encode) + add_latents(large, encode)


def test_pictures_are_resized_to_the_models_sizes(encode, made):
    rule = SizeRule(max_size=32, min_size=16, stride=4)
    large = handmade.records(2, (100, 60))
    for before, after in zip(images_of(large), images_of(add_latents(large, encode, rule)), strict=True):
        expected = decode_image(before.png).resize((32, 20), PIL.Image.Resampling.BICUBIC)
        picture = decode_image(after.png)
        assert (np.asarray(picture) == np.asarray(expected)).all()
        mean, _ = encode(np.asarray(picture)[None])
        assert after.latent_shape == (10, 16, 2)
        assert after.latent_mean == mean[0].astype(np.float16).tobytes()
    for before, after in zip(images_of(made), images_of(add_latents(made, encode, rule)), strict=True):
        assert before.png is after.png


def test_large_pictures_come_in_smaller_batches(monkeypatch, params):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    alone = make_encoder(NANO, params, 1)(pictures)
    monkeypatch.setattr(latents, "BATCH_PIXELS", 32 * 32 - 1)  # not even one, so one
    for ours, theirs in zip(make_encoder(NANO, params)(pictures), alone, strict=True):
        assert (ours == theirs).all()


def test_unusable_moments_and_broken_pictures_are_refused(made):
    with pytest.raises(LatentError, match="not finite in float16"):
        add_latents(made, lambda pictures: constant_moments(pictures, 1e6))
    image = images_of(made)[0]
    broken = msgspec.structs.replace(image, png=image.png[:60])
    record = msgspec.structs.replace(made[0], segments=[broken if s is image else s for s in made[0].segments])
    with pytest.raises(ImageError, match="record dots-0: segment 2: not a readable PNG"):
        add_latents([made[1], record], pytest.fail)


def test_no_records_need_no_encoder():
    assert add_latents([], pytest.fail) == []

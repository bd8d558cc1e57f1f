"""Training of the shapes-world autoencoder, and the quality of the shipped weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.numpy import load_file

from pdgen.assets import shapes_folder
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import SHAPES_AUTOENCODER, AutoencoderConfig
from pdgen.models import autoencoder as model
from pdgen.shapes.painter import paint
from pdgen.shapes.world import MAX_OBJECTS, sample_scene
from pdgen.train.release import autoencoder as training

SMALL = AutoencoderConfig(channels=32, multipliers=(1,), num_blocks=1, z_channels=2, scale_factor=0.5, shift_factor=0.3)
SETTINGS = training.AutoencoderTrainConfig(
    steps=40, decoder_share=0.25, batch_size=8, learning_rate=3e-3, kl_weight=1e-4, seed=1
)


def random_pictures(seed: int, count: int, size: int, shrink: int = 1) -> np.ndarray:
    """Paint scenes of 1 to 6 objects, with seeds that no config uses, at ``size`` / ``shrink`` pixels."""
    rngs = [np.random.default_rng((seed, 1000, i)) for i in range(count)]
    scenes = [sample_scene(rng, 1 + i % MAX_OBJECTS) for i, rng in enumerate(rngs)]
    return np.stack([np.asarray(PIL.Image.fromarray(paint(scene, size)).reduce(shrink)) for scene in scenes])


@pytest.fixture(scope="module")
def pictures():
    return random_pictures(0, 32, 32, shrink=4)


@pytest.fixture(scope="module")
def trained(pictures):
    return training.train_autoencoder(SMALL, SETTINGS, pictures)


@pytest.fixture(scope="module")
def start():
    """Draw random parameters; biases too, so that a missing one is noticed."""
    rng = np.random.default_rng(0)
    values = lambda x: jnp.float32(rng.normal(scale=0.2 if len(x.shape) == 1 else 0.05, size=x.shape))  # noqa: E731
    return jax.tree.map(values, model.abstract_params(SMALL))


def test_kl_is_that_of_torch_distributions():
    mean, logvar = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.from_numpy(mean), torch.from_numpy(np.exp(logvar / 2))),
        torch.distributions.Normal(0.0, 1.0),
    )
    divergence = training.gaussian_kl(jnp.asarray(mean), jnp.asarray(logvar))
    np.testing.assert_allclose(divergence, expected, rtol=1e-5, atol=1e-6)


def test_normalising_shifts_and_scales_the_latents(start, pictures):
    mean, std = jnp.array([0.4, -1.5]), jnp.array([0.2, 3.0])
    images = training.scale_pixels(pictures[:4])
    old_mean, old_logvar = model.encode(SMALL, start, images)
    new_mean, new_logvar = model.encode(SMALL, training.normalise_latents(SMALL, start, mean, std), images)
    expected = (model.latent_from_moments(SMALL, old_mean) - mean) / std
    np.testing.assert_allclose(model.latent_from_moments(SMALL, new_mean), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.exp(new_logvar / 2), jnp.exp(old_logvar / 2) / std, rtol=1e-4)


def test_the_decoder_takes_normalised_latents_exactly_but_at_the_border(start):
    mean, std = jnp.array([0.4, -1.5]), jnp.array([0.2, 3.0])
    new = training.normalise_latents(SMALL, start, mean, std)
    latents = jax.random.normal(jax.random.key(2), (1, 6, 5, 2))

    def inside(params, latents):
        x = torch.from_numpy(np.array(latents / SMALL.scale_factor + SMALL.shift_factor)).movedim(-1, 1)
        weights = (torch.from_numpy(np.array(params["decoder"]["conv_in"][k])) for k in ("kernel", "bias"))
        return torch.nn.functional.conv2d(x, *weights)

    np.testing.assert_allclose(inside(new, (latents - mean) / std), inside(start, latents), rtol=1e-4, atol=1e-4)


def test_decoding_is_unchanged_where_normalising_does_not_shift(start):
    std = jnp.array([0.5, 2.0])
    mean = SMALL.scale_factor * SMALL.shift_factor * (std - 1)  # keeps x = 0, the zero padding, at 0
    latents = jax.random.normal(jax.random.key(2), (1, 6, 5, 2))
    new = model.decode(SMALL, training.normalise_latents(SMALL, start, mean, std), (latents - mean) / std)
    np.testing.assert_allclose(new, model.decode(SMALL, start, latents), rtol=1e-3, atol=1e-4)


def test_measured_statistics_match_posterior_draws(start, pictures):
    quality = training.measure(SMALL, start, pictures)
    images = training.scale_pixels(pictures)
    mean, logvar = model.encode(SMALL, start, images)
    keys = jax.random.split(jax.random.key(3), 20)
    draws = jnp.stack([model.sample_posterior(mean, logvar, key) for key in keys])
    latents = np.asarray(model.latent_from_moments(SMALL, draws)).reshape(-1, SMALL.z_channels)
    np.testing.assert_allclose(quality.mean, latents.mean(0), atol=0.01 * quality.std.max())
    np.testing.assert_allclose(quality.std, latents.std(0), rtol=0.02)
    spread = SMALL.scale_factor * np.asarray(draws).std(0).reshape(-1, SMALL.z_channels)
    np.testing.assert_allclose(quality.posterior_std, np.sqrt((spread**2).mean(0) * 20 / 19), rtol=0.02)
    decoded = np.asarray(model.decode(SMALL, start, model.latent_from_moments(SMALL, mean))).clip(-1, 1)
    # In 8-bit values the peak is 255: the same ratio as 2 in [-1, 1].
    error = ((decoded + 1) * 127.5 - pictures.astype(np.float64)) ** 2
    np.testing.assert_allclose(quality.psnr, 10 * np.log10(255**2 / error.mean()), rtol=1e-4)


def test_a_loss_is_the_squared_error_plus_the_weighted_kl(start, pictures):
    key = jax.random.key(4)
    mean, logvar = model.encode(SMALL, start, training.scale_pixels(pictures))
    kl = float(training.gaussian_kl(mean, logvar).mean())
    plain, weighted = (float(training.compute_loss(SMALL, w, start, pictures, key)) for w in (0.0, 0.5))
    np.testing.assert_allclose(weighted - plain, 0.5 * kl, rtol=1e-4)
    latents = model.latent_from_moments(SMALL, model.sample_posterior(mean, logvar, key))
    error = (np.asarray(model.decode(SMALL, start, latents)) - (pictures / 127.5 - 1)) ** 2
    np.testing.assert_allclose(plain, error.mean(), rtol=1e-4)


def test_training_reconstructs_better_and_ends_with_normalised_latents(trained, start, pictures):
    untrained = training.measure(SMALL, start, pictures)
    quality = training.measure(SMALL, trained, pictures)
    assert quality.psnr > untrained.psnr + 3
    # The mean is exact to rounding only if the encoder was frozen after normalising; the variance, which was 1, lacks
    # the part of the posterior.
    np.testing.assert_allclose(quality.mean, 0, atol=1e-4)
    assert np.all(quality.std < 1 + 1e-4)
    np.testing.assert_allclose(quality.posterior_std, SMALL.scale_factor * training.POSTERIOR_STD, rtol=1e-3)


def test_latents_are_normalised_before_the_posterior_is_narrow(trained, pictures, monkeypatch):
    """The statistics are exact to rounding only if the encoder was frozen from then on."""
    monkeypatch.setattr(training, "narrow_posterior", lambda params: params)
    wide = training.train_autoencoder(SMALL, SETTINGS, pictures)
    quality = training.measure(SMALL, wide, pictures)
    np.testing.assert_allclose(quality.mean, 0, atol=1e-4)
    np.testing.assert_allclose(quality.std, 1, atol=1e-4)
    monkeypatch.undo()
    jax.tree.map(np.testing.assert_array_equal, training.narrow_posterior(wide), trained)


def test_a_narrow_posterior_keeps_its_mean(start, pictures):
    images = training.scale_pixels(pictures)
    before, after = (model.encode(SMALL, params, images) for params in (start, training.narrow_posterior(start)))
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(jnp.exp(after[1] / 2), training.POSTERIOR_STD, rtol=1e-5)


def test_training_is_deterministic(trained, pictures):
    again = training.train_autoencoder(SMALL, SETTINGS, pictures)
    jax.tree.map(np.testing.assert_array_equal, again, trained)


def test_divergence_names_the_step(pictures, start, monkeypatch):
    start = jax.tree.map(lambda x: x * jnp.nan, start)
    monkeypatch.setattr(training, "init_params", lambda config, key: start)
    with pytest.raises(training.DivergedError, match="loss is nan at step 0 of 30; lower learning_rate"):
        training.train_autoencoder(SMALL, SETTINGS, pictures)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"kl_weight": -1.0}, {"decoder_share": 1.0}]
)
def test_impossible_settings_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(SETTINGS, **change)


def test_written_weights_are_read_back_by_their_torch_names(start, tmp_path):
    path = tmp_path / "new" / "ae.safetensors"
    training.write_autoencoder(path, SMALL, start)
    assert [p.name for p in path.parent.iterdir()] == ["ae.safetensors"]
    stored = load_file(path)["decoder.mid.attn_1.proj_out.weight"]
    np.testing.assert_array_equal(stored, np.float16(start["decoder"]["mid"]["attn_1"]["proj_out"]["kernel"]))
    back = read_autoencoder(path.parent, SMALL)
    assert jax.tree.structure(back) == jax.tree.structure(start)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float16(b)), back, start)


def test_the_shipped_autoencoder_reconstructs_and_has_centred_latents():
    assert (shapes_folder() / "ae.safetensors").stat().st_size < 2_100_000
    params = read_autoencoder(shapes_folder(), SHAPES_AUTOENCODER)
    pictures = random_pictures(1, 100, 64)
    quality = training.measure(SHAPES_AUTOENCODER, params, pictures)
    assert quality.psnr > 35
    np.testing.assert_allclose(quality.mean, 0, atol=0.1)
    # Channels with little information have a wide posterior, and vary little without it.
    assert np.all((quality.std > 0.1) & (quality.std < 1.1)) and quality.std.max() > 0.9
    np.testing.assert_allclose(
        quality.posterior_std, SHAPES_AUTOENCODER.scale_factor * training.POSTERIOR_STD, rtol=0.01
    )


def test_the_shipped_decoder_tolerates_inexact_latents():
    """Noise of a tenth of the latents' standard deviation, like a generator's errors, costs little."""
    params = read_autoencoder(shapes_folder(), SHAPES_AUTOENCODER)
    pictures = random_pictures(1, 100, 64)
    mean, _ = model.encode(SHAPES_AUTOENCODER, params, training.scale_pixels(pictures))
    latents = model.latent_from_moments(SHAPES_AUTOENCODER, mean)
    noisy = latents + 0.1 * latents.std() * jax.random.normal(jax.random.key(0), latents.shape)
    decoded = np.asarray(model.decode(SHAPES_AUTOENCODER, params, noisy)).clip(-1, 1)
    error = np.square((decoded + 1) * 127.5 - pictures.astype(np.float64)).mean()
    assert 10 * np.log10(255**2 / error) > 30

"""Denoising: settings, the guidance interval, the number of evaluations, and the independence of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.config import ComputeConfig
from pdgen.flow.denoise import (
    Contexts,
    Denoiser,
    ImageSettings,
    advance,
    begin,
    count_evaluations,
    describe_guidance,
    estimate,
    find_idle_guidance,
    generate_latents,
)
from pdgen.flow.rectified import schedule
from pdgen.models.context import add_text, empty_cache
from tests.support.small import CONFIG, SWITCHES, shaken_params

COMPUTE = ComputeConfig(block_q=16, block_k=12)
ROWS, TOKENS = 4, 6


@pytest.mark.parametrize(
    "setting, rule",
    [
        ({"num_timesteps": 1}, "num_timesteps must be at least 2"),
        *(
            ({"timestep_shift": value}, r"timestep_shift must be within \[0.01, 100\]")
            for value in (0.0, 1e-42, 101.0, float("inf"), float("nan"))
        ),
        *(
            ({name: value}, "text_scale and image_scale must be at least 1 and at most 100")
            for name in ("text_scale", "image_scale")
            for value in (0.0, 0.5, 101.0, float("inf"), float("nan"))
        ),
        *(
            ({"interval": value}, r"interval must ascend within \[0, 1\]")
            for value in ((1.0, 0.4), (0.4, 0.4), (-0.1, 1.0), (0.4, 1.1), (float("nan"), 1.0), (0.4, float("inf")))
        ),
        ({"renorm": "local"}, "renorm must be one of global, channel, text_channel"),
        ({"renorm_min": float("nan")}, r"renorm_min must be within \[0, 1\]"),
        ({"renorm_min": 1.5}, r"renorm_min must be within \[0, 1\]"),
    ],
)
def test_settings_out_of_range(setting, rule):
    with pytest.raises(ValueError, match=rule):
        ImageSettings(**setting)


@pytest.mark.parametrize(
    "interval, steps",
    [
        ((0.0, 1.0), (0, 4)),
        ((0.5, 1.0), (0, 2)),  # the interval excludes its low end, t = 0.5
        ((0.25, 0.75), (1, 3)),  # and includes its high end
        ((0.4, 1.0), (0, 3)),
        ((0.8, 0.9), (0, 0)),
    ],
    ids=str,
)
def test_guidance_is_on_within_the_interval(interval, steps):
    """Timesteps 1, 3/4, 1/2, 1/4, 0 start four steps; on where low < t <= high."""
    settings = ImageSettings(num_timesteps=5, timestep_shift=1.0, interval=interval)
    assert settings.guided_steps == steps


@pytest.mark.parametrize("interval", [(0.4, 1.0), (0.1, 0.7)])
def test_guided_steps_of_the_default_schedule(interval):
    settings = ImageSettings(interval=interval)
    t = schedule(50, 3.0)[:-1]
    (guided,) = np.nonzero((t > interval[0]) & (t <= interval[1]))
    assert list(range(*settings.guided_steps)) == guided.tolist()


@pytest.mark.parametrize("shift", [0.01, 0.4, 100.0])
def test_guidance_begins_with_the_first_step_at_every_shift(shift):
    """Its timestep is 1; float32 makes 1.0000001 of it at a shift of 0.4."""
    assert np.isfinite(schedule(9, shift)).all() and (np.diff(schedule(9, shift)) < 0).all()
    assert ImageSettings(num_timesteps=9, timestep_shift=shift, interval=(0.5, 1.0)).guided_steps[0] == 0


def test_text_scale_of_one_is_no_guidance():
    assert ImageSettings(text_scale=1.0, image_scale=2.0).guided_steps == (0, 0)


def test_number_of_count_evaluations():
    """Four steps of which two are guided by one or two branches; with TaylorSeer only full steps count."""
    settings = ImageSettings(num_timesteps=5, timestep_shift=1.0, interval=(0.5, 1.0))
    assert count_evaluations(settings, image_guidance=False) == (4 + 2, 2)
    assert count_evaluations(settings, image_guidance=True) == (4 + 2 * 2, 2 * 2)
    assert [count_evaluations(settings, True, steps) for steps in (1, 2, 3)] == [(3, 2), (6, 4), (7, 4)]
    seer = ImageSettings(num_timesteps=25, text_scale=1.0, taylorseer=True)
    assert count_evaluations(seer, image_guidance=True) == (11, 0)


@pytest.fixture(scope="module")
def params():
    return shaken_params()


@pytest.fixture(scope="module")
def contexts(params):
    """Every row has a text of another length; the guidance views end earlier, and only some rows hold an image."""
    rng = np.random.default_rng(0)
    write = jax.jit(functools.partial(add_text, CONFIG, COMPUTE))
    ids = rng.integers(0, 60, (2, ROWS, 12), np.int32)
    full, image = (
        write(params, empty_cache(CONFIG, ROWS, 20), tokens, np.array(count, np.int32))[0]
        for tokens, count in zip(ids, ([12, 5, 9, 7], [4, 12, 1, 8]))
    )
    view = jnp.array([3, 5, 0, 6])
    return Contexts(full, view, view, image, jnp.array([True, False, True, False]))


@pytest.fixture(scope="module")
def noise():
    return jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, TOKENS, CONFIG.latent_dim)), jnp.float32)


POSITIONS = np.tile(np.arange(TOKENS, dtype=np.int32), (ROWS, 1))


def drawer(**settings):
    settings = ImageSettings(**{"num_timesteps": 9, "interval": (0.5, 1.0), **settings})
    denoiser = Denoiser(CONFIG, COMPUTE, settings, (SWITCHES.vision_start, SWITCHES.vision_end))
    return jax.jit(functools.partial(generate_latents, denoiser))


def take(contexts, rows):
    """Take some rows of contexts; only the caches' keys and values have the batch on axis 1."""
    return jax.tree.map(lambda leaf: leaf[:, rows] if leaf.ndim == 5 else leaf[rows], contexts)


@pytest.fixture(scope="module")
def guided():
    return drawer()


def test_rows_in_another_order(guided, params, contexts, noise):
    """Each row has the same latents, bit for bit: rows share no norm, tile or loop bound."""
    order = np.array([2, 0, 3, 1])
    latents = np.asarray(guided(params, contexts, noise, POSITIONS))
    moved = guided(params, take(contexts, order), noise[order], POSITIONS)
    np.testing.assert_array_equal(moved, latents[order])
    assert len({row.tobytes() for row in latents}) == ROWS


def test_a_row_alone(guided, params, contexts, noise):
    """The same as in its batch, up to the rounding of products of another shape."""
    latents = guided(params, contexts, noise, POSITIONS)
    alone = guided(params, take(contexts, slice(1, 2)), noise[1:2], POSITIONS[1:2])
    np.testing.assert_allclose(alone[0], latents[1], atol=2e-5)


def test_only_rows_with_an_image_see_the_image_branch(guided, params, contexts, noise):
    """Another cache without images changes rows 0 and 2, and no bit of the others."""
    latents = guided(params, contexts, noise, POSITIONS)
    other = contexts._replace(image=take(contexts.image, np.array([1, 0, 3, 2])))
    moved = np.any(np.asarray(latents != guided(params, other, noise, POSITIONS)), axis=(1, 2))
    np.testing.assert_array_equal(moved, contexts.has_image)


def test_taylorseer_stays_near(params, contexts, noise):
    """With two steps of three extrapolated the result differs from that of all steps, but the picture is the same."""
    plain, seer = (
        drawer(num_timesteps=25, text_scale=1.0, taylorseer=taylorseer)(params, contexts, noise, POSITIONS)
        for taylorseer in (False, True)
    )
    difference = np.abs(np.asarray(plain - seer)).max()
    assert 1e-6 < difference < 0.05 * np.abs(plain).max()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"text_scale": 1.0, "taylorseer": True, "num_timesteps": 12}], ids=str)
def test_stretches_equal_one_run(params, contexts, noise, settings):
    """Cut within the guided steps and within the others; the estimate between them follows the velocity."""
    settings = ImageSettings(**{"num_timesteps": 9, "interval": (0.5, 1.0), **settings})
    denoiser = Denoiser(CONFIG, COMPUTE, settings, (SWITCHES.vision_start, SWITCHES.vision_end))
    run = jax.jit(functools.partial(advance, denoiser), static_argnums=4)
    steps, t = settings.num_timesteps - 1, schedule(settings.num_timesteps, settings.timestep_shift)
    assert 2 < settings.guided_steps[1] < 7 or settings.text_scale == 1
    progress = begin(denoiser, noise, image_guidance=True)
    for stretch in ((0, 2), (2, 7), (7, steps)):
        before = progress
        progress = run(params, contexts, POSITIONS, before, stretch)
        # x0 = x_t - t v, and the last step went from t to the next timestep along v.
        first = np.asarray(progress.x) + (t[stretch[1] - 1] - t[stretch[1]]) * np.asarray(progress.v)
        clean = first - t[stretch[1] - 1] * np.asarray(progress.v)
        np.testing.assert_allclose(estimate(settings, progress, stretch[1]), clean, atol=1e-5)
    whole = run(params, contexts, POSITIONS, begin(denoiser, noise, image_guidance=True), (0, steps))
    np.testing.assert_allclose(progress.x, whole.x, atol=1e-5)
    np.testing.assert_array_equal(estimate(settings, progress, steps), progress.x)


@pytest.mark.parametrize(
    ("values", "alone", "after_images", "idle"),
    [
        ({}, "text 4 in 2 of 4 steps", "text 4 in 2 of 4 steps, image 1.5 in 2", ""),
        ({"image_scale": 1.0}, "text 4 in 2 of 4 steps", "text 4 in 2 of 4 steps", ""),
        ({"text_scale": 1.0}, "none", "none", ""),
        ({"text_scale": 1.0, "image_scale": 2.0}, "none", "none", "image_scale=2 has no effect, because text_scale=1"),
        ({"text_scale": 1.0, "image_scale": 1.0}, "none", "none", ""),
        ({"interval": (0.8, 0.9)}, "none", "none", "text_scale=4 and image_scale=1.5 have no effect, because none of"),
    ],
)
def test_applied_guidance_is_described(values, alone, after_images, idle):
    """Five timesteps without a shift: 1, 0.75, 0.5, 0.25, 0; the first two are above 0.5."""
    settings = ImageSettings(**{"num_timesteps": 5, "timestep_shift": 1.0, "interval": (0.5, 1.0)} | values)
    assert describe_guidance(settings, False) == alone
    assert describe_guidance(settings, True) == after_images
    found = find_idle_guidance(settings)
    assert found.startswith(idle) and bool(found) == bool(idle) and len(found) < 250

"""Rectified flow against its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.flow.rectified import draw_timesteps, interpolate, schedule, shift_timesteps, velocity_target


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_schedule(shift):
    """n points t_i = s u / (1 + (s - 1) u), u = 1 - i / (n - 1); from 1 to 0, falling."""
    t = schedule(9, shift)
    u = [1 - i / 8 for i in range(9)]
    np.testing.assert_allclose(t, [shift * x / (1 + (shift - 1) * x) for x in u], atol=1e-7)
    assert t.dtype == np.float32 and (t[0], t[-1]) == (1, 0) and (np.diff(t) < 0).all()


def test_a_shift_of_three():
    """1/2 becomes 3/4, 1/4 becomes 1/2: more steps near noise."""
    np.testing.assert_allclose(shift_timesteps(jnp.array([0.25, 0.5, 1.0]), 3.0), [0.5, 0.75, 1.0])


def test_path_and_velocity():
    """The path starts at the image, ends at the noise, and its slope is the target everywhere."""
    image, noise = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    ones = jnp.ones(5)
    np.testing.assert_allclose(interpolate(image, noise, 0 * ones), image)
    np.testing.assert_allclose(interpolate(image, noise, ones), noise)
    slope = (interpolate(image, noise, 0.75 * ones) - interpolate(image, noise, 0.25 * ones)) / 0.5
    np.testing.assert_allclose(slope, velocity_target(image, noise), atol=1e-6)


def test_drawn_timesteps():
    """sigmoid(normal), shifted; with the shift undone the logits have mean 0 and deviation 1."""
    t = np.asarray(draw_timesteps(jax.random.key(0), 20_000, 3.0), np.float64)
    unshifted = t / (3 - 2 * t)
    logits = np.log(unshifted / (1 - unshifted))
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.03

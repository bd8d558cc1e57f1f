"""TaylorSeer: which steps are full, and its extrapolation of functions with known differences."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.flow import taylor


def test_which_steps_are_full():
    """Steps 0-4, then every third; a distance is that to the last full step before."""
    full, distance, _ = taylor.plan(num_steps=24, guidance_start=0)
    assert np.flatnonzero(full).tolist() == [0, 1, 2, 3, 4, 7, 10, 13, 16, 19, 22]
    assert distance.tolist() == [1, 1, 1, 1, 1] + [1, 2, 3] * 6 + [1]


def test_how_many_differences_exist():
    """They start at step 4 and grow by one with every full step, up to the sixth."""
    full, _, known = taylor.plan(num_steps=30, guidance_start=0)
    assert known[full].tolist() == [[n, n] for n in (0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6, 6)]


def test_guidance_that_starts_later():
    """The branches' first step is full; their differences are counted from it."""
    full, distance, known = taylor.plan(num_steps=16, guidance_start=6)
    assert np.flatnonzero(full).tolist() == [0, 1, 2, 3, 4, 6, 9, 12, 15]
    assert distance[full].tolist() == [1, 1, 1, 1, 1, 2, 3, 3, 3]
    assert known[full].tolist() == [[0, 0]] * 4 + [[1, 0], [2, 0], [3, 1], [4, 2], [5, 3]]


def run(function, num_steps):
    """Return the differences after the last full step, and the guess of every skipped step."""
    full, distance, known = taylor.plan(num_steps, guidance_start=0)
    differences, guesses = jnp.zeros((taylor.ORDER + 1, 1, 1, 1)), {}
    for step in range(num_steps):
        if full[step]:
            output = jnp.full((1, 1, 1), function(step), jnp.float32)
            steps, orders = jnp.asarray(distance[step]), jnp.array([known[step, 0]])
            differences = taylor.update_differences(differences, output, steps, orders)
        else:
            guesses[step] = float(taylor.extrapolate(differences, jnp.asarray(distance[step]))[0, 0, 0])
    return np.asarray(differences)[:, 0, 0, 0], guesses


@pytest.mark.parametrize("function", [lambda s: 2.0, lambda s: 2.0 - 0.25 * s], ids=["constant", "linear"])
def test_straight_lines_are_continued_exactly(function):
    _, guesses = run(function, 24)
    assert len(guesses) == 13
    for step, guess in guesses.items():
        np.testing.assert_allclose(guess, function(step), rtol=1e-5)


def test_a_parabola_by_hand():
    """f = step^2. Step 4: D1 = 16 - 9 = 7. Step 7: D1 = (49 - 16) / 3 = 11, D2 = (11 - 7) / 3 = 4/3."""
    differences, guesses = run(lambda step: step**2, 10)
    np.testing.assert_allclose(differences, [49, 11, 4 / 3, 0, 0, 0, 0], rtol=1e-6)
    expected = {5: 16 + 7, 6: 16 + 2 * 7, 8: 49 + 11 + 4 / 3 / 2, 9: 49 + 2 * 11 + 4 * 4 / 3 / 2}
    assert guesses.keys() == expected.keys()
    for step, value in expected.items():
        np.testing.assert_allclose(guesses[step], value, rtol=1e-6)


def test_extrapolation_is_the_taylor_series():
    """exp from its derivatives at 0, which are all 1."""
    ones = jnp.ones((taylor.ORDER + 1, 1, 1, 1))
    expected = sum(2**i / math.factorial(i) for i in range(7))
    np.testing.assert_allclose(taylor.extrapolate(ones, jnp.int32(2)), np.full((1, 1, 1), expected), rtol=1e-6)


def test_tokens_of_different_branches_have_different_orders():
    before = jnp.zeros((taylor.ORDER + 1, 1, 2, 1))
    after = taylor.update_differences(before, jnp.ones((1, 2, 1)), jnp.int32(1), jnp.array([3, 0]))
    np.testing.assert_array_equal(after[:, 0, :, 0].T, [[1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])

"""Drawing a token: temperature, top-k, top-p."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.sample.text import TextSettings, pick

PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32)
ROWS = 4000


def shares(**settings):
    """Return how often each token is drawn from PROBABILITIES (and one forbidden token)."""
    logits = np.append(np.log(PROBABILITIES), -np.inf)[None].repeat(ROWS, 0)
    keys = jax.random.split(jax.random.key(0), ROWS)
    drawn = pick(TextSettings(**settings), jnp.asarray(logits), keys)
    return np.bincount(drawn, minlength=6) / ROWS


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0}, [0.05, 0.4, 0.1, 0.25, 0.2]),
        ({"temperature": 1e-3}, [0, 1, 0, 0, 0]),
        ({"temperature": 100.0}, [0.2] * 5),  # but for 2 % of it
        # p^2 / sum p^2
        ({"temperature": 0.5}, np.square(PROBABILITIES) / np.square(PROBABILITIES).sum()),
        ({"temperature": 1.0, "top_k": 2}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        ({"temperature": 1.0, "top_k": 99}, [0.05, 0.4, 0.1, 0.25, 0.2]),
        # 0.4 and 0.25 sum to 0.65, below 0.7; with 0.2 they exceed it.
        ({"temperature": 1.0, "top_p": 0.7}, [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]),
        ({"temperature": 1.0, "top_p": 0.39}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.7, "top_k": 2}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
    ],
)
def test_tokens_are_drawn_by_their_probabilities(settings, expected):
    found = shares(**settings)
    np.testing.assert_allclose(found, [*expected, 0], atol=0.03)
    assert ((found > 0) <= (np.append(expected, 0) > 0)).all()


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        *(
            ({"temperature": value}, r"temperature must be 0 or within \[0.001, 100\]")
            for value in (-0.1, 1e-42, 9e-4, 101.0, float("inf"), float("nan"))
        ),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k must be at least 0"),
    ],
)
def test_settings_out_of_range(settings, rule):
    with pytest.raises(ValueError, match=rule):
        TextSettings(**settings)

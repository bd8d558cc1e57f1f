"""Guidance against its formula, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.flow.guidance import RENORMS, guide

SCALES = (4.0, 2.0)
HAS_IMAGE = jnp.array([True, False, True])


@pytest.fixture
def velocities():
    """v, v_text, v_image: three rows of very different sizes, so that a norm over the batch is noticed."""
    rows = np.random.default_rng(0).normal(size=(3, 3, 4, 5)) * np.array([1, 10, 0.1])[:, None, None]
    return jnp.asarray(rows, jnp.float32)


def expected(row, has_image, renorm, renorm_min):
    """The formula for one row in plain numpy, the channel norms token by token."""
    v, v_text, v_image = np.asarray(row, np.float64)

    def factor(reference, g):
        return np.clip(np.linalg.norm(reference) / (np.linalg.norm(g) + 1e-8), renorm_min, 1)

    def per_token(g):
        return np.stack([token * factor(reference, token) for reference, token in zip(v, g)])

    g = v_text + SCALES[0] * (v - v_text)
    if renorm == "text_channel":
        g = per_token(g)
    if has_image:
        g = v_image + SCALES[1] * (g - v_image)
    return {"global": lambda: g * factor(v, g), "channel": lambda: per_token(g), "text_channel": lambda: g}[renorm]()


@pytest.mark.parametrize("renorm_min", [0.0, 0.5])
@pytest.mark.parametrize("renorm", RENORMS)
def test_every_row_is_guided_on_its_own(velocities, renorm, renorm_min):
    """By the formula; a row is the same alone and in a batch; rows without images take the text step only."""
    settings = {"scales": SCALES, "renorm": renorm, "renorm_min": renorm_min}
    guided = guide(*velocities, HAS_IMAGE, **settings)
    for row in range(3):
        own = velocities[:, row]
        np.testing.assert_allclose(guided[row], expected(own, HAS_IMAGE[row], renorm, renorm_min), rtol=1e-5, atol=1e-6)
        alone = guide(*own[:, None], HAS_IMAGE[row : row + 1], **settings)
        np.testing.assert_allclose(guided[row], alone[0], rtol=1e-6)


def test_without_image_guidance(velocities):
    v, v_text, _ = velocities
    settings = {"scales": SCALES, "renorm": "global", "renorm_min": 0.0}
    nowhere = guide(*velocities, jnp.zeros(3, bool), **settings)
    np.testing.assert_array_equal(guide(v, v_text, None, HAS_IMAGE, **settings), nowhere)


def test_scale_of_one_changes_nothing(velocities):
    guided = guide(*velocities, HAS_IMAGE, scales=(1.0, 1.0), renorm="global", renorm_min=0.0)
    np.testing.assert_allclose(guided, velocities[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("renorm", ["global", "channel"])
def test_norms_never_grow(velocities, renorm):
    """They shrink where the guided velocity is longer."""
    guided = np.asarray(
        jax.jit(guide, static_argnames=("scales", "renorm", "renorm_min"))(
            *velocities, HAS_IMAGE, scales=SCALES, renorm=renorm, renorm_min=0.0
        )
    )
    axes = (1, 2) if renorm == "global" else 2
    longest = np.sqrt((velocities[0] ** 2).sum(axes))
    norms = np.sqrt((guided**2).sum(axes))
    assert (norms <= longest * 1.00001).all()
    assert np.isclose(norms, longest).any()

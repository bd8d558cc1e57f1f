"""Every call in the tests checks annotations of pdgen."""

import os

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from pdgen.flow.rectified import interpolate, schedule
from pdgen.sequence.images import position_ids

pytestmark = pytest.mark.skipif(os.environ.get("PDGEN_CHECK_SHAPES") == "0", reason="the hook is off")


def test_a_wrong_shape_a_wrong_dtype_and_a_wrong_type_raise():
    """Each in a call that would otherwise return numbers."""
    image, t = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3))
    with pytest.raises(jaxtyping.TypeCheckError):
        interpolate(image, image[:, :1], t)  # numpy and jax would broadcast it
    with pytest.raises(jaxtyping.TypeCheckError):
        interpolate(image, image.astype(jnp.int32), t)
    with pytest.raises(jaxtyping.TypeCheckError):
        interpolate(image, np.zeros((2, 3, 4), np.float32), t)
    with pytest.raises(jaxtyping.TypeCheckError):
        position_ids((2, 3), "8")


def test_an_int_is_a_float():
    """As for type checkers."""
    assert schedule(5, 3).dtype == np.float32

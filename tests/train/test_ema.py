"""The moving average's closed form, and unbiased rounding to bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pdgen.sharding import make_mesh
from pdgen.train.ema import init_ema, round_stochastically, update_ema
from pdgen.train.optimizer import OptimizerConfig


def test_closed_form():
    """decay^n p0 + sum of (1 - decay) decay^(n - i) p_i."""
    config = OptimizerConfig(ema_decay=0.75)
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    ema = init_ema(config, {"w": values[0]})
    for step, value in enumerate(values[1:], start=1):
        ema = update_ema(config, ema, {"w": value}, jnp.int32(step))
    expected = 0.75**4 * values[0] + sum(0.25 * 0.75 ** (4 - i) * values[i] for i in range(1, 5))
    np.testing.assert_allclose(ema["w"], expected, rtol=1e-5)


def test_a_decay_of_0_keeps_no_average():
    config = OptimizerConfig()
    assert init_ema(config, {"w": np.ones(3)}) == {} == update_ema(config, {}, {"w": np.ones(3)}, jnp.int32(1))


def test_a_bfloat16_average_moves_where_rounding_to_the_nearest_would_not():
    """From 1 towards 1.5 by 1e-3 of the distance per step; the first step is a sixteenth of the gap after 1."""
    config = OptimizerConfig(ema_decay=0.999, ema_dtype="bfloat16")
    assert jnp.bfloat16(0.999 * 1 + 0.001 * 1.5) == 1
    params = {"w": jnp.full(4000, 1.5)}
    update = jax.jit(lambda ema, step: update_ema(config, ema, params, step))
    ema = init_ema(config, {"w": jnp.ones(4000)})
    for step in range(300):
        ema = update(ema, jnp.int32(step))
    assert ema["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(ema["w"]).mean(), 1.5 - 0.5 * 0.999**300, atol=2e-3)


@pytest.mark.parametrize("value", [0.3, -0.3, 1e-30, 1 + 2**-8, -1 - 2**-12])
def test_rounding_takes_a_neighbour_and_the_mean_is_the_value(value):
    x = jnp.full(100_000, value, jnp.float32)
    rounded = np.float64(round_stochastically(x, jax.random.key(1)))
    below, above = np.unique(rounded)
    assert below < x[0] < above and above - below <= 2**-7 * abs(value)
    deviation = 0.5 * (above - below) / np.sqrt(len(x))  # the mean's, at most
    np.testing.assert_allclose(rounded.mean(), np.float64(x[0]), rtol=0, atol=4 * deviation)


def test_bfloat16_numbers_are_not_changed():
    x = jnp.float32([0.0, -0.0, 1.0, -2.5, np.inf])
    np.testing.assert_array_equal(np.float32(round_stochastically(x, jax.random.key(0))), x)


def test_rounding_does_not_depend_on_the_mesh():
    x, key = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32), jax.random.key(0)
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
        rounded = jax.jit(round_stochastically)(split, key)
        assert rounded.sharding.is_equivalent_to(split.sharding, 2)
    np.testing.assert_array_equal(np.float32(rounded), np.float32(round_stochastically(jnp.asarray(x), key)))

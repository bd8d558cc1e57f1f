"""Which updates are spikes, and that a skipped update changes only the count and the averages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.train.spikes import DECAY, detect_spike, init_spike_state
from pdgen.train.state import make_state
from tests.support.small import shaken_params
from tests.train.cases import KEY, STEP, compile_step, make_batch


def detect_spikes(losses, grad_norms, factor=2.0):
    """Return whether each step is a spike, and the state after the last."""
    spikes, found = init_spike_state(factor), []
    for step, values in enumerate(zip(losses, grad_norms)):
        spike, spikes = detect_spike(factor, spikes, jnp.int32(step), *map(jnp.float32, values))
        found.append(bool(spike))
    return found, {name: float(value) for name, value in spikes.items()}


def test_factor_0_skips_none():
    assert init_spike_state(0.0) == {}


def test_spikes_of_loss_and_of_gradient():
    """The first step sets the average; 2 is not more than twice the average, 2.1 is."""
    found, after = detect_spikes([1, 1, 2.1, 1, 1], [5, 10, 5, 5, 11])
    assert found == [False, False, True, False, True]
    assert after["skipped"] == 2


def test_the_averages():
    """By hand: a spike of 100 counts as two averages."""
    _, after = detect_spikes([1, 1.5, 100], [1, 1, 1])
    second = DECAY * 1 + (1 - DECAY) * 1.5
    np.testing.assert_allclose(after["loss"], DECAY * second + (1 - DECAY) * 2 * second, rtol=1e-6)
    np.testing.assert_allclose(after["grad_norm"], 1, rtol=1e-6)


def test_a_loss_that_stays_high_is_accepted_eventually():
    found, _ = detect_spikes([1] + [3] * 60, [1] * 61)
    assert found[1:21] == [True] * 20 and not found[-1]
    assert sorted(found[1:], reverse=True) == found[1:]


@pytest.fixture(scope="module")
def step():
    """A function from the average loss and gradient norm to (state before, state after, metrics) of one step."""
    config = dataclasses.replace(STEP, spike_factor=2.0, optimizer=dataclasses.replace(STEP.optimizer, ema_decay=0.5))
    start = jax.jit(lambda params: make_state(config, params, jax.random.key(0)))
    first, batch, key = start(shaken_params()), make_batch(), jax.random.key(KEY)
    program = compile_step(config, first, batch, key)

    def run(average):
        averages = {"loss": jnp.float32(average), "grad_norm": jnp.float32(average), "skipped": jnp.int32(4)}
        before = dataclasses.replace(start(shaken_params()), step=jnp.int32(9), spikes=averages)
        copy = jax.tree.map(np.asarray, before)
        after, metrics = program(before, batch, key)
        return copy, jax.tree.map(np.asarray, after), metrics

    return run


@pytest.mark.slow
def test_a_skipped_update_changes_no_parameter(step):
    before, after, metrics = step(average=1.0)  # the loss is above 4
    for part in ("trained", "frozen", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(before, part))
    assert after.step == 10 and metrics["skipped_spikes"] == after.spikes["skipped"] == 5


def test_an_update_without_a_spike(step):
    before, after, metrics = step(average=10.0)
    name = ("language", "embed", "embedding")
    for part in ("trained", "ema"):
        old, new = getattr(before, part), getattr(after, part)
        for key in name:
            old, new = old[key], new[key]
        assert np.abs(new - old).max() > 1e-4
    assert after.step == 10 and metrics["skipped_spikes"] == 4

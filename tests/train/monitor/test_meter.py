"""Speed, waiting and the check for non-finite values, on a clock that tests advance."""

import types

import jax
import jax.numpy as jnp
import pytest

from pdgen.train.monitor import meter as module
from pdgen.train.monitor.meter import Meter, NotFiniteError


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    return clock


def metrics(loss=1.0, tokens=50.0, images=4.0, flops=1e12, **others):
    values = {"loss": loss, "tokens": tokens, "images": images, "flops": flops, "finite": bool(jnp.isfinite(loss))}
    return {name: jnp.asarray(value) for name, value in (values | others).items()}


def batches(clock, seconds):
    """Yield batches forever; each takes ``seconds``."""
    while True:
        clock.now += seconds
        yield "batch"


def test_the_first_step_is_not_timed(clock):
    meter = Meter(jax.devices()[:1])
    clock.now += 60  # compiling
    meter.add(1, metrics())
    line = meter.measure(1)
    assert not {"step_seconds", "tokens_per_second", "mfu", "data_wait"} & set(line)
    assert line["loss"] == 1 and line["step"] == 1 and line["memory_bytes"] > 2**20


def test_speed_and_waiting(clock):
    """Two steps of 4 s with 50 and 70 tokens, each with 1 s of waiting; then one without waiting."""
    meter, slow, quick = Meter(jax.devices()[:1]), batches(clock, 1.0), batches(clock, 0.0)
    meter.add(1, metrics())
    meter.measure(1)
    for step, tokens in ((2, 50.0), (3, 70.0)):
        meter.add(step, metrics(tokens=tokens))
        clock.now += 3
        assert meter.next_batch(slow) == "batch"
    line = meter.measure(3)
    assert (line["step_seconds"], line["tokens_per_second"], line["data_wait"]) == (4, 15, 0.25)
    assert line["images_per_second"] == 1  # 4 in each step
    meter.add(4, metrics())
    meter.next_batch(quick)
    clock.now += 5
    with meter.pause():
        clock.now += 1000
    assert (line := meter.measure(4))["tokens_per_second"] == 10 and line["data_wait"] == 0


def test_mfu_on_a_known_chip(clock, monkeypatch):
    """Two chips of 1e12 FLOP/s, 1e12 FLOPs in 5 s."""
    monkeypatch.setattr(module, "peak_flops", lambda kind: 1e12)
    meter = Meter(jax.devices()[:2])
    for step in (1, 2):
        meter.add(step, metrics())
    clock.now += 5
    assert meter.measure(2)["mfu"] == pytest.approx(0.1)
    assert not {"tokens", "flops", "finite"} & set(meter.measure(2))


def test_loading_during_a_step_is_not_waiting(clock):
    meter = Meter(jax.devices()[:1])
    meter.add(1, metrics())
    running = types.SimpleNamespace(is_ready=lambda: False)
    meter._last = {"loss": running}
    assert meter.next_batch(batches(clock, 5.0)) == "batch"
    assert meter._waited == 0


def test_the_first_step_that_is_not_finite_is_named():
    meter = Meter(jax.devices()[:1])
    for step, loss in ((5, 1.0), (6, float("nan")), (7, float("inf"))):
        meter.add(step, metrics(loss, grad_norm=2 * loss, ce=1.0))
    with pytest.raises(NotFiniteError, match=r"^step 6: grad_norm, loss not finite$") as caught:
        meter.check_finite()
    assert caught.value.step == 6


def test_steps_that_are_checked_are_counted_once(clock):
    """A save checks without logging; the next line still covers all its steps."""
    meter = Meter(jax.devices()[:1])
    for step in (1, 2, 3):
        meter.add(step, metrics())
        meter.check_finite()
    clock.now += 2
    assert meter.measure(3)["tokens_per_second"] == 50

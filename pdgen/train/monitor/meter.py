"""Measurements on the host: speed, waiting for data, memory. Only ``check_finite`` and ``measure`` fetch from devices.

step_seconds         time of a step
tokens_per_second    tokens of texts and images, without padding, over all devices
images_per_second    noised images; each draw of noise counts
mfu                  model FLOPs utilisation (``pdgen.train.monitor.flops``); absent for devices of unknown peak
data_wait            share of the time spent waiting for a batch while no step was running
memory_bytes         peak memory of one of the process's devices; on a CPU, of the process

All but the last are means since the previous measurement, without pauses. The clock starts when the first step of the
process ends, so that they exclude compilation.
"""

import contextlib
import resource
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, TypeVar

import jax

from pdgen.train.monitor.flops import peak_flops
from pdgen.train.monitor.metrics import Metrics, drop_absent

# Metrics that depend on timing, so they differ between equal runs.
TIMING_METRICS = ("step_seconds", "tokens_per_second", "images_per_second", "mfu", "data_wait", "memory_bytes")
_SUMMED = ("tokens", "images", "flops")
_FETCHED = ("finite", *_SUMMED)  # fetched for every step

T = TypeVar("T")


class NotFiniteError(ValueError):
    """A step's loss, gradients or parameters are not finite; the message names the step and the metrics.

    Attributes:
      step: number of the step.
    """

    def __init__(self, step: int, names: Sequence[str]) -> None:
        super().__init__(f"step {step}: {', '.join(names)} not finite")
        self.step = step


class Meter:
    """Collects the metrics of steps that run asynchronously.

    Args:
      devices: devices of the run, over all processes.

    Attributes:
      device_kind: kind of the devices.
      first_step: the first step of this process, which is not timed; None before it.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self.device_kind = devices[0].device_kind
        peak = peak_flops(self.device_kind)
        self._peak = peak and peak * len(devices)
        self._local = [device for device in devices if device.process_index == jax.process_index()]
        self._last: dict[str, Any] = {}
        self._unchecked: list[tuple[int, Metrics]] = []
        self._start = 0.0  # of the interval since the previous measurement, shifted by pauses
        self._steps, self._sums, self._waited = 0, dict.fromkeys(_SUMMED, 0.0), 0.0
        self.first_step: int | None = None

    def add(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of a step that was just dispatched, and wait for the end of the previous step.

        Waiting limits the devices to two steps in flight and three batches in memory.
        """
        jax.block_until_ready(self._last)
        self._last = metrics
        self._unchecked.append((step, metrics))
        if self.first_step is None:
            jax.block_until_ready(metrics)
            self.first_step, self._start = step, time.perf_counter()

    def next_batch(self, batches: Iterator[T]) -> T | None:
        """Return the next batch, None after the last. The time counts as waiting if no step is running at the end."""
        start = time.perf_counter()
        batch = next(batches, None)
        if self._last and self._last["loss"].is_ready():
            self._waited += time.perf_counter() - start
        return batch

    @contextlib.contextmanager
    def pause(self) -> Generator[None, None, None]:
        """Wait for the running steps, then exclude the time of the block from all measurements."""
        jax.block_until_ready(self._last)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def check_finite(self) -> None:
        """Raise NotFiniteError for the first step since the last check that is not finite."""
        fetched = jax.device_get([{name: metrics[name] for name in _FETCHED} for _, metrics in self._unchecked])
        for (step, metrics), values in zip(self._unchecked, fetched):
            if not values["finite"]:
                whole = jax.device_get(metrics)
                names = [name for name, value in whole.items() if not abs(value) < float("inf")]
                raise NotFiniteError(step, names)
            if step != self.first_step:
                self._steps += 1
                self._sums = {name: total + float(values[name]) for name, total in self._sums.items()}
        self._unchecked.clear()

    def measure(self, step: int) -> dict[str, Any]:
        """Return the metrics of ``step``, the last one added, and the measurements. Raises NotFiniteError."""
        self.check_finite()
        values = {name: value.item() for name, value in jax.device_get(self._last).items() if name not in _FETCHED}
        now = time.perf_counter()
        if self._sums["tokens"]:
            seconds = now - self._start
            rates = {name: total / seconds for name, total in self._sums.items()}
            values |= {
                "step_seconds": seconds / self._steps,
                "tokens_per_second": rates["tokens"],
                "images_per_second": rates["images"],
                "data_wait": self._waited / seconds,
            }
            if self._peak:
                values["mfu"] = rates["flops"] / self._peak
        self._start, self._steps, self._sums, self._waited = now, 0, dict.fromkeys(_SUMMED, 0.0), 0.0
        return {"step": step, **drop_absent(values), "memory_bytes": self._measure_memory()}

    def _measure_memory(self) -> int:
        stats = [device.memory_stats() for device in self._local]
        if all(stats):
            return max(each["peak_bytes_in_use"] for each in stats)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux

"""What is measured of a run on the host: speed, waiting for data, memory. Nothing is fetched but by ``check``.

step_seconds         time of a step
tokens_per_second    tokens of texts and images, without padding, over all devices
images_per_second    noised images, each draw of noise counted
mfu                  their FLOPs (``pdgen.train.monitor.flops``) over what the devices could do; absent for unknown ones
data_wait            share of the time in which a batch was waited for and no step was under way
memory_bytes         the most that one of the process's devices has held; on a CPU the process itself

All but the last are means since the line before, pauses left out. They begin when the first step of the process ends,
so compiling is no part of them.
"""

import contextlib
import resource
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, TypeVar

import jax

from pdgen.train.monitor.flops import peak_flops
from pdgen.train.monitor.metrics import Metrics, present

# Metrics that differ from run to run.
TIMED = ("step_seconds", "tokens_per_second", "images_per_second", "mfu", "data_wait", "memory_bytes")
_SUMMED = ("tokens", "images", "flops")
_CHECKED = ("finite", *_SUMMED)  # of every step

T = TypeVar("T")


class NotFiniteError(ValueError):
    """A step's loss, gradients or parameters are not finite; the line names the step and the metrics."""

    def __init__(self, step: int, names: Sequence[str]) -> None:
        super().__init__(f"step {step}: {', '.join(names)} not finite")
        self.step = step


class Meter:
    """Collects the metrics of steps that run asynchronously.

    Args:
      devices: that the run computes on, over all processes.

    Attributes:
      device: what kind they are.
      first: the first step of this process, which is not timed; None before it.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self.device = devices[0].device_kind
        peak = peak_flops(self.device)
        self._peak = peak and peak * len(devices)
        self._local = [device for device in devices if device.process_index == jax.process_index()]
        self._last: dict[str, Any] = {}
        self._unchecked: list[tuple[int, Metrics]] = []
        self._began = 0.0
        self._steps, self._sums, self._waited = 0, dict.fromkeys(_SUMMED, 0.0), 0.0
        self.first: int | None = None

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that has just been dispatched, and waits for the end of the one before.

        So two steps at most are under way, and no more batches than theirs and the next lie on the devices.
        """
        jax.block_until_ready(self._last)
        self._last = metrics
        self._unchecked.append((step, metrics))
        if self.first is None:
            jax.block_until_ready(metrics)
            self.first, self._began = step, time.perf_counter()

    def next_batch(self, batches: Iterator[T]) -> T | None:
        """The next batch, None after the last. The time counts as waiting if no step is under way when it comes."""
        began = time.perf_counter()
        batch = next(batches, None)
        if self._last and self._last["loss"].is_ready():
            self._waited += time.perf_counter() - began
        return batch

    @contextlib.contextmanager
    def paused(self) -> Generator[None, None, None]:
        """Time in here is not part of any step's; it begins when the steps under way have ended."""
        jax.block_until_ready(self._last)
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def check(self) -> None:
        """Raises NotFiniteError for the first step since the last check that is not finite."""
        fetched = jax.device_get([{name: metrics[name] for name in _CHECKED} for _, metrics in self._unchecked])
        for (step, metrics), values in zip(self._unchecked, fetched):
            if not values["finite"]:
                whole = jax.device_get(metrics)
                names = [name for name, value in whole.items() if not abs(value) < float("inf")]
                raise NotFiniteError(step, names)
            if step != self.first:
                self._steps += 1
                self._sums = {name: total + float(values[name]) for name, total in self._sums.items()}
        self._unchecked.clear()

    def line(self, step: int) -> dict[str, Any]:
        """What is logged of the last step. Raises NotFiniteError, see ``check``."""
        self.check()
        values = {name: value.item() for name, value in jax.device_get(self._last).items() if name not in _CHECKED}
        now = time.perf_counter()
        if self._sums["tokens"]:
            seconds = now - self._began
            rates = {name: total / seconds for name, total in self._sums.items()}
            values |= {
                "step_seconds": seconds / self._steps,
                "tokens_per_second": rates["tokens"],
                "images_per_second": rates["images"],
                "data_wait": self._waited / seconds,
            }
            if self._peak:
                values["mfu"] = rates["flops"] / self._peak
        self._began, self._steps, self._sums, self._waited = now, 0, dict.fromkeys(_SUMMED, 0.0), 0.0
        return {"step": step, **present(values), "memory_bytes": self._memory()}

    def _memory(self) -> int:
        stats = [device.memory_stats() for device in self._local]
        if all(stats):
            return max(each["peak_bytes_in_use"] for each in stats)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

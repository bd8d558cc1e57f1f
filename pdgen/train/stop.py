"""Stop signals: SIGTERM, which schedulers send before they end a job, and SIGINT."""

import signal
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start again to resume


class Stopped(Exception):
    """A signal stopped the run, which has saved its state; the message is one line for the user."""


class StopSignals:
    """A context manager that records the first SIGTERM or SIGINT; a second one ends the process at once.

    With several processes JAX's preemption service receives the SIGTERM of any of them, and all stop after the same
    step.
    """

    def __init__(self) -> None:
        self._name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if jax.process_count() == 1:
            self._previous = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def poll(self, step: int) -> str:
        """Return the signal's name if the run must stop after ``step``, else "". Call it at every step, everywhere."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return "SIGTERM"
        return self._name

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)

"""Signals that ask a run to save and leave: SIGTERM, as schedulers send it before they end a job, and SIGINT."""

import signal
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start again to go on


class Stopped(Exception):
    """The run has saved and left since a signal asked it to; one line says so."""


class StopSignals:
    """While entered, a first SIGTERM or SIGINT is only noted, and a second one ends the process at once.

    With several processes JAX's preemption service takes SIGTERM of any of them, and all leave after the same step.
    """

    def __init__(self) -> None:
        self._name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if jax.process_count() == 1:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> str:
        """The signal's name if the run is to leave after ``step``, else ""; every process calls it at every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return "SIGTERM"
        return self._name

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name
        for again in self._before:
            signal.signal(again, signal.SIG_DFL)

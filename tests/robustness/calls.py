"""Calls of readers as command lines make them: in this process, with limits, and with everything they print."""

import contextlib
import pathlib
import re
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import pytest

from pdgen.cli import MAX_LINE, run_command
from pdgen.sequence.images import ignore_warnings

_BAR = re.compile(r"^[^:]+: .*\[\d\d:\d\d[<,].*\]$")  # a progress bar
SECONDS = 20  # of CPU time; a longer call counts as hanging
MEMORY = 2**20  # KiB by which all calls together may grow the process


class _Overtime(BaseException):
    """A call took too long."""


class Outcome(NamedTuple):
    """Outcome of a call: its exit status, what it printed, and "" or why it is a fault."""

    status: int | None
    out: str
    err: str
    fault: str = ""


@contextlib.contextmanager
def _limit_time() -> Generator[None, None, None]:
    def stop(*_: Any) -> None:
        raise _Overtime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def call(read: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> Outcome:
    """Call ``read`` as ``pdgen.cli.run_command`` does, without arguments."""

    def run() -> None:
        read()

    argv, sys.argv = sys.argv, ["read"]
    status, fault = None, ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.resetwarnings()
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning):  # by every Python
            warnings.simplefilter("ignore", hidden)
        ignore_warnings()
        try:
            with _limit_time():
                run_command(run)
        except SystemExit as end:
            status = 0 if end.code is None else end.code
        except _Overtime:
            fault = f"took more than {SECONDS} s"
        except BaseException as error:
            fault = f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            sys.argv = argv
    out, err = capfd.readouterr()
    fault = fault or "; ".join(f"{w.category.__name__}: {w.message}" for w in warned)
    return Outcome(status, out, err, fault)


def find_fault(outcome: Outcome, names: Iterable[str], notes: tuple[str, ...] = ()) -> str:
    """Return what is wrong with the outcome of a call, or "".

    Args:
      outcome: the outcome of a call.
      names: a line of a fault has at least one of these names.
      notes: parts of pdgen's own lines that may precede it.
    """
    if outcome.fault:
        return outcome.fault
    lines = [line for line in outcome.err.splitlines() if line.strip() and not any(part in line for part in notes)]
    lines = [line for line in lines if not _BAR.search(line)]
    if outcome.status == 0:
        return f"printed {lines}" if lines else ""
    if outcome.status != 2 or len(lines) != 1:
        return f"status {outcome.status} with {lines}"
    if len(lines[0]) > MAX_LINE or not any(name in lines[0] for name in names):
        return f"{len(lines[0])} characters, or none of {list(names)}: {lines[0]}"
    return ""


def survey(
    file: pathlib.Path,
    mutated: Iterable[tuple[str, bytes]],
    read: Callable[[], Any],
    capfd: pytest.CaptureFixture[str],
    names: Iterable[str] = (),
    notes: tuple[str, ...] = (),
) -> dict[int, int]:
    """Write every mutation to ``file`` and call ``read``; fail with all faults.

    Args:
      file: the file that ``read`` reads, in a folder of its own.
      mutated: names and bytes of the mutations.
      read: the reader.
      capfd: pytest's fixture.
      names: names of which a line of a fault has one, besides the file's.
      notes: see ``find_fault``.

    Returns:
      The number of calls by exit status.
    """
    whole, faults, counts, names = file.read_bytes(), [], {0: 0, 2: 0}, (file.name, *names)
    assert call(read, capfd).status == 0, "the file without damage is not read"
    before, memory = sorted(file.parent.rglob("*")), _peak()
    for name, data in mutated:
        file.write_bytes(data)
        outcome = call(read, capfd)
        fault = find_fault(outcome, names, notes)
        after = sorted(file.parent.rglob("*"))
        if after != before:
            fault += f"; left {set(after) ^ set(before)}"
            before = after
        if fault:
            faults.append(f"{name}: {fault}")
        elif outcome.status is not None:
            counts[outcome.status] += 1
    file.write_bytes(whole)
    if (grown := _peak() - memory) > MEMORY:
        faults.append(f"the process grew by {grown:,} KiB")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)
    return counts


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

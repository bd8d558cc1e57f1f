"""Runs of several processes, started by a scheduler on the hosts of a pod, or by hand."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from pdgen.files import log_stderr, shorten_fault
from pdgen.train.run_config import RunError

_LINE, _STOPPED = 1024, "\N{END OF TEXT}"  # bytes of a line between processes; the line after a signal
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_Result = TypeVar("_Result")


def join_processes() -> None:
    """Connect this process to the others of its job (``jax.distributed``).

    Slurm, Kubernetes or MPI give its number. Processes that are started by hand, for instance over SSH, have it in
    their environment: ``JAX_COORDINATOR_ADDRESS`` (HOST:PORT of process 0), ``JAX_NUM_PROCESSES`` and
    ``JAX_PROCESS_ID``. Call it before anything else uses JAX's devices.

    Raises:
      RunError: a variable is missing or invalid, no scheduler is detected, or the other processes do not connect.
    """
    given = read_environment(os.environ)
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as fault:
        reason = " ".join(str(fault).split())[:100]
        raise RunError(
            f"--distributed: the job's processes were not found ({reason}); start them with srun or as an indexed "
            f"Kubernetes job (launch/slurm, launch/k8s), give each {', '.join(_VARIABLES)}, or leave --distributed out"
        ) from None


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Read the arguments of ``jax.distributed.initialize`` from variables, {} if a scheduler has to give them.

    JAX itself reads only the address, which schedulers' scripts also set. So the other two tell that a process was
    started by hand.

    Raises:
      RunError: one of three variables is missing or invalid.
    """
    address, count, number = (environment.get(name, "") for name in _VARIABLES)
    if not (count or number):
        return {}
    if missing := [name for name in _VARIABLES if not environment.get(name)]:
        raise RunError(f"--distributed: {missing[0]} is missing in the environment; set all of {', '.join(_VARIABLES)}")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise RunError(f"--distributed: {_VARIABLES[0]}={address}: expected HOST:PORT of process 0")
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise RunError(
            f"--distributed: {_VARIABLES[1]}={count} and {_VARIABLES[2]}={number}: expected a number of processes and "
            "one of 0, 1, ... below it"
        )
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(number)}


def print_once(line: str) -> None:
    """Print the line in the first process only.

    If standard output cannot be written, because its disk is full or its reader has gone, this line and all later ones
    are lost, and standard error says so once. The work continues.
    """
    if jax.process_index():
        return
    try:
        print(line, flush=True)
    except OSError as fault:
        # What is left in the buffer would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(OSError):
            log_stderr(f"standard output: cannot be written ({shorten_fault(fault)}); the work continues without it")


def gather_lines(line: str) -> list[str]:
    """Return the line of every process, each at most 1,024 bytes. Every process must call it."""
    if jax.process_count() == 1:
        return [line]
    padded = np.frombuffer(line.encode()[:_LINE].ljust(_LINE, b"\0"), np.uint8)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(padded)]


def synchronize(step: Callable[[], _Result]) -> _Result:
    """Call ``step`` and return its result when every process has finished its own.

    Raises:
      ValueError: another process failed, with its message. The process's own error is raised unchanged.
      KeyboardInterrupt: a process received a signal.
    """
    result: Any = None
    own = None
    try:
        result = step()
    except BaseException as fault:  # any error: the other processes would wait for ever
        own = fault
    message = "" if own is None else _STOPPED if isinstance(own, KeyboardInterrupt) else str(own) or repr(own)
    lines = gather_lines(message)
    if own is not None:
        raise own
    for line in filter(None, lines):
        raise KeyboardInterrupt if line == _STOPPED else ValueError(line)
    return result

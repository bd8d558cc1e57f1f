"""Runners of shards: in this process, in processes of this machine, or on a Ray cluster.

A runner maps a picklable function over its arguments and yields the results as they are finished, in any order. The
runner of this process is ``map``.
"""

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class RunnerError(ValueError):
    """Work that cannot be distributed, or a lost worker. The message is one line with the remedy."""


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_worker_environment() -> dict[str, str]:
    """Return the variables of a worker with one thread, so that one worker per core is efficient.

    Libraries read them when they are loaded. Other XLA flags stay: code of other optimisations gives other bits.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    return {"XLA_FLAGS": flags.strip(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}


@contextlib.contextmanager
def _set_environment(changes: Mapping[str, str]) -> Generator[None, None, None]:
    """Set environment variables for the processes that are started in this context."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _exit_with_parent(lifeline: Connection) -> None:
    """Exit this worker when the parent closes the other end of the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_in_processes(workers: int, function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """Run in ``workers`` processes of this machine, which exit as soon as this process ends.

    Raises:
      RunnerError: a worker was lost.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=_exit_with_parent, initargs=(theirs,)
    )
    try:
        with _set_environment(_make_worker_environment()):
            futures = [pool.submit(function, item) for item in items]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise RunnerError(
            "a worker process was lost, most often because memory ran out; run again with fewer --workers"
        ) from None
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


def run_on_ray(function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """Run on the Ray cluster of ``RAY_ADDRESS`` or of this machine; if there is none, start one.

    All machines of the cluster need this package and the output folder at the same path.

    Raises:
      RunnerError: Ray is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise RunnerError("the ray runner needs Ray: pip install 'pdgen[cluster]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send usage statistics
    ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": _make_worker_environment()})
    try:
        remote = ray.remote(_call)
        waiting = [remote.remote(function, item) for item in items]
        while waiting:
            (done,), waiting = ray.wait(waiting)
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as fault:
                raise fault.cause from None
    finally:
        ray.shutdown()


def _call(function: Callable[[In], Out], item: In) -> Out:
    return function(item)

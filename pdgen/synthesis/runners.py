"""Where shards are made: in this process, in processes of this machine, or on a Ray cluster.

All take a picklable function and its arguments and give its results as they come, in any order.
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

# One worker is one thread, so that as many run side by side as there are cores. Libraries read these when loaded.
_ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}


class RunnerError(ValueError):
    """Work cannot be shared out, or a worker was lost; the line names the remedy."""


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_serial(function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """One after the other in this process."""
    return map(function, items)


@contextlib.contextmanager
def _set_environment(changes: Mapping[str, str]) -> Generator[None, None, None]:
    """Sets variables of the environment for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _exit_with_parent(lifeline: Connection) -> None:
    """In a worker: it leaves when the parent closes the other end, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_in_processes(workers: int, function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """In ``workers`` processes of this machine, which leave at once when this one does, however it ends.

    Raises:
      RunnerError: a worker was lost.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=_exit_with_parent, initargs=(theirs,)
    )
    try:
        with _set_environment(_ONE_THREAD):
            futures = [pool.submit(function, item) for item in items]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise RunnerError(
            "a worker process was lost, most often for want of memory: start again, with fewer --workers"
        ) from None
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


def run_on_ray(function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """On the Ray cluster that ``RAY_ADDRESS`` names or that runs on this machine; otherwise one is started here.

    Every machine of the cluster needs this package installed and the output folder mounted at the same path.

    Raises:
      RunnerError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise RunnerError("the ray runner needs Ray: pip install 'pdgen[cluster]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": _ONE_THREAD})
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

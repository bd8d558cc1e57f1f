"""Compiling ahead of the first call, so that compile time and sampling time are measured apart."""

import pathlib
import time
from collections.abc import Hashable
from typing import Any

import jax

from pdgen.files import cache_folder

# On a CPU, LLVM's optimisation takes two thirds of the compile time. Without it the code is three times slower.
_QUICK = {"xla_backend_optimization_level": "0"}
# XLA has at most two such copies under way at a time, unless it is asked for more. A layer has a dozen parameters: it
# would wait for nearly all of the next layer's before it computes.
COPY_AHEAD = {"xla_gpu_experimental_parallel_async_compute_limit": "64"}
_CACHE_OPTION = "jax_compilation_cache_dir"


class Compiler:
    """Calls jitted functions; compiles each once for every set of static arguments and shapes.

    Args:
      quick: on a CPU, compile three times faster; the code then runs three times slower. No effect elsewhere.
      copy_ahead: on a GPU, let a whole layer be copied from host memory while another computes. No effect elsewhere.

    Attributes:
      seconds: total compile time so far, with tracing and lowering.
    """

    def __init__(self, quick: bool = False, copy_ahead: bool = False) -> None:
        self.seconds = 0.0
        wanted = {"cpu": _QUICK if quick else None, "gpu": COPY_AHEAD if copy_ahead else None}
        self._options = wanted.get(jax.default_backend())
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}

    def __call__(self, function: Any, static: tuple[Hashable, ...], *args: Any) -> Any:
        """Return ``function(*static, *args)``.

        Args:
          function: from ``jax.jit``; ``static`` are its first arguments and its only static ones.
          args: pytrees of jax and numpy arrays.
        """
        leaves, tree = jax.tree.flatten(args)
        key = (function, static, tree, tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves))
        if key not in self._compiled:
            start = time.perf_counter()
            self._compiled[key] = function.lower(*static, *args).compile(self._options)
            self.seconds += time.perf_counter() - start
        return self._compiled[key](*args)


class Stopwatch:
    """Measures the seconds since its creation; the compile time of ``compiler`` is separate."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler, self._start, self._compile_start = compiler, time.perf_counter(), compiler.seconds

    @property
    def compiling(self) -> float:
        """Seconds of compilation since the start."""
        return self._compiler.seconds - self._compile_start

    @property
    def seconds(self) -> float:
        """All other seconds since the start."""
        return time.perf_counter() - self._start - self.compiling


def keep_compiled() -> pathlib.Path:
    """Make XLA keep compiled code in the user's cache folder, for later processes; return that folder.

    A folder that JAX has already (``JAX_COMPILATION_CACHE_DIR``) stays.
    """
    if jax.config.values[_CACHE_OPTION] is None:
        jax.config.update(_CACHE_OPTION, str(cache_folder() / "xla"))
    return pathlib.Path(jax.config.values[_CACHE_OPTION])

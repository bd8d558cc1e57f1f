"""Compiling ahead of the first call, so that compile time and sampling time are known apart."""

import pathlib
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax

from pdgen.files import cache_folder

# On a CPU, LLVM's optimisation takes two thirds of the time that compiling takes. Without it the code is three times
# slower.
_QUICK = {"xla_backend_optimization_level": "0"}


class Compiler:
    """Calls jitted functions; each is compiled once for every set of static arguments and shapes.

    Args:
      quick: on a CPU, compile three times sooner what then runs three times slower. Elsewhere it does nothing.

    Attributes:
      seconds: what compiling has taken so far, tracing and lowering included.
    """

    def __init__(self, quick: bool = False) -> None:
        self.seconds = 0.0
        self._options = _QUICK if quick and jax.default_backend() == "cpu" else None
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}

    def __call__(self, function: Callable, static: tuple[Hashable, ...], *args: Any) -> Any:
        """``function(*static, *args)``.

        Args:
          function: from ``jax.jit``; ``static`` are its first arguments and its only static ones.
          args: pytrees of jax and numpy arrays.
        """
        leaves, tree = jax.tree.flatten(args)
        key = (function, static, tree, tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves))
        if key not in self._compiled:
            began = time.perf_counter()
            self._compiled[key] = function.lower(*static, *args).compile(self._options)
            self.seconds += time.perf_counter() - began
        return self._compiled[key](*args)


class Stopwatch:
    """Tells the seconds since it was made, without those that ``compiler`` has spent compiling."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler, self._began, self._compiled = compiler, time.perf_counter(), compiler.seconds

    @property
    def compiling(self) -> float:
        """Seconds spent compiling since the watch was made."""
        return self._compiler.seconds - self._compiled

    @property
    def seconds(self) -> float:
        """All other seconds since."""
        return time.perf_counter() - self._began - self.compiling


def keep_compiled() -> pathlib.Path:
    """Keeps what XLA compiles in the user's cache folder, for later processes; returns that folder.

    A folder that JAX was told of (``JAX_COMPILATION_CACHE_DIR``) stays.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    return pathlib.Path(jax.config.jax_compilation_cache_dir)

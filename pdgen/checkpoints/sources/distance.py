"""How far two sets of weights are apart, measured while one of them is read."""

import math
import threading
from collections.abc import Mapping

import numpy as np

from pdgen.checkpoints import stream
from pdgen.checkpoints.mapping import Place
from pdgen.checkpoints.sources.tensors import StoredTensor, module_of

_COUNT = 2**20  # values that a thread compares at a time


class Distance:
    """The relative distance of two sets of weights, |a - b| / |b|, by module. Threads may add to it concurrently."""

    def __init__(self, left: Mapping[str, StoredTensor], right: Mapping[str, StoredTensor]):
        self._left, self._right = left, right
        self._squares: dict[str, np.ndarray] = {}  # by module: of the difference, of the right side
        self._lock = threading.Lock()

    def watch(self, read: stream.Read) -> stream.Read:
        """Return a ``read`` that also compares the stored values of both sides, where they have the same shape."""

        def watched(place: Place, start: int, rows: np.ndarray) -> None:
            read(place, start, rows)
            left, right = self._left.get(place.name), self._right.get(place.name)
            if left is None or right is None or left.shape != right.shape:
                return
            begin, squares = start * math.prod(place.slot[1:]), np.zeros(2)
            for offset in range(begin, begin + rows.size, _COUNT):
                a, b = np.empty((2, min(_COUNT, begin + rows.size - offset)))  # float64
                left.read(offset, a)
                right.read(offset, b)
                a -= b
                squares += np.dot(a, a), np.dot(b, b)
            with self._lock:
                module = module_of(place.name)
                self._squares[module] = self._squares.get(module, 0.0) + squares

        return watched

    def text(self) -> str:
        """Return the distance as text, such as "1.2e-03 (language_model 1.3e-03, connector 0)"."""
        modules = ", ".join(f"{name} {_format_ratio(*squares)}" for name, squares in sorted(self._squares.items()))
        return f"{_format_ratio(*sum(self._squares.values(), np.zeros(2)))} ({modules})"


def _format_ratio(difference: float, norm: float) -> str:
    """Format the square root of the quotient of two squares: 0 if both are 0, inf if only ``norm`` is."""
    if not difference:
        return "0"
    return f"{math.sqrt(difference / norm):.1e}" if norm else "inf"

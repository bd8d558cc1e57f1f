"""A saved step of a training run, with its parameters as lazy arrays."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
import tensorstore as ts
from flax import traverse_util

from pdgen.checkpoints.arrays import first_cause
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import array_shapes
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, CONFIG_FILE, is_run
from pdgen.config import ModelConfig
from pdgen.json_text import decode_json
from pdgen.models.lora import merge

Weights = Literal["raw", "ema"]
Index = int | tuple[slice, ...]
_PARTS: dict[Weights, str] = {"raw": "trained", "ema": "ema"}  # of a saved state


class _Lora(msgspec.Struct, frozen=True):
    rank: int = 0
    alpha: float = 16.0


class _Optimizer(msgspec.Struct, frozen=True):
    ema_decay: float = 0.0


class RunFacts(msgspec.Struct, frozen=True):
    """The keys of a run's config that reading its parameters needs; see ``pdgen.train.run_config.RunConfig``."""

    init: str = ""
    model: str = "nano"
    lora: _Lora = _Lora()
    optimizer: _Optimizer = _Optimizer()


def read_facts(workdir: pathlib.Path) -> RunFacts:
    """Read the facts of the run in ``workdir``. Raises CheckpointError if its config cannot be read."""
    path = workdir / CONFIG_FILE
    try:
        return decode_json(path.read_bytes(), RunFacts)
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{path}: cannot be read ({' '.join(str(fault).split())})") from None


def is_step(path: pathlib.Path) -> bool:
    """Return whether ``path`` is a saved step of a training run, ``WORKDIR/checkpoints/STEP``."""
    path = path.absolute()
    return path.name.isdecimal() and path.parent.name == CHECKPOINTS and is_run(path.parent.parent) and path.is_dir()


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array on disk that indexing reads; ``array[layer]`` reads one layer."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    def __getitem__(self, index: Index) -> np.ndarray:
        return self.read(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read((slice(None),) * len(self.shape)), dtype)


def open_params(config: ModelConfig, facts: RunFacts, folder: pathlib.Path, weights: Weights) -> dict[str, Any]:
    """Return the model's tree of ``LazyArray`` from the ``folder`` of a step, adapters merged.

    Raises:
      CheckpointError: an array is missing or has another shape, or the run keeps no average.
    """
    adapters = open_adapters(config, facts, folder, weights)
    leaves = {}
    for name, shape in array_shapes(config, ("model",)).items():
        name = name.removeprefix("model/")
        frozen = _array_path(folder, "frozen", name)
        leaves[name] = _open_array(frozen if frozen.is_dir() else _array_path(folder, _PARTS[weights], name), shape)
        if name in adapters:
            read = functools.partial(_read_merged, facts.lora.alpha / facts.lora.rank, (leaves[name], *adapters[name]))
            leaves[name] = dataclasses.replace(leaves[name], read=read)
    return traverse_util.unflatten_dict(leaves, sep="/")


def open_adapters(
    config: ModelConfig, facts: RunFacts, folder: pathlib.Path, weights: Weights
) -> dict[str, tuple[LazyArray, LazyArray]]:
    """Return A [L, r, i..] and B [L, o.., r] of every adapted kernel, by its "/"-joined name; {} without LoRA.

    Errors are those of ``open_params``.
    """
    if weights == "ema" and not facts.optimizer.ema_decay:
        raise CheckpointError(
            f"{folder.parent.parent}: the run keeps no moving average (optimizer.ema_decay is 0); take --weights=raw"
        )
    found = {}
    for name in array_shapes(config, ("model",)) if facts.lora.rank else ():
        name = name.removeprefix("model/")
        a, b = (_array_path(folder, _PARTS[weights], f"{name}/{factor}") for factor in "ab")
        if a.is_dir():
            found[name] = _open_array(a), _open_array(b)
    return found


def _array_path(folder: pathlib.Path, part: str, name: str) -> pathlib.Path:
    return folder / f"{part}/{name}".replace("/", ".")


def _read_merged(scale: float, factors: tuple[LazyArray, LazyArray, LazyArray], index: Index) -> np.ndarray:
    """Read a part of an adapted kernel, always layer by layer, so that its bits do not depend on the part."""
    kernel, a, b = factors
    if isinstance(index, int):
        return _merge(scale, *(stored[index] for stored in factors))
    if len(a.shape) + len(b.shape) - 2 == len(kernel.shape):  # no axis of layers
        return _merge(scale, *map(np.asarray, factors))[index]
    layers = [_read_merged(scale, factors, layer) for layer in range(*index[0].indices(kernel.shape[0]))]
    return np.stack(layers)[(slice(None), *index[1:])]


def _merge(scale: float, kernel: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(merge({"kernel": kernel}, {"kernel": {"a": a, "b": b}}, scale)["kernel"])


def _open_array(path: pathlib.Path, shape: tuple[int, ...] | None = None) -> LazyArray:
    kvstore = {"driver": "file", "path": str(path.absolute())}
    spec = {"driver": "zarr3", "kvstore": kvstore, "fill_missing_data_reads": False}
    try:
        array = ts.open(spec, open=True, read=True).result()
    except ValueError as fault:
        raise CheckpointError(f"{path}: cannot be opened ({first_cause(fault)})") from None
    if shape is not None and array.shape != shape:
        raise CheckpointError(
            f"{path}: is {list(array.shape)}, expected {list(shape)}; the checkpoint is of another model"
        )
    return LazyArray(array.shape, array.dtype.numpy_dtype, lambda index: array[index].read().result())

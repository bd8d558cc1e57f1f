"""A tree of arrays on disk in Orbax's format, one Zarr 3 array for each leaf, read and written by layers.

Each file of an array has one layer or a part of one, so a tree can be written layer by layer. A file consists of
chunks of at most 1 MiB, each with a CRC-32C. So a device reads little more than its shard, and a restore fails if a
byte is damaged.
"""

import json
import math
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import Place
from pdgen.checkpoints.stream import block_rows
from pdgen.files import to_os_error
from pdgen.messages import name_some

_CHUNK_BYTES = 2**20
# A killed run leaves no manifest, so waiting for each file to reach the disk would gain nothing.
_CONTEXT = {"file_io_sync": False}


def chunk_shapes(slot: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of the part of one layer's array in a file, and of the chunks within that file.

    The longest axis is halved (rounding up) until a chunk has at most 1 MiB. A file consists of complete chunks, so it
    may extend beyond the array's end.
    """
    chunk = list(slot)
    while math.prod(chunk) * itemsize > _CHUNK_BYTES:
        longest = chunk.index(max(chunk))
        chunk[longest] = -(-chunk[longest] // 2)
    whole = [-(-size // part) * part for size, part in zip(slot, chunk, strict=True)]
    rows = block_rows(slot, itemsize) // chunk[0] * chunk[0]
    return (min(max(rows, chunk[0]), whole[0]), *whole[1:]), tuple(chunk)


def _spec(folder: pathlib.Path, path: str) -> dict[str, Any]:
    location = str(folder / path.replace("/", "."))
    # Chunks of zeros are stored too, so a missing chunk means damage.
    chunks = {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": location}, "context": _CONTEXT} | chunks


def _metadata(leaf: jax.ShapeDtypeStruct, stacked: bool) -> dict[str, Any]:
    file, chunk = chunk_shapes(leaf.shape[stacked:], leaf.dtype.itemsize)
    one = (1,) * stacked
    checked = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    parts = {"chunk_shape": [*one, *chunk], "codecs": checked, "index_codecs": checked}
    return {
        "shape": list(leaf.shape),
        "data_type": leaf.dtype.name,
        "fill_value": 0 if leaf.dtype == np.int8 else 0.0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*one, *file]}},
        "codecs": [{"name": "sharding_indexed", "configuration": parts}],
    }


def _write_tree_metadata(folder: pathlib.Path, paths: Iterable[str]) -> None:
    """Write Orbax's description of a tree, with which Orbax restores arrays that it did not save."""
    tree = {}
    for path in paths:
        keys = path.split("/")
        tree[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],  # 2: the key of a dict
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    options = {"use_ocdbt": False, "use_zarr3": True, "store_array_data_equal_to_fill_value": True}
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": tree} | options))


class Arrays:
    """The open arrays of one tree. Rows are counted along axis 0 of a place's slot.

    Threads may call ``read`` and ``write`` concurrently.
    """

    def __init__(self, folder: pathlib.Path, arrays: Mapping[str, ts.TensorStore]):
        self._folder, self._arrays = folder, arrays

    def _slot(self, place: Place) -> ts.TensorStore:
        array = self._arrays[place.path]
        return array if place.layer is None else array[place.layer]

    def read(self, place: Place, start: int, rows: np.ndarray) -> None:
        """Read rows from ``start`` on into ``rows``. Raises CheckpointError if they are damaged or missing."""
        try:
            ts.array(rows).write(self._slot(place)[start : start + rows.shape[0]]).result()
        except ValueError as fault:
            raise CheckpointError(f"{self._folder}: {place.name} is damaged ({first_cause(fault)})") from None

    def write(self, place: Place, start: int, rows: np.ndarray) -> None:
        """Write ``rows`` from row ``start`` on, which is the first of a file of ``chunk_shapes``. Raises OSError."""
        try:
            self._slot(place)[start : start + rows.shape[0]].write(rows).result()
        except ValueError as fault:  # TensorStore raises no other class; the system's error is in its text
            raise to_os_error(fault, self._folder, first_cause(fault)) from None


def first_cause(fault: BaseException) -> str:
    """Return the first cause of an error in one line, without TensorStore's source locations."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    return " ".join(str(fault).split(" [source locations")[0].split())


def create_arrays(folder: pathlib.Path, leaves: Mapping[str, jax.ShapeDtypeStruct], stacked: Collection[str]) -> Arrays:
    """Create ``folder`` with the arrays of a tree, by path; axis 0 of the ``stacked`` ones counts layers.

    Raises OSError.
    """
    folder.mkdir()
    _write_tree_metadata(folder, leaves)
    opened = {
        path: ts.open(_spec(folder, path) | {"metadata": _metadata(leaf, path in stacked)}, create=True)
        for path, leaf in leaves.items()
    }
    try:
        return Arrays(folder, {path: future.result() for path, future in opened.items()})
    except ValueError as fault:  # see Arrays.write
        raise to_os_error(fault, folder, first_cause(fault)) from None


def open_arrays(folder: pathlib.Path, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> Arrays:
    """Open the tree in ``folder``. Raises CheckpointError that names some leaves which are missing or do not fit."""
    opened = {path: ts.open(_spec(folder, path), open=True, read=True) for path in leaves}
    arrays, faults = {}, []
    for path, leaf in leaves.items():
        try:
            array = opened[path].result()
        except ValueError as fault:
            faults.append(f"{path} cannot be opened ({first_cause(fault)})")
            continue
        if array.shape != leaf.shape or array.dtype.numpy_dtype != leaf.dtype:
            expected = f"{leaf.dtype.name} {list(leaf.shape)}"
            faults.append(f"{path} is {array.dtype.name} {list(array.shape)}, expected {expected}")
        arrays[path] = array
    if faults:
        raise CheckpointError(f"{folder}: {name_some(faults, '; ')}; convert again")
    return Arrays(folder, arrays)

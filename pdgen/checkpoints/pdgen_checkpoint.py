"""pdgen's checkpoint: a folder that Orbax restores onto any mesh, with a manifest of PyTorch's tensors.

manifest.json       name, shape, dtype and SHA-256 of every tensor; written last
model_config.json   pdgen.config.ModelConfig
params/             {"model": tree, "autoencoder": tree}; see ``pdgen.checkpoints.arrays``
source/             the json files of the original BAGEL folder, if any
tokenizer/          the tokenizer's files, if any
"""

import dataclasses
import functools
import math
import pathlib
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from pdgen import config as model_config
from pdgen.checkpoints import stream
from pdgen.checkpoints.arrays import Arrays, chunk_shapes, create_arrays, first_cause, open_arrays
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.manifest import MANIFEST, Manifest, TensorRecord, read_manifest
from pdgen.checkpoints.mapping import PARTS, Place, array_shapes, places
from pdgen.checkpoints.safetensors_file import DTYPES
from pdgen.config import ModelConfig
from pdgen.files import Log, log_stderr, new_folder, sha256
from pdgen.messages import Fault, describe_faults, name_some
from pdgen.models.linear import may_be_int8

PARAMS, CONFIG, SOURCE, TOKENIZER = "params", "model_config.json", "source", "tokenizer"
TORCH_FILES = {"model": "ema.safetensors", "autoencoder": "ae.safetensors"}
_INT8, _FLOATS = "int8", tuple(dtype.name for dtype in DTYPES.values())

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Content:
    """The content of a checkpoint, without the values.

    Attributes:
      config: sizes of the model.
      tensors: PyTorch's tensors in the order of their files and bytes, each with its place in the tree, its dtype and
        its safetensors file.
      headers: ``__metadata__`` of each safetensors file.
      source_json: the BAGEL folder's json files, by name.
      tokenizer: the tokenizer's files, by name.
    """

    config: ModelConfig
    tensors: Sequence[tuple[Place, np.dtype, str]]
    headers: Mapping[str, Mapping[str, str]]
    source_json: Mapping[str, bytes]
    tokenizer: Mapping[str, bytes]

    @property
    def nbytes(self) -> int:
        """Size of all values in bytes."""
        return sum(math.prod(place.shape) * dtype.itemsize for place, dtype, _ in self.tensors)

    @property
    def int8(self) -> bool:
        """Whether kernels are int8, see ``pdgen.models.linear``."""
        return any(dtype == np.int8 for _, dtype, _ in self.tensors)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shape and dtype of every array by its path."""
        shapes = array_shapes(self.config, int8=self.int8)
        return {place.path: jax.ShapeDtypeStruct(shapes[place.path], dtype) for place, dtype, _ in self.tensors}

    def jobs(self) -> list[tuple[Place, np.dtype, int]]:
        """Return the tensors for ``stream.move``; a block is one file of an array."""
        return [(place, dtype, chunk_shapes(place.slot, dtype.itemsize)[0][0]) for place, dtype, _ in self.tensors]

    def files(self) -> dict[str, bytes]:
        """Return all files without values, except the manifest, by their paths in the checkpoint."""
        files = {CONFIG: model_config.to_json(self.config).encode()}
        files |= {f"{SOURCE}/{name}": data for name, data in self.source_json.items()}
        return files | {f"{TOKENIZER}/{name}": data for name, data in self.tokenizer.items()}

    def manifest(self, digests: Mapping[str, str], files: Mapping[str, bytes]) -> Manifest:
        """Make the manifest from each tensor's digest and the other files."""
        tensors = [
            TensorRecord(place.name, place.shape, dtype.name, digests[place.name], file)
            for place, dtype, file in self.tensors
        ]
        headers = {name: dict(header) for name, header in self.headers.items()}
        return Manifest(tensors, headers, {name: sha256(data) for name, data in files.items()})


def is_checkpoint(path: pathlib.Path) -> bool:
    """Return whether ``path`` looks like a pdgen checkpoint."""
    return (path / MANIFEST).is_file()


def write_content(
    target: pathlib.Path, content: Content, read: stream.Read, *, source: str, overwrite: bool, log: Log
) -> Manifest:
    """Write a checkpoint atomically.

    Args:
      target, overwrite, log: see ``pdgen.files.new_folder``.
      content: everything except the values.
      read: reads the values, see ``pdgen.checkpoints.stream.move``.
      source: where they come from, for messages.

    Raises:
      FolderError: see ``pdgen.files.new_folder``.
      Exception: any error of ``read``.
    """
    stacked = {place.path for place, *_ in content.tensors if place.layer is not None}
    files = content.files()
    with new_folder(
        target, content.nbytes, kind="checkpoint", replaceable=is_checkpoint, overwrite=overwrite, log=log
    ) as folder:
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        arrays = create_arrays(folder / PARAMS, content.shapes(), stacked)
        digests = stream.move(content.jobs(), read, arrays.write, title="writing", source=source)
        manifest = content.manifest(digests, files)
        (folder / MANIFEST).write_text(manifest.text())
    return manifest


def write_checkpoint(
    path: str | pathlib.Path,
    config: ModelConfig,
    params: Params,
    *,
    tokenizer_files: Sequence[pathlib.Path] = (),
    source_json: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    log: Log = log_stderr,
) -> Manifest:
    """Write parameters in memory as a checkpoint.

    Args:
      path, overwrite, log: the folder to write, see ``pdgen.files.new_folder``.
      config: sizes of the model.
      params: ``{"model": tree, "autoencoder": tree}`` of float32, float16 or bfloat16 arrays, without boxes, on devices
        of this process. Other leaves than jax arrays may be lazy: stacked layers are read one by one (``leaf[layer]``).
      tokenizer_files: files to copy.
      source_json: json files of the original BAGEL folder, for converting back; None: they are made from ``config``.

    Raises:
      CheckpointError: arrays are missing, unknown, of another shape or dtype, or not finite; the message counts them.
      FolderError: ``path`` cannot be written.
    """
    content, read = make_content(str(path), config, params, tokenizer_files, source_json or {})
    return write_content(pathlib.Path(path), content, read, source=f"{path}: not written", overwrite=overwrite, log=log)


def make_content(
    path: str,
    config: ModelConfig,
    params: Params,
    tokenizer_files: Sequence[pathlib.Path],
    source_json: Mapping[str, bytes],
) -> tuple[Content, stream.Read]:
    """Return the content and a ``read`` for parameters in memory; arguments and errors as ``write_checkpoint``.

    ``path`` is only for messages.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    _check_leaves(path, config, flat)
    tensors = []
    for part in PARTS:
        # The order in which the safetensors library writes: wide dtypes first, then by name.
        found = [(place, np.dtype(flat[place.path].dtype)) for place in places(config, (part,)).values()]
        found.sort(key=lambda item: (-item[1].itemsize, item[0].name))
        tensors += [(place, dtype, TORCH_FILES[part]) for place, dtype in found]

    last = threading.local()  # a thread reads all blocks of a tensor before the next, so it keeps one tensor

    def read(place: Place, start: int, rows: np.ndarray) -> None:
        if getattr(last, "name", None) != place.name:
            last.name, last.values = place.name, _on_host(flat[place.path], place.layer)
        rows[...] = last.values[start : start + rows.shape[0]]

    headers = {name: {"format": "pt"} for name in TORCH_FILES.values()}
    tokenizer = {file.name: file.read_bytes() for file in tokenizer_files}
    return Content(config, tensors, headers, source_json, tokenizer), read


def _on_host(leaf: Any, layer: int | None) -> np.ndarray:
    """Copy one layer of an array, or all of it, from the devices; other layers are not copied."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf if layer is None else leaf[layer])
    values = np.empty(leaf.shape if layer is None else leaf.shape[1:], leaf.dtype)
    for shard in leaf.addressable_shards:
        if shard.replica_id:  # another device has the same values
            continue
        if layer is None:
            values[shard.index] = np.asarray(shard.data)
            continue
        start, stop, _ = shard.index[0].indices(leaf.shape[0])
        if start <= layer < stop:
            values[shard.index[1:]] = np.asarray(shard.data[layer - start])
    return values


def _check_leaves(path: str, config: ModelConfig, flat: Mapping[str, Any]) -> None:
    shapes = array_shapes(config)
    faults = [Fault("missing", name, f"array {name} is missing") for name in shapes if name not in flat]
    for name, leaf in flat.items():
        if name not in shapes:
            faults.append(Fault("unknown", name, f"array {name} is unknown"))
        elif leaf.shape != shapes[name]:
            text = f"array {name} is {list(leaf.shape)}, expected {list(shapes[name])}"
            faults.append(Fault("of another shape", name, text))
        elif np.dtype(leaf.dtype).name not in _FLOATS:
            text = f"array {name} is {leaf.dtype}; supported are {', '.join(_FLOATS)}"
            faults.append(Fault("of another dtype", name, text))
        elif isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            text = f"array {name} lies on devices of several processes"
            faults.append(Fault("on devices of several processes", name, text))
    if faults:
        raise CheckpointError(f"{path}: not written, the parameters do not fit the config: {describe_faults(faults)}")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: folder, sizes and manifest."""

    path: pathlib.Path
    config: ModelConfig
    manifest: Manifest

    @functools.cached_property
    def int8(self) -> bool:
        """Whether kernels are int8, see ``pdgen.models.linear``."""
        return any(tensor.dtype == _INT8 for tensor in self.manifest.tensors)

    def require_floats(self, why: str) -> None:
        """Raise CheckpointError with the reason ``why`` if the checkpoint is int8."""
        if self.int8:
            raise CheckpointError(f"{self.path}: is an int8 checkpoint; {why}; take the one that it was made from")

    def _files(self, folder: str) -> dict[str, bytes]:
        names = [name for name in self.manifest.files if name.startswith(f"{folder}/")]
        return {name.removeprefix(f"{folder}/"): (self.path / name).read_bytes() for name in names}

    def content(self) -> Content:
        """Read everything except the values."""
        where = places(self.config, int8=self.int8)
        tensors = [(where[t.name], np.dtype(t.dtype), t.file) for t in self.manifest.tensors]
        return Content(self.config, tensors, self.manifest.headers, self._files(SOURCE), self._files(TOKENIZER))

    def arrays(self) -> Arrays:
        """Open the arrays. Raises CheckpointError that names missing or misshapen ones."""
        return open_arrays(self.path / PARAMS, self.content().shapes())


def open_checkpoint(path: str | pathlib.Path) -> Checkpoint:
    """Open a checkpoint and compare all files except the values with the manifest.

    Raises:
      CheckpointError: the checkpoint is missing or incomplete, a file is damaged, or manifest and config do not agree.
      ConfigError: the model config cannot be read.
    """
    path = pathlib.Path(path)
    manifest = read_manifest(path)
    faults = []
    for name, stated in manifest.files.items():
        if not (path / name).is_file():
            faults.append(f"{name} is missing")
        elif sha256((path / name).read_bytes()) != stated:
            faults.append(f"{name} has changed since it was written")
    if CONFIG not in manifest.files:
        faults.append(f"{MANIFEST} does not list {CONFIG}")
    if faults:
        raise CheckpointError(f"{path}: {name_some(faults, '; ')}; convert again")
    config = model_config.from_json((path / CONFIG).read_text(), str(path / CONFIG))
    checkpoint = Checkpoint(path, config, manifest)
    where = places(config, int8=checkpoint.int8)
    found = {tensor.name: tensor.shape for tensor in manifest.tensors}
    if (
        found != {name: place.shape for name, place in where.items()}
        or len(manifest.tensors) != len(where)
        or any(t.dtype not in _dtypes(where[t.name], checkpoint.int8) for t in manifest.tensors)
    ):
        raise CheckpointError(f"{path}: {MANIFEST} does not fit {CONFIG}; convert again")
    return checkpoint


def _dtypes(place: Place, int8: bool) -> Collection[str]:
    """Return the dtypes that a tensor may have in a checkpoint that is int8 or not."""
    part, _, path = place.path.partition("/")
    return (_INT8,) if int8 and part == "model" and may_be_int8(path) else _FLOATS


def verify(path: str | pathlib.Path) -> Manifest:
    """Read all values of a checkpoint and compare every digest with the manifest.

    Raises:
      CheckpointError: something is missing, not finite or has changed; the message names some such tensors.
    """
    checkpoint = open_checkpoint(path)
    jobs, read = checkpoint.content().jobs(), checkpoint.arrays().read
    compare_digests(checkpoint, stream.move(jobs, read, None, title="checking", source=str(path)))
    return checkpoint.manifest


def compare_digests(checkpoint: Checkpoint, digests: Mapping[str, str]) -> None:
    """Raise CheckpointError if digests differ from the manifest's; it counts the tensors and names some."""
    changed = [t.name for t in checkpoint.manifest.tensors if digests[t.name] != t.sha256]
    if changed:
        raise CheckpointError(
            f"{checkpoint.path}: values of {len(changed):,} tensors differ from {MANIFEST}: {name_some(changed)}; "
            "convert again"
        )


def load_checkpoint(
    path: str | pathlib.Path, shardings: Any = None, parts: Sequence[str] = PARTS
) -> tuple[ModelConfig, Params]:
    """Restore a checkpoint, or some of its ``PARTS``, with Orbax.

    Args:
      path: the checkpoint.
      shardings: a tree with the structure of the parameters, ``{part: tree}``. Its leaves are
        ``jax.sharding.Sharding``; each process then reads only the shards of its own devices. Or they are
        ``jax.ShapeDtypeStruct`` with shardings; values are then also cast to the struct's dtype. None restores
        everything onto the default device.
      parts: the parts to restore.

    Returns:
      The sizes, and ``{part: tree}`` of jax arrays with the stored dtypes, unless ``shardings`` has dtypes.

    Raises:
      CheckpointError: the checkpoint is incomplete, values are damaged, NaN or infinite, or ``shardings`` has another
        structure.
    """
    checkpoint = open_checkpoint(path)
    stored = {name: leaf for name, leaf in checkpoint.content().shapes().items() if name.split("/")[0] in parts}
    flat: dict[str, Any] = dict.fromkeys(stored, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    if shardings is not None:
        flat = traverse_util.flatten_dict(shardings, sep="/")
    if different := sorted(flat.keys() ^ stored.keys()):
        raise CheckpointError(f"{path}: shardings and parameters differ in {name_some(different)}")
    target, restore = {}, {}
    for name, given in flat.items():
        struct, shape = isinstance(given, jax.ShapeDtypeStruct), stored[name].shape
        dtype, sharding = (given.dtype, given.sharding) if struct else (stored[name].dtype, given)
        target[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        restore[name] = ocp.ArrayRestoreArgs(sharding=sharding, dtype=dtype, global_shape=shape)
    args = ocp.args.PyTreeRestore(
        item=traverse_util.unflatten_dict(target, sep="/"),
        restore_args=traverse_util.unflatten_dict(restore, sep="/"),
        partial_restore=True,
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)
    with ocp.Checkpointer(handler) as checkpointer:
        try:
            params = checkpointer.restore((checkpoint.path / PARAMS).absolute(), args=args)
        except Exception as fault:  # Orbax raises no narrower class around TensorStore's errors
            raise CheckpointError(f"{path}: cannot be restored ({first_cause(fault)}); convert again") from fault
    leaves = traverse_util.flatten_dict(params, sep="/")
    stream.refuse_nonfinite(str(path), {name: _count_nonfinite(leaf) for name, leaf in leaves.items()})
    return checkpoint.config, params


def _count_nonfinite(leaf: jax.Array) -> int:
    """Count values that are NaN or infinite in this process's part of an array.

    It is done on the host: compiling reductions of several hundred shapes takes longer than copying the values.
    """
    parts = [np.asarray(shard.data).reshape(-1) for shard in leaf.addressable_shards if not shard.replica_id]
    step = stream.BLOCK_BYTES // leaf.dtype.itemsize
    return sum(stream.count_nonfinite(part[n : n + step]) for part in parts for n in range(0, part.size, step))

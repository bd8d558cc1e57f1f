"""Conversion of a BAGEL folder to a pdgen checkpoint and back, and checks of both."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pdgen.checkpoints import safetensors_file, stream
from pdgen.checkpoints.bagel_json import MODEL_JSON, compare_configs, make_json, read_tied, set_keys
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.manifest import Manifest
from pdgen.checkpoints.mapping import Place
from pdgen.checkpoints.pdgen_checkpoint import (
    SOURCE,
    Checkpoint,
    Content,
    compare_digests,
    is_checkpoint,
    open_checkpoint,
    verify,
    write_content,
)
from pdgen.checkpoints.quantized import quantize_content
from pdgen.checkpoints.runs.step import Weights
from pdgen.checkpoints.sources.tensors import cast_dtype
from pdgen.checkpoints.sources.weights import INDEXES, holds_weights
from pdgen.checkpoints.torch_checkpoint import is_bagel_folder, open_bagel_folder, refuse_others
from pdgen.config import read_config
from pdgen.files import Log, log_stderr, new_folder

Path = str | pathlib.Path


def to_pdgen(
    source: Path,
    target: Path,
    *,
    base: Path | None = None,
    weights: Weights | None = None,
    dtype: np.dtype | None = None,
    int8: bool = False,
    overwrite: bool = False,
    log: Log = log_stderr,
) -> Manifest:
    """Convert a BAGEL folder, or a step folder of BAGEL's trainer, to a pdgen checkpoint.

    Args:
      source: the folder; with ``int8`` also a pdgen checkpoint.
      target: the checkpoint to write.
      base: a whole BAGEL folder, from which modules and files are taken that ``source`` lacks.
      weights: "raw" or "ema"; None: "ema" if ``source`` has both.
      dtype: float32 or bfloat16 for the model's values; None keeps the stored dtype. The autoencoder's values never
        change, since latents that it encoded would no longer match it.
      int8: whether to round kernels to int8, see ``pdgen.models.linear``; ``dtype`` is then that of the other values.
      overwrite, log: see ``pdgen.files.new_folder``.

    Raises:
      CheckpointError, ConfigError, FolderError: the source is invalid or holds NaN or infinity, or the target cannot
        be written. ``target`` is then unchanged.
    """
    source, distance = pathlib.Path(source), None
    if is_checkpoint(source):
        content, read = _open_to_quantize(source, dtype, int8)
    else:
        folder = open_bagel_folder(source, cast=dtype is not None, base=base, weights=weights)
        for note in (*folder.notes, *folder.describe_casts(dtype)):
            log(note)
        content, read, distance = folder.content(dtype), folder.reader(), folder.distance()
    if int8:
        content, read = quantize_content(content, read)
    if distance is not None:
        read = distance.watch(read)
    manifest = write_content(pathlib.Path(target), content, read, source=str(source), overwrite=overwrite, log=log)
    if distance is not None:
        log(f"{source}: ema and raw weights differ by {distance.text()} of the raw ones' norm")
    return manifest


def is_unconverted(path: pathlib.Path) -> bool:
    """Return whether ``path`` looks like a folder that ``to_pdgen`` converts."""
    return is_bagel_folder(path) or holds_weights(path)


def _open_to_quantize(source: pathlib.Path, dtype: np.dtype | None, int8: bool) -> tuple[Content, stream.Read]:
    """Return content and ``read`` of a pdgen checkpoint, which can only be rounded."""
    if not int8:
        raise CheckpointError(
            f"{source}: is a pdgen checkpoint already; --reverse writes it as a BAGEL folder, --quantize=int8 rounds it"
        )
    checkpoint = open_checkpoint(source)
    checkpoint.require_floats("it cannot be rounded again")
    if dtype is not None:
        raise CheckpointError(f"{source}: is a pdgen checkpoint; --dtype is for a BAGEL folder, leave it out")
    return checkpoint.content(), checkpoint.arrays().read


def to_bagel(
    source: Path, target: Path, *, dtype: np.dtype | None = None, overwrite: bool = False, log: Log = log_stderr
) -> Manifest:
    """Convert a pdgen checkpoint to a BAGEL folder with its original files, names and order.

    Original json files that contradict the model are corrected. Arguments and errors are those of ``to_pdgen``.

    Returns:
      The source's manifest.

    Raises:
      CheckpointError: also if values differ from the manifest.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    if not is_checkpoint(source) and is_bagel_folder(source):
        raise CheckpointError(f"{source}: is a BAGEL folder, not a pdgen checkpoint; convert it without --reverse")
    checkpoint = open_checkpoint(source)
    checkpoint.require_floats("BAGEL's code reads floats, and the rounded ones would pass for the original")
    content, arrays = checkpoint.content(), checkpoint.arrays()
    dtypes = {place.name: cast_dtype(place, stored, dtype) for place, stored, _ in content.tensors}
    tensors: dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]] = {name: {} for name in content.headers}
    for place, _, file in content.tensors:
        if file:
            tensors[file][place.name] = (dtypes[place.name], place.shape)
    nbytes = sum(math.prod(shape) * kind.itemsize for file in tensors.values() for kind, shape in file.values())
    with new_folder(
        target, nbytes, kind="checkpoint", replaceable=is_bagel_folder, overwrite=overwrite, log=log
    ) as folder:
        created = [safetensors_file.create(folder / n, tensors[n], content.headers[n]) for n in tensors]
        files = {name: file for file in created for name in file.tensors}

        def write(place: Place, start: int, rows: np.ndarray) -> None:
            if place.name not in files:  # another tensor serves for it
                return
            values = rows.astype(dtypes[place.name], copy=False)
            safetensors_file.write(files[place.name], place.name, start * math.prod(place.slot[1:]), values)

        digests = stream.move(content.jobs(), arrays.read, write, title="writing", source=str(source))
        compare_digests(checkpoint, digests)
        for file in created:
            safetensors_file.finish(file)
        for name, data in (_json_files(checkpoint, content, dtypes, log) | dict(content.tokenizer)).items():
            (folder / name).write_bytes(data)
    return checkpoint.manifest


def _json_files(checkpoint: Checkpoint, content: Content, dtypes: Mapping[str, np.dtype], log: Log) -> dict[str, bytes]:
    """Return the folder's json files: the original ones, corrected where they contradict the model."""
    if not all(name in content.source_json for name in MODEL_JSON):
        made = {name: text.encode() for name, text in make_json(content.config).items()}
        return {**content.source_json, **made}
    changes: dict[str, dict[str, Any]] = {name: {} for name in content.source_json}
    for (file, key), (stated, actual) in compare_configs(read_config(checkpoint.path / SOURCE), content.config).items():
        changes[file][key] = actual
        log(f"{file}: {key} was {json.dumps(stated)}, is written as {json.dumps(actual)}")
    if read_tied(checkpoint.path / SOURCE) and all(file for *_, file in content.tensors):
        changes["llm_config.json"]["tie_word_embeddings"] = False
        log("llm_config.json: tie_word_embeddings was true, is written as false, since head and embedding differ")
    if any(stored != dtypes[place.name] for place, stored, _ in content.tensors):
        stored = [place for place, _, file in content.tensors if file and place.path.startswith("model/")]
        size = sum(math.prod(place.shape) * dtypes[place.name].itemsize for place in stored)
        for name in changes.keys() & set(INDEXES.values()):
            changes[name] = {"metadata.total_size": size}
    return {name: set_keys(data, changes[name]) for name, data in content.source_json.items()}


def check(path: Path, *, base: Path | None = None, weights: Weights | None = None, log: Log = log_stderr) -> Manifest:
    """Check all digests of a pdgen checkpoint, or the names, shapes and lengths of a BAGEL folder.

    Args:
      path: the checkpoint or the folder.
      base, weights, log: see ``to_pdgen``.

    Returns:
      The manifest; for a BAGEL folder that of its conversion, without pdgen's own files.

    Raises:
      CheckpointError, ConfigError: something is missing or wrong, or a value is NaN or infinite.
    """
    path = pathlib.Path(path)
    if not is_checkpoint(path):
        refuse_others(path)
    if not is_unconverted(path):
        return verify(path)
    folder = open_bagel_folder(path, cast=True, base=base, weights=weights)
    for note in (*folder.notes, *folder.describe_casts()):
        log(note)
    content = folder.content()
    digests = stream.move(content.jobs(), folder.reader(), None, title="checking", source=str(path))
    return content.manifest(digests, {**content.source_json, **content.tokenizer})

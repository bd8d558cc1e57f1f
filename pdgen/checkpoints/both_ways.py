"""Converting a BAGEL folder to a pdgen checkpoint and back, and checking either."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pdgen.checkpoints import safetensors_file, stream
from pdgen.checkpoints.bagel_json import MODEL_JSON, corrected, differences, fresh_json
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.manifest import Manifest
from pdgen.checkpoints.mapping import Place, places
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
from pdgen.checkpoints.torch_checkpoint import INDEX, cast_dtype, is_bagel_folder, open_bagel_folder
from pdgen.config import read_config
from pdgen.files import Say, new_folder, to_stderr

Path = str | pathlib.Path


def to_pdgen(
    source: Path,
    target: Path,
    *,
    dtype: np.dtype | None = None,
    overwrite: bool = False,
    say: Say = to_stderr,
) -> Manifest:
    """Converts a BAGEL folder to a pdgen checkpoint.

    Args:
      source: the folder.
      target: the checkpoint to make.
      dtype: float32 or bfloat16 for the model's values; None keeps them as stored. The autoencoder's always stay as
        they are: other values would not suit the latents that it has made.
      overwrite: whether an existing checkpoint at ``target`` is replaced.
      say: takes one line for the user.

    Raises:
      CheckpointError, ConfigError, FolderError: the source is not as it must be, or the target cannot be written;
        ``target`` is then as it was.
    """
    source = pathlib.Path(source)
    if is_checkpoint(source):
        raise CheckpointError(f"{source}: is a pdgen checkpoint already; --reverse writes it as a BAGEL folder")
    folder = open_bagel_folder(source, cast=dtype is not None)
    for note in folder.notes:
        say(note)
    content, read = folder.content(dtype), folder.reader(dtype)
    return write_content(pathlib.Path(target), content, read, overwrite=overwrite, say=say)


def to_bagel(
    source: Path,
    target: Path,
    *,
    dtype: np.dtype | None = None,
    overwrite: bool = False,
    say: Say = to_stderr,
) -> Manifest:
    """Writes a pdgen checkpoint as a BAGEL folder: the files, names and order that it came with.

    Where the json files that it came with contradict the model, they are corrected.

    Arguments and errors are those of ``to_pdgen``; moreover values that differ from the manifest are refused.

    Returns:
      The source's manifest.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    if not is_checkpoint(source) and is_bagel_folder(source):
        raise CheckpointError(f"{source}: is a BAGEL folder, not a pdgen checkpoint; convert it without --reverse")
    checkpoint = open_checkpoint(source)
    content, arrays = checkpoint.content(), checkpoint.arrays()
    dtypes = {place.name: cast_dtype(place, stored, dtype) for place, stored, _ in content.tensors}
    held: dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]] = {name: {} for name in content.headers}
    for place, _, file in content.tensors:
        held[file][place.name] = (dtypes[place.name], place.shape)
    nbytes = sum(math.prod(shape) * kind.itemsize for file in held.values() for kind, shape in file.values())
    with new_folder(
        target, nbytes, kind="checkpoint", replaceable=is_bagel_folder, overwrite=overwrite, say=say
    ) as folder:
        created = [safetensors_file.create(folder / n, held[n], content.headers[n]) for n in held]
        files = {name: file for file in created for name in file.tensors}

        def write(place: Place, start: int, rows: np.ndarray) -> None:
            values = rows.astype(dtypes[place.name], copy=False)
            safetensors_file.write(files[place.name], place.name, start * math.prod(place.slot[1:]), values)

        compare_digests(checkpoint, stream.move(content.jobs(), arrays.read, write, title="writing"))
        for file in created:
            safetensors_file.finish(file)
        for name, data in (_json_files(checkpoint, content, dtypes, say) | dict(content.tokenizer)).items():
            (folder / name).write_bytes(data)
    return checkpoint.manifest


def _json_files(checkpoint: Checkpoint, content: Content, dtypes: Mapping[str, np.dtype], say: Say) -> dict[str, bytes]:
    """The folder's json files: those that it came with, corrected where the model is another."""
    if not all(name in content.source_json for name in MODEL_JSON):
        return {name: text.encode() for name, text in fresh_json(content.config).items()}
    changes: dict[str, dict[str, Any]] = {name: {} for name in content.source_json}
    for (file, key), (said, actual) in differences(read_config(checkpoint.path / SOURCE), content.config).items():
        changes[file][key] = actual
        say(f"{file}: {key} was {json.dumps(said)}, is written as {json.dumps(actual)}")
    if INDEX in changes and any(stored != dtypes[place.name] for place, stored, _ in content.tensors):
        model = places(content.config, ("model",))
        size = sum(math.prod(place.shape) * dtypes[name].itemsize for name, place in model.items())
        changes[INDEX] = {"metadata.total_size": size}
    return {name: corrected(data, changes[name]) for name, data in content.source_json.items()}


def check(path: Path, say: Say = to_stderr) -> Manifest:
    """Verifies a pdgen checkpoint (recomputes all digests) or a BAGEL folder (names, shapes, lengths).

    Returns:
      The manifest; for a BAGEL folder the one that its conversion would have, but for pdgen's own files.

    Raises:
      CheckpointError, ConfigError: something is missing or wrong.
    """
    path = pathlib.Path(path)
    if is_checkpoint(path) or not is_bagel_folder(path):
        return verify(path)
    folder = open_bagel_folder(path, cast=True)
    for note in folder.notes:
        say(note)
    content = folder.content()
    digests = stream.move(content.jobs(), folder.reader(), None, title="checking")
    return content.manifest(digests, {**content.source_json, **content.tokenizer})

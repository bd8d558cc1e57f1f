"""Merging a PEFT adapter into the checkpoint that it adapts, block by block."""

import contextlib
import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from pdgen.checkpoints import stream
from pdgen.checkpoints.adapters.peft import Factors, read_adapter
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.manifest import MANIFEST, Manifest
from pdgen.checkpoints.mapping import Place
from pdgen.checkpoints.pdgen_checkpoint import Content, is_checkpoint, open_checkpoint, write_content
from pdgen.checkpoints.sources.tensors import cast_dtype
from pdgen.checkpoints.torch_checkpoint import is_bagel_folder, open_bagel_folder
from pdgen.files import Log, log_stderr
from pdgen.models.lora import merge

Path = str | pathlib.Path


class Change(NamedTuple):
    """What merging did to one kernel: the sums of squares of its values before, and of their differences."""

    before: float
    difference: float


def describe_changes(changes: Mapping[str, Change]) -> str:
    """Describe in a clause how many kernels changed and by what relative norm, |W' - W| / |W| over all of a group.

    ``changes`` has the change of each adapted kernel by PyTorch's name.
    """
    groups: dict[str, list[Change]] = {}
    for name, change in changes.items():
        group = "generation expert" if "_moe_gen" in name else "understanding expert"
        if not name.startswith("language_model.model.layers."):
            group = "others"
        groups.setdefault(group, []).append(change)
    parts = [f"{name} {len(found)} by {_relative_norm(found):.3g}" for name, found in sorted(groups.items())]
    changed = sum(change.difference > 0 for change in changes.values())
    norm = _relative_norm([*changes.values()])
    return (
        f"{changed} of {len(changes)} adapted kernels changed, by {norm:.3g} of their norm ({', '.join(parts)}; as "
        "stored, after rounding)"
    )


def _relative_norm(changes: list[Change]) -> float:
    before = sum(change.before for change in changes)
    return math.sqrt(sum(change.difference for change in changes) / before) if before else math.inf


def merge_adapter(
    source: Path,
    base: Path,
    target: Path,
    *,
    dtype: np.dtype | None = None,
    overwrite: bool = False,
    log: Log = log_stderr,
) -> tuple[Manifest, dict[str, Change]]:
    """Write a pdgen checkpoint of ``base`` with the adapter merged, W + scale * B A, summed in float32.

    Args:
      source: folder of a PEFT adapter.
      base: a pdgen checkpoint or a BAGEL folder.
      target: the checkpoint to write.
      dtype: float32 or bfloat16 for the model's values; None keeps the base's.
      overwrite, log: see ``pdgen.files.new_folder``.

    Returns:
      The manifest, and what each adapted kernel changed by, by PyTorch's name.

    Raises:
      CheckpointError, ConfigError, FolderError: the adapter or the base is invalid or they do not fit, or the target
        cannot be written. ``target`` is then unchanged.
    """
    content, read = _open_base(pathlib.Path(base), dtype is not None, log)
    merging = _Merging(read_adapter(source, content.config), content, read, dtype)
    tensors = [(place, cast_dtype(place, stored, dtype), file) for place, stored, file in content.tensors]
    content = dataclasses.replace(content, tensors=tensors)
    with _on_cpu():
        manifest = write_content(
            pathlib.Path(target), content, merging.read, source=str(base), overwrite=overwrite, log=log
        )
    return manifest, merging.changes


def measure_adapter(source: Path, base: Path, log: Log = log_stderr) -> dict[str, Change]:
    """Return what merging would change each adapted kernel by, without writing; arguments as ``merge_adapter``."""
    content, read = _open_base(pathlib.Path(base), False, log)
    factors = read_adapter(source, content.config)
    merging = _Merging(factors, content, read, None)
    with _on_cpu():
        jobs = [job for job in content.jobs() if job[0].name in factors]
        stream.move(jobs, merging.read, None, title="checking", source=str(base))
    return merging.changes


def _on_cpu() -> contextlib.AbstractContextManager:
    """Return a context to compute in on the host: the blocks are there, and an accelerator may be busy."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def _open_base(base: pathlib.Path, cast: bool, log: Log) -> tuple[Content, stream.Read]:
    """Return the content of the base and a function that reads its values, as stored."""
    if not is_checkpoint(base) and is_bagel_folder(base):
        folder = open_bagel_folder(base, cast=cast)
        for note in (*folder.notes, *folder.describe_casts()):
            log(note)
        return folder.content(), folder.reader()
    checkpoint = open_checkpoint(base)
    checkpoint.require_floats("adapters change weights by less than int8 can hold")
    read, stated = checkpoint.arrays().read, {t.name: t.sha256 for t in checkpoint.manifest.tensors}
    digests = {name: hashlib.sha256() for name in stated}

    def read_intact(place: Place, start: int, rows: np.ndarray) -> None:
        """Read rows; a tensor's blocks come in order, so its digest is compared after the last one."""
        read(place, start, rows)
        digests[place.name].update(rows.reshape(-1).view(np.uint8).data)
        last = start + rows.shape[0] == place.slot[0]
        if last and digests[place.name].hexdigest() != stated[place.name]:
            raise CheckpointError(f"{base}: {place.name} differs from {MANIFEST}; convert again")

    return checkpoint.content(), read_intact


class _Merging:
    """Reads the base's blocks with the adapter merged, and adds up what it changes.

    One thread reads all blocks of a tensor, so entries of ``changes`` need no lock.
    """

    def __init__(
        self, factors: Mapping[str, Factors], content: Content, read: stream.Read, dtype: np.dtype | None
    ) -> None:
        self._factors, self._read, self._dtype = factors, read, dtype
        self._stored = {place.name: stored for place, stored, _ in content.tensors}
        self.changes = dict.fromkeys(factors, Change(0.0, 0.0))

    def read(self, place: Place, start: int, rows: np.ndarray) -> None:
        """Read rows of a tensor from ``start`` on, cast to the dtype of ``rows``; see ``stream.move``."""
        stored = self._stored[place.name]
        factors = self._factors.get(place.name)
        if factors is None and rows.dtype == stored:
            self._read(place, start, rows)
            return
        values = np.empty(rows.shape, stored)
        self._read(place, start, values)
        if factors is None:
            rows[...] = values
            return
        before = values.astype(np.float32).reshape(-1, place.shape[1])  # [outputs, inputs], some rows of the kernel
        first = start * (place.shape[0] // place.slot[0])
        b = factors.b[first : first + before.shape[0]]
        merged = merge({"kernel": before}, {"kernel": {"a": factors.a, "b": b}}, factors.scale)["kernel"]
        rows[...] = np.asarray(merged).reshape(rows.shape)
        after = rows.astype(np.float32).reshape(before.shape)
        before = before.astype(rows.dtype).astype(np.float32)  # a cast alone is no change
        old = self.changes[place.name]
        self.changes[place.name] = Change(old.before + _square(before), old.difference + _square(after - before))


def _square(values: np.ndarray) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))

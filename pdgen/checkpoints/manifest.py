"""The manifest of a checkpoint: every PyTorch tensor with shape, dtype and SHA-256."""

import math
import pathlib
from typing import Literal

import msgspec
import numpy as np

from pdgen.checkpoints.errors import CheckpointError
from pdgen.json_text import decode_json

MANIFEST = "manifest.json"


class TensorRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One PyTorch tensor.

    Attributes:
      name: its name in PyTorch; the scales of an int8 tensor have its name and ``_scale``.
      shape: its shape.
      dtype: such as "float32".
      sha256: SHA-256 (hex) of its bytes, in C order and little endian.
      file: its safetensors file in the BAGEL folder; "" if it is in none, since another tensor serves for it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    file: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a checkpoint.

    Attributes:
      tensors: in the order of the safetensors files and of the bytes within them.
      headers: ``__metadata__`` of each safetensors file.
      files: SHA-256 of every other file (config, source json, tokenizer), by its path in the checkpoint.
    """

    tensors: list[TensorRecord]
    headers: dict[str, dict[str, str]]
    files: dict[str, str]
    format: Literal["pdgen checkpoint"] = "pdgen checkpoint"
    version: Literal[1] = 1

    def text(self) -> str:
        """Return json with one tensor a line, which ``read_manifest`` reads."""
        fields = {name: msgspec.json.encode(getattr(self, name)).decode() for name in self.__struct_fields__}
        lines = ",\n  ".join(msgspec.json.encode(tensor).decode() for tensor in self.tensors)
        fields["tensors"] = f"[\n  {lines}\n ]"
        order = ("format", "version", "headers", "files", "tensors")
        return "{\n " + ",\n ".join(f'"{name}": {fields[name]}' for name in order) + "\n}\n"

    def summary(self) -> str:
        """Return the numbers of tensors, values and bytes as text."""
        counts = [math.prod(tensor.shape) for tensor in self.tensors]
        nbytes = sum(count * np.dtype(tensor.dtype).itemsize for count, tensor in zip(counts, self.tensors))
        return f"{len(counts):,} tensors, {sum(counts):,} values, {nbytes:,} bytes"


def read_manifest(path: pathlib.Path) -> Manifest:
    """Read the manifest of the checkpoint at ``path``.

    Raises:
      CheckpointError: it is missing, so ``path`` is not a complete checkpoint; or it is damaged.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    if not file.is_file():
        raise CheckpointError(
            f"{file}: missing, so this is not a (whole) pdgen checkpoint; launch/convert.py makes one"
        )
    try:
        return decode_json(file.read_bytes(), Manifest)
    except msgspec.MsgspecError as fault:
        raise CheckpointError(f"{file}: damaged ({fault}); convert again") from None

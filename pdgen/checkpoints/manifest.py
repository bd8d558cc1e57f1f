"""The manifest of a checkpoint: every PyTorch tensor with shape, dtype and SHA-256."""

import math
import pathlib
from typing import Literal

import msgspec

from pdgen.checkpoints.errors import CheckpointError

MANIFEST = "manifest.json"
_WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}


class TensorRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One PyTorch tensor: name, shape, dtype ("float32", ..), SHA-256 of its bytes (C order, little endian),
    and the safetensors file of the BAGEL folder that it belongs to.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    file: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint holds.

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
        """Json with a tensor a line; ``read_manifest`` reads it back."""
        fields = {name: msgspec.json.encode(getattr(self, name)).decode() for name in self.__struct_fields__}
        lines = ",\n  ".join(msgspec.json.encode(tensor).decode() for tensor in self.tensors)
        fields["tensors"] = f"[\n  {lines}\n ]"
        order = ("format", "version", "headers", "files", "tensors")
        return "{\n " + ",\n ".join(f'"{name}": {fields[name]}' for name in order) + "\n}\n"

    def summary(self) -> str:
        """Numbers of tensors, values and bytes, in words."""
        counts = [math.prod(tensor.shape) for tensor in self.tensors]
        nbytes = sum(count * _WIDTH[tensor.dtype] for count, tensor in zip(counts, self.tensors, strict=True))
        return f"{len(counts):,} tensors, {sum(counts):,} values, {nbytes:,} bytes"


def read_manifest(path: pathlib.Path) -> Manifest:
    """Reads the manifest of the checkpoint at ``path``.

    Raises:
      CheckpointError: there is none, so ``path`` is no whole checkpoint; or it is damaged.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    if not file.is_file():
        raise CheckpointError(
            f"{file}: missing, so this is not a (whole) pdgen checkpoint; launch/convert.py makes one"
        )
    try:
        return msgspec.json.decode(file.read_bytes(), type=Manifest)
    except msgspec.MsgspecError as fault:
        raise CheckpointError(f"{file}: damaged ({fault}); convert again") from None

"""Reads and writes safetensors files by byte ranges, so that no tensor has to be in memory as a whole.

A file has three parts. 8 bytes are the length n of the header (little endian). n bytes are json: by name, dtype, shape
and data_offsets (begin, end) counted from the header's end, with an optional ``__metadata__`` of strings. The rest are
the bytes of the tensors, little endian, without gaps. See https://github.com/huggingface/safetensors#format.
"""

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.sources.foreign import describe_quantized, refuse_placeholder
from pdgen.json_text import load_json
from pdgen.messages import name_some

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Dtypes that are only read, and those to which they are cast. Every value of both FP8 formats is a bfloat16.
CASTS: dict[np.dtype, np.dtype] = {
    np.dtype(np.float64): DTYPES["F32"],
    np.dtype(ml_dtypes.float8_e4m3fn): DTYPES["BF16"],
    np.dtype(ml_dtypes.float8_e5m2): DTYPES["BF16"],
}
_READABLE = DTYPES | dict(zip(("F64", "F8_E4M3", "F8_E5M2"), CASTS, strict=True))
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLE_REASON = (
    "is a pickle, which runs code when it is read, so it is never loaded; save the tensors with "
    "safetensors.torch.save_file and convert those"
)


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; its values are the bytes [begin, end), counted from the file's start."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class SafetensorsFile:
    """The header of a file: its tensors in the order of their bytes, and its ``__metadata__``."""

    path: pathlib.Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    def read(self, name: str, offset: int, values: np.ndarray) -> None:
        """Read values of the tensor ``name`` from number ``offset`` on into ``values`` (contiguous, of its dtype).

        Raises:
          CheckpointError: the file has become shorter since its header was read.
        """
        info = self.tensors[name]
        rest = values.reshape(-1).view(np.uint8).data
        with open(self.path, "rb", buffering=0) as file:
            file.seek(info.begin + offset * info.dtype.itemsize)
            while rest:
                got = file.readinto(rest)
                if not got:
                    raise CheckpointError(
                        f"{self.path}: truncated, {name} ends {len(rest):,} bytes early; fetch it again"
                    )
                rest = rest[got:]


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"names {sorted({n for n in names if names.count(n) > 1})} twice")
    return result


def _header_json(path: pathlib.Path) -> tuple[dict[str, Any], int, int]:
    """Read the header: its json, where the tensors' bytes begin, and the file's size."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    refuse_placeholder(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise CheckpointError(f"{path}: truncated, {size} bytes are too few for a header; fetch it again")
        (length,) = struct.unpack("<Q", start)
        if start.startswith(b"PK\x03\x04") or (length > _MAX_HEADER and start.startswith(b"\x80")):
            raise CheckpointError(f"{path}: {PICKLE_REASON}")
        if length > _MAX_HEADER:
            raise CheckpointError(f"{path}: not a safetensors file (its header would have {length:,} bytes)")
        text = file.read(length)
    if len(text) < length:
        raise CheckpointError(f"{path}: truncated within its header; fetch it again")
    try:
        header = load_json(text, _no_duplicates)
    except ValueError as fault:
        raise CheckpointError(f"{path}: not a safetensors file (header: {fault})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not a safetensors file (header holds {type(header).__name__})")
    return header, 8 + length, size


def _tensor_info(name: str, entry: Any, base: int) -> TensorInfo:
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name} lacks dtype, shape or data_offsets") from None
    if not isinstance(code, str) or code not in _READABLE:
        raise ValueError(f"{name} is stored as {code}; supported are {', '.join(_READABLE)}")
    numbers = (*shape, begin, end)
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{name} has shape {shape} and offsets {begin}, {end}")
    if end - begin != math.prod(shape) * _READABLE[code].itemsize:
        raise ValueError(f"{name} has shape {shape} as {code} in {end - begin:,} bytes")
    return TensorInfo(_READABLE[code], shape, base + begin, base + end)


def read_header(path: pathlib.Path) -> SafetensorsFile:
    """Read and check the header of a file.

    Raises:
      CheckpointError: the file is missing, truncated, a pickle or not a safetensors file, it holds quantized weights,
        or tensors have another dtype than float64, float32, float16, bfloat16 and FP8 (E4M3, E5M2); the message names
        some of them.
    """
    header, base, size = _header_json(path)
    metadata = header.pop("__metadata__", {})
    if said := describe_quantized(header):
        raise CheckpointError(f"{path}: {said}")
    tensors, faults = {}, []
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        faults.append("__metadata__ is not an object of strings")
    for name, entry in header.items():
        try:
            tensors[name] = _tensor_info(name, entry, base)
        except ValueError as fault:
            faults.append(str(fault))
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = base
    for name, info in tensors.items() if not faults else ():
        if info.begin != end:
            faults.append(f"{name} does not begin where the tensor before it ends")
        end = info.end
    if not faults and size != end:
        kind = f"truncated, {end - size:,} bytes are missing" if size < end else f"{size - end:,} bytes too long"
        faults.append(f"{kind} ({size:,} bytes, its header promises {end:,}); fetch it again")
    if faults:
        raise CheckpointError(f"{path}: {name_some(faults, '; ')}")
    return SafetensorsFile(path, tensors, metadata)


def create(
    path: pathlib.Path, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> SafetensorsFile:
    """Create a file of full size. ``write`` then writes the tensors, in any order, and ``finish`` the header.

    Args:
      path: the file to create.
      tensors: dtype and shape by name, in the order of their bytes.
      metadata: ``__metadata__`` of the header; omitted if empty.
    """
    infos, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        infos[name] = TensorInfo(dtype, shape, begin, end)
    base = len(_header_bytes(infos, metadata))
    with path.open("wb") as file:
        file.truncate(base + end)
    moved = {n: dataclasses.replace(i, begin=base + i.begin, end=base + i.end) for n, i in infos.items()}
    return SafetensorsFile(path, moved, dict(metadata))


def _header_bytes(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Return the header with its length; offsets are counted from the first tensor's begin."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    base = min((info.begin for info in tensors.values()), default=0)
    for name, info in tensors.items():
        offsets = [info.begin - base, info.end - base]
        header[name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def finish(file: SafetensorsFile) -> None:
    """Write the header of a file after its tensors. Until then the file is unreadable."""
    with file.path.open("r+b") as opened:
        opened.write(_header_bytes(file.tensors, file.metadata))


def write(file: SafetensorsFile, name: str, offset: int, values: np.ndarray) -> None:
    """Write ``values`` (of the tensor's dtype) to the tensor ``name`` from its value number ``offset`` on."""
    info = file.tensors[name]
    rest = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    with open(file.path, "r+b", buffering=0) as opened:
        opened.seek(info.begin + offset * info.dtype.itemsize)
        while rest:
            rest = rest[opened.write(rest) :]

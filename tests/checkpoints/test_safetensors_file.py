"""Byte ranges of safetensors files, against the reference library."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.safetensors_file import create, finish, read_header, write

TENSORS = {
    "wide": torch.arange(35, dtype=torch.float32).reshape(5, 7) / 3,
    "brain": (torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 7).bfloat16(),
    "half": torch.linspace(-1, 1, 11).half(),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", {"format": "pt", "é": '"'})
    return tmp_path / "a.safetensors"


def values(file, name, start, count):
    out = np.empty(count, file.tensors[name].dtype)
    file.read(name, start, out)
    return out


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_files_of_the_library_are_read(file):
    header = read_header(file)
    assert header.metadata == {"format": "pt", "é": '"'}
    assert set(header.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        info = header.tensors[name]
        assert info.shape == tuple(tensor.shape)
        assert values(header, name, 0, tensor.numel()).tobytes() == raw(tensor)
    assert header.tensors["brain"].dtype == ml_dtypes.bfloat16
    part = values(header, "wide", 10, 4)
    np.testing.assert_array_equal(part, TENSORS["wide"].flatten()[10:14].numpy())


def test_written_files_equal_those_of_the_library(file, tmp_path):
    header = read_header(file)
    tensors = {name: (info.dtype, info.shape) for name, info in header.tensors.items()}
    made = create(tmp_path / "b.safetensors", tensors, header.metadata)
    for name, info in reversed(header.tensors.items()):  # in any order, in parts
        count = (info.end - info.begin) // info.dtype.itemsize
        for start in range(0, count, 5):
            write(made, name, start, values(header, name, start, min(5, count - start)))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_header(made.path)  # only once it is complete
    finish(made)
    loaded = load_file(tmp_path / "b.safetensors")
    assert {name: raw(tensor) for name, tensor in loaded.items()} == {n: raw(t) for n, t in TENSORS.items()}
    assert {k: v.dtype for k, v in loaded.items()} == {k: v.dtype for k, v in TENSORS.items()}
    assert (tmp_path / "b.safetensors").stat().st_size == file.stat().st_size


def test_truncated(file):
    data = file.read_bytes()
    for size, said in [
        (len(data) - 3, "3 bytes are missing"),
        (40, "within its header"),
        (5, "too few"),
        (0, "too few"),
    ]:
        file.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=rf"a\.safetensors: .*{said}.*fetch it again"):
            read_header(file)


def test_shorter_since_its_header_was_read(file):
    header = read_header(file)
    file.write_bytes(file.read_bytes()[:-20])
    last = list(header.tensors)[-1]
    with pytest.raises(CheckpointError, match=f"truncated, {last} ends"):
        values(header, last, 0, TENSORS[last].numel())


def test_too_long(file):
    file.write_bytes(file.read_bytes() + b"1234")
    with pytest.raises(CheckpointError, match="4 bytes too long"):
        read_header(file)


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors: missing"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_another_name_is_not_loaded(tmp_path, zipped):
    file = tmp_path / "ema.safetensors"
    torch.save(TENSORS, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: is a pickle, which runs code"):
        read_header(file)


def write_header(file, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    "header, said",
    [
        (b"{", "not a safetensors file"),
        (b"[1]", "header holds list"),
        ({"x": {"dtype": "F32", "shape": [1]}}, "x lacks dtype, shape or data_offsets"),
        ({"x": 3}, "x lacks"),
        ({"x": {"dtype": "I16", "shape": [4], "data_offsets": [0, 8]}}, "x is stored as I16; supported are F32"),
        ({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, r"x has shape \(3,\) as F32 in 8 bytes"),
        ({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}, "x has shape"),
        ({"x": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "x has shape"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "does not begin where"),
        (b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{}}', r"names \['x'\] twice"),
        ({"__metadata__": {"a": 1}}, "__metadata__ is not"),
    ],
)
def test_bad_headers(tmp_path, header, said):
    write_header(tmp_path / "bad.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors: .*{said}"):
        read_header(tmp_path / "bad.safetensors")


def test_all_faulty_tensors_are_named(tmp_path):
    header = {n: {"dtype": d, "shape": [1], "data_offsets": [0, 8]} for n, d in [("x", "I64"), ("y", "U8")]}
    write_header(tmp_path / "bad.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=r"x is stored as I64.*; y is stored as U8"):
        read_header(tmp_path / "bad.safetensors")


def test_an_impossible_header(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_header(tmp_path / "bad.safetensors")

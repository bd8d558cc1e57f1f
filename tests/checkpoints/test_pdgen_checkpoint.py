"""Checkpoint folders: damage is found, parts and shards are read alone, and writing is all or nothing."""

import dataclasses
import functools
import math
import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from pdgen.checkpoints import stream
from pdgen.checkpoints.arrays import chunk_shapes
from pdgen.checkpoints.conversion import check, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import array_shapes, places
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint, open_checkpoint, write_checkpoint
from pdgen.checkpoints.safetensors_file import read_header
from pdgen.config import BAGEL_7B, NANO
from pdgen.files import FolderError
from pdgen.models import autoencoder, bagel
from pdgen.sharding import make_mesh, parameter_shardings

from .folders import GOLDEN, all_bytes, copy_of_golden

TOKENIZER = GOLDEN / "tokenizer.json"


@functools.cache
def random_params():
    draw = np.random.default_rng(3).standard_normal
    flat = {path: jnp.asarray(draw(shape, np.float32)) for path, shape in array_shapes(NANO).items()}
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "nano"
    write_checkpoint(path, NANO, random_params(), tokenizer_files=[TOKENIZER])
    return path


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written, tmp_path / "nano")


def assert_same(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_a_round_trip(written):
    config, params = load_checkpoint(written)
    assert config == NANO
    assert_same(params, random_params())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert (written / "tokenizer" / "tokenizer.json").read_bytes() == TOKENIZER.read_bytes()


def test_a_part_is_read_alone(written):
    _, params = load_checkpoint(written, parts=("autoencoder",))
    assert_same(params, {"autoencoder": random_params()["autoencoder"]})


def shardings(shape):
    mesh = make_mesh(shape)
    everywhere = NamedSharding(mesh, PartitionSpec())
    coder = jax.tree.map(lambda _: everywhere, autoencoder.abstract_params(NANO.autoencoder))
    return {"model": parameter_shardings(bagel.abstract_params(NANO), mesh), "autoencoder": coder}


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_reading_onto_a_mesh_and_writing_from_it(written, tmp_path, shape):
    assert jax.device_count() == 8
    given = shardings(shape)
    _, params = load_checkpoint(written, given)
    assert_same(params, random_params())
    jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding or pytest.fail(), params, given)
    kernel = params["model"]["language"]["layers"]["und"]["mlp"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // (shape[1] * shape[2])

    with jax.set_mesh(make_mesh(shape)):
        write_checkpoint(tmp_path / "again", NANO, params, tokenizer_files=[TOKENIZER])
    assert all_bytes(tmp_path / "again") == all_bytes(written)


def test_writing_from_a_mesh_that_splits_the_layers(written, tmp_path):
    mesh = make_mesh((1, 2, 4))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))

    def place(path, leaf):
        return jax.device_put(leaf, split) if leaf.shape[0] % 2 == 0 else leaf

    params = jax.tree_util.tree_map_with_path(place, random_params())
    write_checkpoint(tmp_path / "again", NANO, params, tokenizer_files=[TOKENIZER])
    assert all_bytes(tmp_path / "again") == all_bytes(written)


def test_a_cast_while_reading_onto_a_mesh(written):
    given = shardings((1, 8, 1))
    shapes = nn.unbox(
        {"model": bagel.abstract_params(NANO), "autoencoder": autoencoder.abstract_params(NANO.autoencoder)}
    )
    targets = jax.tree.map(lambda s, g: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16, sharding=g), shapes, given)
    _, params = load_checkpoint(written, targets)
    assert_same(params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params()))


def test_shardings_of_another_tree(written):
    given = shardings((1, 8, 1))
    del given["model"]["vision"]["post_norm"]["bias"]
    with pytest.raises(CheckpointError, match="differ in model/vision/post_norm/bias"):
        load_checkpoint(written, given)


@pytest.mark.parametrize("slot, itemsize", [(s[1:], 2) for s in array_shapes(BAGEL_7B).values() if len(s) > 2])
def test_chunks_of_the_public_checkpoint(slot, itemsize):
    """On a mesh of 8, a device reads at most twice its shard, whichever wide axis is split."""
    file, chunk = chunk_shapes(slot, itemsize)
    assert math.prod(chunk) * itemsize <= 2**20
    assert all(f % c == 0 for f, c in zip(file, chunk, strict=True))
    assert all(part <= max(-(-size // 4), 128) for size, part in zip(slot, chunk, strict=True) if size >= 3584)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=4), st.sampled_from([2, 4]))
def test_files_and_chunks_cover_any_array(slot, itemsize):
    file, chunk = chunk_shapes(tuple(slot), itemsize)
    assert math.prod(chunk) * itemsize <= 2**20
    assert all(c <= f and f % c == 0 for f, c in zip(file, chunk, strict=True))
    assert all(f >= size for f, size in zip(file[1:], slot[1:], strict=True))


def test_arrays_of_several_files_and_ragged_chunks(tmp_path, monkeypatch):
    """Small limits cut nano's arrays as those of a large model are cut."""
    monkeypatch.setattr("pdgen.checkpoints.arrays._CHUNK_BYTES", 3000)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 10_000)
    manifest = write_checkpoint(tmp_path / "nano", NANO, random_params())
    name = "model.language.embed.embedding"
    assert len(list((tmp_path / "nano" / "params" / name / "c").rglob("*/*"))) > 10
    assert_same(load_checkpoint(tmp_path / "nano")[1], random_params())
    assert check(tmp_path / "nano") == manifest
    to_bagel(tmp_path / "nano", tmp_path / "bagel")
    monkeypatch.undo()
    assert check(tmp_path / "bagel").tensors == manifest.tensors


def test_blocks_bound_the_memory(monkeypatch):
    """Each thread holds one block of at most ``BLOCK_BYTES``, or of one row if that is more."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", 4096)
    threads = set()

    def read(place, start, rows):
        assert rows.nbytes <= max(4096, math.prod(place.slot[1:]) * 4)
        threads.add(threading.get_ident())
        rows[...] = start

    jobs = [(place, np.dtype(np.float32), stream.block_rows(place.slot, 4)) for place in places(NANO).values()]
    stream.move(jobs, read, None, title="test", source="test")
    assert 1 <= len(threads) <= stream.WORKERS


@pytest.mark.parametrize("change", ["flip", "remove", "truncate"])
def test_damaged_values(copied, tmp_path, change):
    files = [copied / "params" / f"model.{name}" / "c/0/0" for name in ("latent_in.kernel", "connector.fc1.kernel")]
    for file in files:
        data = bytearray(file.read_bytes())
        data[5] ^= 1
        if change == "remove":
            file.unlink()
        else:
            file.write_bytes(data if change == "flip" else data[:-7])
    with pytest.raises(CheckpointError, match=r"nano.*vae2llm\.weight") as raised:
        check(copied)
    assert "connector.fc1.weight" in str(raised.value)
    assert "llm2vae.weight" not in str(raised.value)
    with pytest.raises(CheckpointError, match=r"vae2llm\.weight"):
        to_bagel(copied, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nano"]
    if change != "remove":  # a missing chunk reads as zeros, which only the digests reveal
        with pytest.raises(CheckpointError, match="cannot be restored"):
            load_checkpoint(copied)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_that_are_not_finite_are_counted(bad, dtype):
    values = np.array([[1, bad, 0, -0.0], [65504, -65504, 6e-8, bad]], np.float32).astype(dtype)
    assert stream.count_nonfinite(values) == 2
    assert stream.count_nonfinite(values[:1, :1]) == 0


def test_checkpoints_that_are_not_finite_are_refused(tmp_path):
    params = random_params()
    kernel = np.array(params["model"]["latent_in"]["kernel"])
    kernel[:2, 3] = np.nan, np.inf
    bad = {**params, "model": {**params["model"], "latent_in": {**params["model"]["latent_in"], "kernel": kernel}}}
    said = rf"{tmp_path}.*: 2 values are NaN or infinite, in 1 of {len(places(NANO))} tensors: vae2llm\.weight; fetch"
    with pytest.raises(CheckpointError, match=said):
        write_checkpoint(tmp_path / "nano", NANO, bad)
    assert not list(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patch:  # as earlier versions wrote it
        patch.setattr(stream, "count_nonfinite", lambda values: 0)
        write_checkpoint(tmp_path / "nano", NANO, bad)
    with pytest.raises(CheckpointError, match=said):
        check(tmp_path / "nano")
    with pytest.raises(CheckpointError, match=said):
        to_bagel(tmp_path / "nano", tmp_path / "back")
    with pytest.raises(CheckpointError, match=r"nano: 2 values are NaN or infinite, in 1 of \d+ .*latent_in/kernel"):
        load_checkpoint(tmp_path / "nano")
    load_checkpoint(tmp_path / "nano", parts=("autoencoder",))


def test_exchanged_layers_are_found_by_their_digests(copied, tmp_path):
    """Each file is intact; only the manifest shows which is which."""
    folder = copied / "params" / "model.language.layers.gen.mlp.gate.kernel" / "c"
    (folder / "0").rename(folder / "x")
    (folder / "1").rename(folder / "0")
    (folder / "x").rename(folder / "1")
    names = [f"language_model.model.layers.{n}.mlp_moe_gen.gate_proj.weight" for n in (0, 1)]
    said = rf"values of 2 tensors differ from manifest\.json: {', '.join(names)}; convert again"
    with pytest.raises(CheckpointError, match=said):
        check(copied)
    with pytest.raises(CheckpointError, match=said):
        to_bagel(copied, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["nano"]


def test_missing_arrays(copied):
    for name in ("kernel", "bias"):
        shutil.rmtree(copied / "params" / f"model.latent_in.{name}")
    with pytest.raises(CheckpointError) as raised:
        check(copied)
    assert all(f"model/latent_in/{name} cannot be opened" in str(raised.value) for name in ("kernel", "bias"))
    with pytest.raises(CheckpointError, match=r"nano: cannot be restored \(.*model\.latent_in") as restored:
        load_checkpoint(copied)
    assert "\n" not in str(raised.value) + str(restored.value)


def test_damaged_small_files(copied):
    (copied / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer/tokenizer\.json has changed"):
        open_checkpoint(copied)
    (copied / "model_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"model_config\.json is missing"):
        open_checkpoint(copied)


@pytest.mark.parametrize("text", ["", "{}", '{"tensors": 3}', "null"])
def test_damaged_manifest(copied, text):
    (copied / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
        open_checkpoint(copied)


def test_a_manifest_of_another_model(copied):
    manifest = open_checkpoint(copied).manifest
    other = dataclasses.replace(NANO, max_latent_size=3)
    write_checkpoint(copied.parent / "other", other, jax.tree.map(jnp.zeros_like, small_table(random_params())))
    merged = open_checkpoint(copied.parent / "other").manifest
    merged.files["model_config.json"] = manifest.files["model_config.json"]
    merged.files["tokenizer/tokenizer.json"] = manifest.files["tokenizer/tokenizer.json"]
    (copied / "manifest.json").write_text(merged.text())
    with pytest.raises(CheckpointError, match=r"manifest\.json does not fit model_config\.json"):
        open_checkpoint(copied)


def small_table(params):
    flat = traverse_util.flatten_dict(params, sep="/")
    flat["model/latent_position/table"] = np.zeros((9, NANO.language.hidden_size), np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def test_parameters_that_do_not_fit(tmp_path):
    params = small_table(random_params())
    params["model"]["extra"] = jnp.zeros(2)
    params["model"]["latent_in"]["bias"] = np.zeros(128)
    with pytest.raises(CheckpointError) as raised:
        write_checkpoint(tmp_path / "nano", NANO, params)
    faults = str(raised.value).split(": ", 2)[2].removeprefix("array ").split("; array ")
    assert sorted(faults) == [
        "model/extra is unknown",
        "model/latent_in/bias is float64; supported are float32, float16, bfloat16",
        f"model/latent_position/table is [9, 128], expected [{NANO.max_latent_size**2}, 128]",
    ]
    del params["autoencoder"]["encoder"]["conv_in"]["bias"]
    said = "4 faults, 1 missing, 1 of another shape, 1 of another dtype, 1 unknown: autoencoder/encoder/conv_in/bias, "
    with pytest.raises(CheckpointError, match=said):
        write_checkpoint(tmp_path / "nano", NANO, params)
    assert list(tmp_path.iterdir()) == []


def test_overwriting(copied, tmp_path):
    before = all_bytes(copied)
    zeros = jax.tree.map(jnp.zeros_like, random_params())
    with pytest.raises(FolderError, match="nano: exists; choose another target or add --overwrite"):
        write_checkpoint(copied, NANO, zeros)
    assert all_bytes(copied) == before
    write_checkpoint(copied, NANO, zeros, overwrite=True)
    assert_same(load_checkpoint(copied)[1], zeros)
    assert [path.name for path in tmp_path.iterdir()] == ["nano"]


def test_only_checkpoints_are_overwritten(written, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("home", "file"):
        with pytest.raises(FolderError, match=f"{name}: exists and is no checkpoint, so --overwrite does not"):
            write_checkpoint(tmp_path / name, NANO, random_params(), overwrite=True)
    with pytest.raises(FolderError, match="exists and is no checkpoint"):
        to_bagel(written, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "x"


def test_a_failure_leaves_the_old_checkpoint(copied, tmp_path, monkeypatch):
    before = all_bytes(copied)

    def broken(self, place, start, rows):
        raise RuntimeError("broken")

    monkeypatch.setattr("pdgen.checkpoints.arrays.Arrays.write", broken)
    with pytest.raises(RuntimeError, match="broken"):
        write_checkpoint(copied, NANO, random_params(), overwrite=True)
    assert all_bytes(copied) == before
    assert [path.name for path in tmp_path.iterdir()] == ["nano"]


def test_too_little_space_is_reported_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(FolderError, match=r"nano: needs [\d,]+ bytes, .* has 5 free; make room"):
        write_checkpoint(tmp_path / "nano", NANO, random_params())
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pdgen.checkpoints import arrays, safetensors_file
from pdgen.checkpoints.conversion import to_bagel, to_pdgen
count = 0
def kill_after_some(function):
    def wrapped(*arguments):
        global count
        count += 1
        if count > 100:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return wrapped
arrays.Arrays.write = kill_after_some(arrays.Arrays.write)
safetensors_file.write = kill_after_some(safetensors_file.write)
convert = {"to_pdgen": to_pdgen, "to_bagel": to_bagel}[sys.argv[1]]
convert(sys.argv[2], sys.argv[3], overwrite=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["to_pdgen", "to_bagel"])
@pytest.mark.parametrize("existed", [True, False])
def test_killed_half_way(tmp_path, direction, existed):
    source, pdgen, target = tmp_path / "bagel", tmp_path / "pdgen", tmp_path / "target"
    copy_of_golden(source)
    to_pdgen(source, pdgen)
    start = source if direction == "to_pdgen" else pdgen
    if existed:
        shutil.copytree(pdgen if direction == "to_pdgen" else source, target)
    before = all_bytes(target)
    command = [sys.executable, "-c", KILLED, direction, str(start), str(target)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert all_bytes(target) == before
    assert target.exists() == existed
    (left,) = tmp_path.glob(".target.partial-*")
    assert any(left.rglob("*"))
    said = {"to_pdgen": r"missing, so this is not a \(whole\) pdgen checkpoint", "to_bagel": "without json files"}
    with pytest.raises(CheckpointError, match=said[direction]):
        check(left)
    for file in left.glob("*.safetensors"):
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            read_header(file)

    lines = []
    convert = to_pdgen if direction == "to_pdgen" else to_bagel
    convert(start, target, overwrite=True, log=lines.append)
    assert any(str(left) in line and "killed" in line for line in lines)
    assert check(target).tensors == check(source).tensors

"""Int8 checkpoints: values against PyTorch's rounding, and refusals."""

import json

import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec
from safetensors.torch import load_file

from pdgen.checkpoints.conversion import check, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.load import load
from pdgen.checkpoints.mapping import INT8_SCALES, places
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint, open_checkpoint
from pdgen.checkpoints.quantized import quantize
from pdgen.checkpoints.runs.base import load_base
from pdgen.config import read_config
from pdgen.models.linear import is_int8
from pdgen.sharding import make_mesh

from .folders import AUTOENCODER, GOLDEN, WEIGHTS, all_bytes, copy_of_golden, edit_tensors


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    to_pdgen(copy_of_golden(folder / "bagel"), folder / "int8", int8=True)
    return folder / "int8"


def test_values_are_those_of_pytorch(converted):
    """Rounded in float64, with the largest value of each row at 127."""
    tensors = load_file(GOLDEN / WEIGHTS)
    _, params = load_checkpoint(converted)
    rounded = 0
    for place in places(read_config(GOLDEN), ("model",), int8=True).values():
        array = params
        for key in place.path.split("/"):
            array = array[key]
        found = np.asarray(array if place.layer is None else array[place.layer]).reshape(place.shape)
        if place.name.endswith("_scale"):
            largest = tensors[place.name.removesuffix("_scale")].abs().amax(1)
            np.testing.assert_allclose(found, largest / 127, rtol=1e-6)
        elif found.dtype == np.int8:
            kernel = tensors[place.name].double()
            theirs = torch.round(kernel / (kernel.abs().amax(1, keepdim=True) / 127)).numpy()
            different = found != theirs
            assert np.abs(found - theirs).max() <= 1 and different.mean() < 1e-3  # ties may differ
            rounded += 1
        else:
            np.testing.assert_array_equal(found, tensors[place.name].reshape(place.shape).numpy())
    language, vision = read_config(GOLDEN).language, read_config(GOLDEN).vision
    assert rounded == 2 + 2 * 7 * language.num_layers + 6 * vision.num_layers
    names = {rule.path.rsplit("/", 1)[-1] for rule in INT8_SCALES}
    assert names == {"kernel_scale", "embedding_scale"}


def test_the_autoencoder_is_not_quantized(converted):
    _, params = load_checkpoint(converted, parts=("autoencoder",))
    tensors = load_file(GOLDEN / AUTOENCODER)
    found = params["autoencoder"]["decoder"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(found, tensors["decoder.conv_in.weight"])


def test_a_pdgen_checkpoint_gives_the_same_bytes(converted, tmp_path):
    to_pdgen(converted.parent / "bagel", tmp_path / "floats")
    manifest = to_pdgen(tmp_path / "floats", tmp_path / "int8", int8=True)
    assert all_bytes(tmp_path / "int8") == all_bytes(converted)
    assert check(converted) == manifest


def test_bfloat16_beside_int8(converted, tmp_path):
    """``dtype`` applies to the arrays that are not rounded to int8; the scales stay float32."""
    to_pdgen(converted.parent / "bagel", tmp_path / "int8", dtype=np.dtype("bfloat16"), int8=True)
    kinds = {t.name: t.dtype for t in open_checkpoint(tmp_path / "int8").manifest.tensors}
    head = "language_model.lm_head.weight"
    assert (kinds[head], kinds[f"{head}_scale"], kinds["vae2llm.weight"]) == ("int8", "float32", "bfloat16")


def test_a_row_of_zeros_and_a_tiny_row():
    rows = np.array([[0, 0, 0], [1e-40, -1e-40, 0], [1, -2, 0.5]], np.float32)
    values, scale = quantize(rows, 1)
    np.testing.assert_array_equal(values[[0, 2]], [[0, 0, 0], [64, -127, 32]])  # 63.5 and 31.75 steps of 2 / 127
    assert scale[0] == 0 and np.isfinite(scale).all()
    np.testing.assert_allclose(values[1] * scale[1], rows[1], atol=1e-42)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    folder = copy_of_golden(tmp_path / "bagel")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors[name].view(-1)[5:6].fill_(value))
    with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite"):
        to_pdgen(folder, tmp_path / "int8", int8=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bagel"]


def refuse(words, function, *arguments, **options):
    with pytest.raises(CheckpointError) as fault:
        function(*arguments, **options)
    line = str(fault.value)
    assert words in line and "take the one that it was made from" in line
    assert len(line) < 400 and "\n" not in line


def test_only_sampling_accepts_int8(converted, tmp_path):
    refuse("a training step changes weights by less", load_base, str(converted), "")
    refuse("BAGEL's code reads floats", to_bagel, converted, tmp_path / "bagel")
    refuse("it cannot be rounded again", to_pdgen, converted, tmp_path / "again", int8=True)
    assert not list(tmp_path.iterdir())


def test_int8_loads_onto_a_mesh(converted):
    alone, split = load(converted), load(converted, make_mesh((2, 2, 2)))
    assert is_int8(alone.params["model"]) and alone.digest == split.digest
    up = split.params["model"]["language"]["layers"]["gen"]["mlp"]["up"]
    ours = alone.params["model"]["language"]["layers"]["gen"]["mlp"]["up"]
    assert up["kernel"].sharding.spec == PartitionSpec(None, "tensor", "fsdp")
    assert up["kernel_scale"].sharding.spec == PartitionSpec(None, "tensor")
    for name in ("kernel", "kernel_scale"):
        np.testing.assert_array_equal(up[name], ours[name])


def test_a_manifest_that_mixes_int8_and_floats_is_refused(converted, tmp_path):
    """As if the experts were int8 and the head was not."""
    path = tmp_path / "int8"
    to_pdgen(converted.parent / "bagel", path, int8=True)
    manifest = json.loads((path / "manifest.json").read_text())
    next(t for t in manifest["tensors"] if t["name"] == "language_model.lm_head.weight")["dtype"] = "float32"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="does not fit"):
        open_checkpoint(path)

"""Step folders of BAGEL's trainer, completed from a base, against the tensors that PyTorch saved."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pdgen.checkpoints.conversion import check, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.load import find
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint, open_checkpoint
from pdgen.config import read_config

from ...torch_reference.bagel import Bagel, load_configs
from ..folders import (
    AUTOENCODER,
    LANGUAGE,
    TOKENIZER,
    WEIGHTS,
    all_bytes,
    assert_equal,
    copy_of_golden,
    edit_json,
    edit_tensors,
    expected_arrays,
    shard,
    step_folder,
)

VISION = ("vit_model", "connector", "vit_pos_embed")


@pytest.fixture
def base(tmp_path):
    """A base in bfloat16, as published."""
    folder = copy_of_golden(tmp_path / "base")
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    return folder


def convert(source, base, target, **options):
    lines = []
    to_pdgen(source, target, base=base, log=lines.append, **options)
    return lines


@pytest.mark.parametrize("without", [(), VISION])
def test_a_step_folder(base, tmp_path, without):
    _, ema = step_folder(tmp_path / "step", without)
    lines = convert(tmp_path / "step", base, tmp_path / "pdgen")
    of_base = load_file(base / WEIGHTS)
    expected = of_base | ema | load_file(base / AUTOENCODER)
    config, params = load_checkpoint(tmp_path / "pdgen")
    assert config == read_config(base)
    assert_equal(params, expected_arrays(base, expected))

    taken = [line.split(": ", 1)[1] for line in lines if " is taken from " in line and "module" in line]
    counts = {m: sum(n.startswith(f"{m}.") for n in of_base) for m in without}
    assert sorted(taken) == sorted(
        [f"module autoencoder ({len(load_file(base / AUTOENCODER))} tensors) is taken from {base}"]
        + [f"module {m} ({n} tensor{'s' if n > 1 else ''}) is taken from {base}" for m, n in counts.items()]
    )
    step = tmp_path / "step"
    assert f"{step}: config.json, llm_config.json, vit_config.json are taken from {base}" in lines
    assert f"{step}: the tokenizer is taken from {base}" in lines
    rest = "data_status.pt, optimizer.00000-of-00002.pt, optimizer.00001-of-00002.pt and 1 more"
    assert f"{step}: not part of the checkpoint, so not carried over: {rest}" in lines
    assert check(step, base=base, log=lambda line: None).tensors == open_checkpoint(tmp_path / "pdgen").manifest.tensors

    back = tmp_path / "back"
    to_bagel(tmp_path / "pdgen", back)
    assert set(all_bytes(back)) == {*all_bytes(base)}
    for name in (AUTOENCODER, *TOKENIZER, "config.json", "llm_config.json", "vit_config.json"):
        assert (back / name).read_bytes() == (base / name).read_bytes(), name
    model = Bagel(*load_configs(back))
    written = load_file(back / WEIGHTS)
    model.load_state_dict(written, strict=True)
    for name, tensor in written.items():
        assert torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype, name


def test_a_missing_tensor_of_a_present_module_is_not_taken(base, tmp_path):
    step_folder(tmp_path / "step", VISION[1:])
    name = "vit_model.vision_model.post_layernorm.bias"
    edit_tensors(tmp_path / "step" / WEIGHTS, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"step: tensor {name} is missing$"):
        convert(tmp_path / "step", base, tmp_path / "pdgen")
    assert not (tmp_path / "pdgen").exists()


def test_a_base_of_other_sizes(base, tmp_path):
    step_folder(tmp_path / "step", VISION)
    edit_tensors(base / WEIGHTS, lambda t: t.update({n: t[n][:, :-8].clone() for n in t if n == "vae2llm.weight"}))
    with pytest.raises(CheckpointError, match=r"base: tensor vae2llm\.weight is"):
        convert(tmp_path / "step", base, tmp_path / "pdgen")


def test_shards_are_completed_with_their_index(base, tmp_path):
    """The raw weights in three files; a conversion back has one index for all of them."""
    raw, _ = step_folder(tmp_path / "step", VISION)
    (tmp_path / "step" / WEIGHTS).unlink()
    shard(tmp_path / "step", 3, "model.safetensors")
    convert(tmp_path / "step", base, tmp_path / "pdgen")
    back = tmp_path / "back"
    to_bagel(tmp_path / "pdgen", back)
    index = json.loads((back / "model.safetensors.index.json").read_text())
    expected = load_file(base / WEIGHTS) | raw
    assert set(index["weight_map"]) == set(expected)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(back / file)[name], expected[name]), name
    assert check(back).tensors == open_checkpoint(tmp_path / "pdgen").manifest.tensors


def test_files_of_the_folder_take_precedence(base, tmp_path):
    """A folder that lacks only the ViT keeps its json files, which then say that the ViT is there."""
    folder = copy_of_golden(tmp_path / "mine")
    edit_tensors(folder / WEIGHTS, lambda t: [t.pop(n) for n in list(t) if n.partition(".")[0] in VISION])
    edit_json(folder / "config.json", visual_und=False, timestep_shift=2.5)
    edit_tensors(base / AUTOENCODER, lambda t: t["encoder.conv_in.bias"].add_(1))
    lines = convert(folder, base, tmp_path / "pdgen")
    assert [line.split(": ")[1].split(" (")[0] for line in lines] == [f"module {module}" for module in sorted(VISION)]
    assert open_checkpoint(tmp_path / "pdgen").config.timestep_shift == 2.5
    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    assert (tmp_path / "back" / AUTOENCODER).read_bytes() == (folder / AUTOENCODER).read_bytes()
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written == json.loads((folder / "config.json").read_text()) | {"visual_und": True}


def test_a_missing_base_is_reported(tmp_path):
    step_folder(tmp_path / "step")
    with pytest.raises(CheckpointError, match=r"step: holds weights without json files.*--base=FOLDER"):
        to_pdgen(tmp_path / "step", tmp_path / "pdgen")
    with pytest.raises(CheckpointError, match=r"step: holds a PyTorch model; convert it first: .*--base="):
        find(tmp_path / "step")
    folder = copy_of_golden(tmp_path / "blind")
    edit_tensors(folder / WEIGHTS, lambda t: [t.pop(n) for n in list(t) if n.startswith("vit_model.")])
    with pytest.raises(CheckpointError, match=r"blind: module vit_model is missing \(\d+ tensors\); --base=FOLDER"):
        to_pdgen(folder, tmp_path / "pdgen")
    (folder / AUTOENCODER).unlink()
    with pytest.raises(CheckpointError, match=r"ae\.safetensors: missing; --base=FOLDER takes it from"):
        to_pdgen(folder, tmp_path / "pdgen")


def test_a_base_must_be_a_whole_bagel_folder(base, tmp_path):
    step_folder(tmp_path / "step")
    to_pdgen(base, tmp_path / "converted", log=lambda line: None)
    with pytest.raises(CheckpointError, match=r"converted: is a pdgen checkpoint; --base takes a BAGEL folder"):
        convert(tmp_path / "step", tmp_path / "converted", tmp_path / "pdgen")
    with pytest.raises(CheckpointError, match=r"none: no such folder"):
        convert(tmp_path / "step", tmp_path / "none", tmp_path / "pdgen")
    (base / f"{WEIGHTS}").unlink()
    with pytest.raises(CheckpointError, match=r"base/ema\.safetensors: missing"):
        convert(tmp_path / "step", base, tmp_path / "pdgen")


def test_the_language_model_is_one_module(base, tmp_path):
    """One expert alone is not a module: a mixture of two trainings would pass for a model."""
    step_folder(tmp_path / "step")
    edit_tensors(tmp_path / "step" / WEIGHTS, lambda tensors: [tensors.pop(n) for n in list(tensors) if "moe_gen" in n])
    with pytest.raises(CheckpointError, match=rf"faults, \d+ missing: {LANGUAGE}layers\.0.*moe_gen"):
        convert(tmp_path / "step", base, tmp_path / "pdgen")

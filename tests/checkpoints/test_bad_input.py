"""Every fault of a BAGEL folder ends in one line that names it, and nothing is written."""

import json
import re
import shutil

import pytest
import torch

from pdgen.checkpoints.conversion import check, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import AutoencoderConfig, ConfigError

from .folders import AUTOENCODER, LANGUAGE, WEIGHTS, copy_of_golden, edit_json, edit_tensors, shard


@pytest.fixture
def folder(tmp_path):
    return copy_of_golden(tmp_path / "bagel")


def refuse(folder, said, error=CheckpointError):
    """Check that converting fails with a line that matches ``said`` and leaves nothing beside the folder."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(error) as raised:
        to_pdgen(folder, folder.parent / "pdgen", log=lambda line: None)
    line = str(raised.value)
    assert "\n" not in line
    assert re.search(said, line), line
    assert sorted(folder.parent.iterdir()) == before
    return line


def test_unknown_missing_and_misshapen_tensors_all_at_once(folder):
    def edit(tensors):
        tensors["adapter.weight"] = torch.zeros(2)
        tensors[f"{LANGUAGE}layers.1.self_attn.q_proj.lora"] = torch.zeros(2)
        del tensors["llm2vae.bias"], tensors[f"{LANGUAGE}layers.2.mlp_moe_gen.up_proj.weight"]
        tensors["connector.fc1.weight"] = tensors["connector.fc1.weight"].T.contiguous()

    edit_tensors(folder / WEIGHTS, edit)
    edit_tensors(folder / AUTOENCODER, lambda tensors: tensors.pop("encoder.conv_in.bias"))
    line = refuse(folder, "6 faults, 2 unknown, 1 of another shape, 3 missing: ")
    gone = f"{LANGUAGE}layers.2.mlp_moe_gen.up_proj.weight"
    assert line.split(": ", 2)[2] == (
        f"adapter.weight, connector.fc1.weight, {gone} and 3 more; take tensors and json files from one model"
    )


def test_few_faults_are_listed_in_one_line(folder):
    def edit(tensors):
        tensors["adapter.weight"] = torch.zeros(2)
        tensors["connector.fc1.weight"] = tensors["connector.fc1.weight"].T.contiguous()

    edit_tensors(folder / WEIGHTS, edit)
    edit_tensors(folder / AUTOENCODER, lambda tensors: tensors.pop("encoder.conv_in.bias"))
    assert refuse(folder, "").split(": ", 1)[1].split("; ") == [
        "tensor adapter.weight is unknown (ema.safetensors)",
        "tensor connector.fc1.weight is [48, 64], expected [64, 48]",
        "tensor encoder.conv_in.bias is missing",
    ]


def test_another_model_altogether_is_a_short_line(folder):
    def edit(tensors):
        for name in list(tensors):
            tensors[f"module.of.a.wrapper.with.a.long.name.{name}"] = tensors.pop(name)

    edit_tensors(folder / AUTOENCODER, edit)
    assert len(refuse(folder, r"\d+ faults, \d+ unknown, 1 missing as a module")) - len(str(folder)) < 400


def test_nan_and_infinity(folder):
    def edit(tensors):
        tensors["connector.fc1.weight"][0, :5] = float("nan")
        tensors["llm2vae.bias"][3] = float("inf")

    edit_tensors(folder / WEIGHTS, edit)
    said = r"bagel: 6 values are NaN or infinite, in 2 of \d+ tensors: connector\.fc1\.weight, llm2vae\.bias; fetch"
    refuse(folder, said)
    with pytest.raises(CheckpointError, match=said):
        check(folder)


def test_a_table_that_is_not_square(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.update({"latent_pos_embed.pos_embed": torch.zeros(63, 64)}))
    refuse(folder, r"latent_pos_embed\.pos_embed is \[63, 64\], expected \[64, 64\]")


def test_a_tensor_in_two_files(folder):
    edit_tensors(folder / AUTOENCODER, lambda tensors: tensors.update({"llm2vae.bias": torch.zeros(16)}))
    refuse(folder, r"llm2vae\.bias is in ema\.safetensors and in ae\.safetensors")


@pytest.mark.parametrize("name", [WEIGHTS, AUTOENCODER])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    refuse(folder, f"{re.escape(str(folder / name))}: missing")


def test_both_files_missing_is_one_line(folder):
    (folder / WEIGHTS).unlink()
    (folder / AUTOENCODER).unlink()
    refuse(folder, r"ema\.safetensors: missing; .*ae\.safetensors: missing")


@pytest.mark.parametrize("name", ["config.json", "llm_config.json", "vit_config.json"])
def test_json_files(folder, name):
    text = (folder / name).read_text()
    (folder / name).write_text(text[:-5])
    refuse(folder, f"{name}: not valid json", ConfigError)
    (folder / name).unlink()
    refuse(folder, f"{name}: missing", ConfigError)


@pytest.mark.parametrize(
    "name, values, said",
    [
        ("llm_config.json", {"num_attention_heads": 0}, "'num_attention_heads' is 0, expected at least 1"),
        ("vit_config.json", {"num_attention_heads": "4"}, "'num_attention_heads' is '4', expected int"),
        ("vit_config.json", {"patch_size": None}, "'patch_size' is missing"),
        ("config.json", {"vae_config": 3}, "'vae_config' is 3, expected dict"),
        ("config.json", {"vae_config": {"ch_mult": [1, "2"]}}, "'ch_mult' is"),
        ("config.json", {"vae_config": {"downsample": "2"}}, "'downsample' is '2', expected float"),
        ("config.json", {"vae_config": {"ch_mult": [1] * 17}}, "'ch_mult' is [1, 1, "),
        ("llm_config.json", {"rope_theta": float("nan")}, "'rope_theta' is nan, expected float"),
        ("llm_config.json", {"rope_theta": 10**400}, "'rope_theta' is 1000"),
    ],
)
def test_values_of_json_files(folder, name, values, said):
    edit_json(folder / name, **values)
    refuse(folder, rf"{name}: key {re.escape(said)}", ConfigError)


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("config.json", "connector_act", "relu"),
        ("llm_config.json", "hidden_act", "gelu"),
        ("vit_config.json", "hidden_act", "quick_gelu"),
        ("llm_config.json", "rope_scaling", {"type": "yarn"}),
    ],
)
def test_another_model(folder, name, key, value):
    edit_json(folder / name, **{key: value})
    refuse(folder, rf"{name}: {key} is {re.escape(json.dumps(value))}, only .* is supported")


def test_heads_that_do_not_divide(folder):
    edit_json(folder / "vit_config.json", num_attention_heads=5)
    refuse(folder, r"vit_config\.json: num_attention_heads 5 does not divide the width 48")


def test_groups_that_do_not_divide(folder):
    vae = json.loads((folder / "config.json").read_text())["vae_config"]
    edit_json(folder / "config.json", vae_config=vae | {"num_groups": 7})
    refuse(folder, r"config\.json: vae_config\.num_groups 7 does not divide ch 32")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_pickles(folder, tmp_path, suffix):
    (folder / WEIGHTS).unlink()
    pickled = folder / f"model{suffix}"
    torch.save({"weight": torch.zeros(1)}, pickled)
    refuse(folder, rf"model\{suffix}: is a pickle, which runs code when it is read.*save_file")
    refuse(pickled, "is a pickle")


def test_truncated(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    refuse(folder, r"ema\.safetensors: truncated, [\d,]+ bytes are missing")


def test_shards(folder):
    shard(folder, 3)
    gone = folder / "model-00002-of-00003.safetensors"
    shutil.move(gone, folder.parent / "elsewhere")
    refuse(folder, r"model-00002-of-00003\.safetensors: missing")
    shutil.move(folder.parent / "elsewhere", gone)

    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    stated = json.loads(text)
    wrong = {**stated["weight_map"], "llm2vae.bias": "model-00003-of-00003.safetensors"}
    assert wrong != stated["weight_map"]
    index.write_text(json.dumps({"weight_map": wrong}))
    refuse(folder, r"index\.json puts llm2vae\.bias into model-00003-of-00003\.safetensors, which does not hold")
    index.write_text(json.dumps({"weight_map": {"llm2vae.bias": "../other.safetensors"}}))
    refuse(folder, r"names files outside the folder: \.\./other\.safetensors")
    for bad in ("{}", "[]", "3", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(bad)
        refuse(folder, r"index\.json: holds no weight_map")
    index.unlink()
    refuse(folder, r"index\.json: missing; 3 files model\*\.safetensors need it")


def test_no_folder(tmp_path):
    refuse(tmp_path / "none", "none: no such folder")
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", "file: no such folder")


def test_the_wrong_direction(folder, tmp_path):
    with pytest.raises(CheckpointError, match="is a BAGEL folder, not a pdgen checkpoint; convert it without"):
        to_bagel(folder, tmp_path / "back")
    to_pdgen(folder, tmp_path / "pdgen")
    with pytest.raises(CheckpointError, match="is a pdgen checkpoint already; --reverse"):
        to_pdgen(tmp_path / "pdgen", tmp_path / "again")


def test_an_autoencoder_alone(folder):
    sizes = AutoencoderConfig(channels=32, multipliers=(1, 2), num_blocks=1, z_channels=4)
    assert read_autoencoder(folder, sizes)["encoder"]["conv_in"]["kernel"].shape == (32, 3, 3, 3)
    with pytest.raises(CheckpointError, match=r"ae\.safetensors: \d+ faults, .* missing.*conv"):
        read_autoencoder(folder, AutoencoderConfig())

"""Formats that cannot be converted end in one short line that names the format and the file to take instead."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdgen.checkpoints.conversion import check, to_pdgen
from pdgen.checkpoints.errors import CheckpointError

from ..folders import AUTOENCODER, LANGUAGE, WEIGHTS, copy_of_golden, edit_tensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 29215440496\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
GGUF = b"GGUF\x03\x00\x00\x00" + bytes(100)
LAYER = f"{LANGUAGE}layers.0.mlp.up_proj"
TAKE = r"take ema\.safetensors of "


@pytest.fixture
def folder(tmp_path):
    return copy_of_golden(tmp_path / "bagel")


def refuse(source, said):
    """Conversion and check end with the same line, and nothing is written beside the source."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(CheckpointError, match=said) as raised:
        to_pdgen(source, source.parent / "pdgen", log=lambda line: None)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    assert sorted(source.parent.iterdir()) == before
    with pytest.raises(CheckpointError, match=said):
        check(source, log=lambda line: None)
    return str(raised.value)


@pytest.mark.parametrize(
    "name", [WEIGHTS, AUTOENCODER, "config.json", "llm_config.json", "tokenizer.json", "merges.txt"]
)
@pytest.mark.parametrize(
    "data, said",
    [(POINTER, "is a Git LFS pointer instead of the file; run git lfs pull"), (PAGE, "is an HTML page instead of")],
)
def test_leftovers_of_a_download(folder, name, data, said):
    (folder / name).write_bytes(data)
    refuse(folder, rf"bagel/{name}: {said}")


def test_an_index_that_is_a_pointer(folder):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(POINTER)
    refuse(folder, r"model\.safetensors\.index\.json: is a Git LFS pointer")


def test_gguf(folder, tmp_path):
    (folder / WEIGHTS).write_bytes(GGUF)
    refuse(folder, rf"ema\.safetensors: holds quantized weights for llama\.cpp \(GGUF\).*; {TAKE}")
    (folder / WEIGHTS).rename(folder / "bagel-q4_k_m.gguf")
    refuse(folder, rf"bagel: holds quantized weights for llama\.cpp \(GGUF\).*; {TAKE}")
    refuse(folder / "bagel-q4_k_m.gguf", rf"q4_k_m\.gguf: holds quantized weights for llama\.cpp .*; {TAKE}")


BYTES = torch.zeros(8, dtype=torch.uint8)
SCALE = torch.ones(1)


@pytest.mark.parametrize(
    "kind, tensors",
    [
        ("scaled FP8", {f"{LAYER}.weight_scale": SCALE}),
        ("scaled FP8", {f"{LAYER}.weight_scale_inv": SCALE}),
        ("scaled FP8", {f"{LAYER}.scale_weight": SCALE, "scaled_fp8": SCALE.to(torch.float8_e4m3fn)}),
        (
            r"bitsandbytes 4-bit \(NF4 or FP4\)",
            {
                f"{LAYER}.weight": BYTES,
                f"{LAYER}.weight.absmax": BYTES,
                f"{LAYER}.weight.quant_map": SCALE,
                f"{LAYER}.weight.quant_state.bitsandbytes__nf4": BYTES,
            },
        ),
        ("bitsandbytes int8", {f"{LAYER}.weight": BYTES.to(torch.int8), f"{LAYER}.SCB": SCALE}),
        (
            "DFloat11",
            {f"{LANGUAGE}layers.0.{n}": BYTES for n in ("encoded_exponent", "sign_mantissa", "luts", "gaps")},
        ),
        ("GPTQ or AWQ", {f"{LAYER}.qweight": BYTES.to(torch.int32), f"{LAYER}.scales": SCALE.half()}),
    ],
)
@pytest.mark.parametrize("name", [WEIGHTS, "bagel-small.safetensors"])
def test_quantized_weights(folder, kind, tensors, name):
    def edit(found):
        found.pop(f"{LAYER}.weight")
        found |= {name: tensor.clone() for name, tensor in tensors.items()}

    edit_tensors(folder / WEIGHTS, edit)
    (folder / WEIGHTS).rename(folder / name)
    refuse(folder, rf"{name}: holds {kind} weights \(by .*\), which do not convert; {TAKE}")


def test_a_diffusers_layout(folder, tmp_path):
    pipeline = tmp_path / "pipeline"
    for part in ("transformer", "vae"):
        (pipeline / part).mkdir(parents=True)
        (pipeline / part / "config.json").write_text(json.dumps({"_class_name": "X", "_diffusers_version": "0.36.0"}))
        save_file({"x": SCALE}, pipeline / part / "diffusion_pytorch_model.safetensors")
    refuse(pipeline / "transformer", rf"transformer: is a diffusers layout.*; {TAKE}")
    (pipeline / "model_index.json").write_text("{}")
    refuse(pipeline, rf"pipeline: is a diffusers layout.*; {TAKE}")


def test_a_folder_that_is_split_by_modules(tmp_path):
    root = tmp_path / "omni"
    for part in ("bagel_llm", "bagel_siglip", "bagel_text_encoder", "bagel_vae"):
        (root / part).mkdir(parents=True)
        (root / part / "config.json").write_text("{}")
        save_file({"x": SCALE}, root / part / "model.safetensors")
    shown = r"\(bagel_llm, bagel_siglip, bagel_text_encoder and 1 more\)"
    refuse(root, rf"omni: is split by modules into folders {shown}, as VeOmni does; {TAKE}")


def test_a_distributed_checkpoint(tmp_path):
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "__0_0.distcp").write_bytes(b"PK")
    refuse(tmp_path / "step", r"is a sharded checkpoint of torch\.distributed \(\.distcp\).*merge it to safetensors")


def test_a_file_in_place_of_its_folder(folder):
    line = refuse(folder / WEIGHTS, r"ema\.safetensors: is a file; name its folder")
    assert line.endswith(str(folder))


def test_weights_under_another_name(folder):
    (folder / WEIGHTS).rename(folder / "bagel.safetensors")
    refuse(folder, r"holds bagel\.safetensors, but neither ema\.safetensors nor model\.safetensors; rename the file")


def test_a_bad_file_that_is_not_needed_is_ignored(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(POINTER)
    (folder / "README.md").write_bytes(PAGE)
    lines = []
    to_pdgen(folder, tmp_path / "pdgen", log=lines.append)
    assert any("model.safetensors is not" in line and "cannot be compared" in line for line in lines)
    assert len(load_file(folder / WEIGHTS)) + len(load_file(folder / AUTOENCODER)) == len(check(folder).tensors)

"""Read-only dtypes, wrapper names and tied embeddings, against PyTorch's casts and the reference model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pdgen.checkpoints.conversion import check, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint, open_checkpoint, write_checkpoint
from pdgen.checkpoints.safetensors_file import DTYPES
from pdgen.checkpoints.sources.tensors import EMBEDDING, HEAD

from ...torch_reference.bagel import Bagel, load_configs
from ..folders import (
    AUTOENCODER,
    WEIGHTS,
    all_bytes,
    assert_equal,
    copy_of_golden,
    edit_json,
    edit_tensors,
    expected_arrays,
    read_bagel_folder,
    shard,
)


@pytest.fixture
def folder(tmp_path):
    return copy_of_golden(tmp_path / "bagel")


def convert(folder, **options):
    """Convert; return the parameters and the lines for the user."""
    lines = []
    to_pdgen(folder, folder.parent / "pdgen", log=lines.append, overwrite=True, **options)
    return load_checkpoint(folder.parent / "pdgen")[1], lines


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_fp8(folder, stored):
    """Matrices in FP8, the rest in bfloat16, and some layers of an array in bfloat16 as well."""

    def edit(tensors):
        for name, tensor in tensors.items():
            plain = tensor.dim() < 2 or "layers.1.mlp" in name
            tensors[name] = tensor.to(torch.bfloat16 if plain else stored)

    edit_tensors(folder / WEIGHTS, edit)
    tensors = load_file(folder / WEIGHTS)
    count = sum(tensor.dtype == stored for tensor in tensors.values())
    assert 0 < count < len(tensors)
    expected = {name: tensor.bfloat16() for name, tensor in tensors.items()} | load_file(folder / AUTOENCODER)
    params, lines = convert(folder)
    assert_equal(params, expected_arrays(folder, expected))
    name = str(stored).removeprefix("torch.")
    assert lines == [f"{folder}: {count} tensors are stored as {name} and are cast to bfloat16"]
    checked = check(folder, log=lambda line: None)
    assert checked.tensors == open_checkpoint(folder.parent / "pdgen").manifest.tensors

    params, lines = convert(folder, dtype=DTYPES["F32"])
    of_model = {name: tensor.float() for name, tensor in tensors.items()}
    assert_equal(params, expected_arrays(folder, of_model | load_file(folder / AUTOENCODER)))
    assert lines == [f"{folder}: {count} tensors are stored as {name} and are cast to float32"]
    np.testing.assert_array_equal(read_bagel_folder(folder)[1]["model"]["connector"]["fc1"]["kernel"].dtype, "bfloat16")


def test_every_fp8_value(folder):
    """All finite values among the 256 bytes of both formats, against PyTorch."""
    rows = []
    for stored in (torch.float8_e4m3fn, torch.float8_e5m2):
        values = torch.arange(256, dtype=torch.int64).to(torch.uint8).view(stored)
        values = torch.where(values.float().isfinite(), values.float(), 0.0).to(stored)
        edit_tensors(folder / WEIGHTS, lambda t, v=values: t.update({"llm2vae.weight": v.repeat(4).reshape(16, 64)}))
        rows.append((values, convert(folder)[0]["model"]["latent_out"]["kernel"]))
    for values, kernel in rows:
        expected = values.bfloat16().float().repeat(4).reshape(16, 64)
        np.testing.assert_array_equal(np.asarray(kernel, np.float32), expected.numpy())


def test_float64(folder):
    for file in (WEIGHTS, AUTOENCODER):
        edit_tensors(folder / file, lambda t: t.update({n: v.double() * (1 + 1e-12) for n, v in t.items()}))
    expected = {n: t.float() for f in (WEIGHTS, AUTOENCODER) for n, t in load_file(folder / f).items()}
    params, lines = convert(folder)
    assert_equal(params, expected_arrays(folder, expected))
    assert lines == [f"{folder}: {len(expected)} tensors are stored as float64 and are cast to float32"]
    to_bagel(folder.parent / "pdgen", folder.parent / "back")
    assert {t.dtype for t in load_file(folder.parent / "back" / AUTOENCODER).values()} == {torch.float32}


def wrap(name):
    """Name a tensor as DistributedDataParallel, torch.compile of a part, or activation checkpointing does."""
    name = name.replace("language_model.model.", "language_model._orig_mod.model.")
    return "module." + name.replace("layers.1.", "layers.1._checkpoint_wrapped_module.")


@pytest.mark.parametrize("shards", [0, 2])
def test_names_of_wrappers(folder, shards):
    before = all_bytes(folder)
    whole = expected_arrays(folder)
    edit_tensors(folder / WEIGHTS, lambda t: [t.update({wrap(n): t.pop(n)}) for n in list(t)])
    count = len(load_file(folder / WEIGHTS))
    if shards:
        shard(folder, shards)
    params, lines = convert(folder)
    assert_equal(params, whole)
    said = "_checkpoint_wrapped_module. and _orig_mod. and module. left out of the names of"
    assert lines == [f"{folder}: {said} {count} tensors"]
    back = folder.parent / "back"
    to_bagel(folder.parent / "pdgen", back)
    if shards:
        index = json.loads((back / "model.safetensors.index.json").read_text())["weight_map"]
        assert all(name in load_file(back / file) for name, file in index.items())
        assert len(index) == count and not any("module." in name for name in index)
    else:
        assert load_file(back / WEIGHTS).keys() == set(load_file(folder / WEIGHTS)) ^ {
            name for n in load_file(back / WEIGHTS) for name in (n, wrap(n))
        }
        assert all(data == before[name] for name, data in all_bytes(back).items() if name != WEIGHTS)


def test_a_tensor_under_its_own_name_and_a_wrapper_s(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.update({"module.llm2vae.bias": t["llm2vae.bias"].clone()}))
    with pytest.raises(CheckpointError, match=r"llm2vae\.bias is in ema\.safetensors and in ema\.safetensors"):
        convert(folder)


@pytest.mark.parametrize("missing, serves", [(HEAD, EMBEDDING), (EMBEDDING, HEAD)])
@pytest.mark.parametrize("dtype", [None, "BF16"])
def test_tied_embeddings(folder, missing, serves, dtype):
    edit_json(folder / "llm_config.json", tie_word_embeddings=True)
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors.pop(missing))
    tensors = load_file(folder / WEIGHTS) | load_file(folder / AUTOENCODER)
    params, lines = convert(folder)
    assert_equal(params, expected_arrays(folder, tensors | {missing: tensors[serves]}))
    assert lines == [f"{folder}: {missing} is missing and tied, so {serves} serves as it"]
    back = folder.parent / "back"
    to_bagel(folder.parent / "pdgen", back, dtype=dtype and DTYPES[dtype])
    if dtype is None:
        assert all_bytes(back) == all_bytes(folder)
    assert missing not in load_file(back / WEIGHTS)
    assert (back / "llm_config.json").read_bytes() == (folder / "llm_config.json").read_bytes()


def test_a_separately_trained_head_is_not_tied(folder):
    edit_json(folder / "llm_config.json", tie_word_embeddings=True)
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors.pop(HEAD))
    params, _ = convert(folder)
    params["model"]["language"]["head"]["kernel"] += 1
    source = open_checkpoint(folder.parent / "pdgen").content()
    trained = folder.parent / "trained"
    write_checkpoint(trained, source.config, params, source_json=source.source_json)
    lines = []
    to_bagel(trained, folder.parent / "back", log=lines.append)
    assert lines == [
        "llm_config.json: tie_word_embeddings was true, is written as false, since head and embedding differ"
    ]
    written = load_file(folder.parent / "back" / WEIGHTS)
    assert torch.equal(written[HEAD], written[EMBEDDING] + 1)
    model = Bagel(*load_configs(folder.parent / "back"))
    model.load_state_dict(written, strict=True)
    assert torch.equal(model.language_model.lm_head.weight, written[HEAD])


def test_a_missing_head_of_untied_embeddings(folder):
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing; if it is the embedding, set tie_word_embe"):
        convert(folder)

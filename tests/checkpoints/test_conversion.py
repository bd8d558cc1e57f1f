"""Round trips: values against PyTorch's own reading of the folder, bytes against the folder itself."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from flax import traverse_util
from safetensors.torch import load_file, save_file

from pdgen.checkpoints.conversion import check, to_bagel, to_pdgen
from pdgen.checkpoints.mapping import array_shapes, expected_tensors
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint, open_checkpoint, write_checkpoint
from pdgen.checkpoints.safetensors_file import DTYPES, create, finish
from pdgen.checkpoints.torch_checkpoint import open_bagel_folder, read_autoencoder
from pdgen.config import BAGEL_7B, NANO, read_config
from pdgen.models import autoencoder
from pdgen.sequence.tokenizer import WHOLE_TOKENIZER

from ..torch_reference.autoencoder import Autoencoder
from ..torch_reference.bagel import Bagel, load_configs
from .folders import (
    AUTOENCODER,
    GOLDEN,
    TOKENIZER,
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


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_of_golden(tmp_path_factory.mktemp("source") / "bagel")


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "pdgen"
    lines = []
    manifest = to_pdgen(source, target, log=lines.append)
    assert not lines
    return target, manifest


def test_values(source, converted):
    config, params = load_checkpoint(converted[0])
    assert config == read_config(source)
    assert_equal(params, expected_arrays(source))


def test_orbax_alone_restores_it(source, converted):
    assert_equal(ocp.PyTreeCheckpointer().restore(converted[0] / "params"), expected_arrays(source))
    assert_equal(ocp.StandardCheckpointer().restore(converted[0] / "params"), expected_arrays(source))


def test_a_round_trip_gives_the_same_bytes(source, converted, tmp_path):
    to_bagel(converted[0], tmp_path / "back")
    assert all_bytes(tmp_path / "back") == all_bytes(source)


def test_the_manifest_matches_the_folder(source, converted):
    target, manifest = converted
    of_folder, of_checkpoint = check(source), check(target)
    assert of_folder.tensors == of_checkpoint.tensors == manifest.tensors
    tensors = load_file(source / WEIGHTS) | load_file(source / AUTOENCODER)
    assert {t.name: t.shape for t in manifest.tensors} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert json.loads((target / "manifest.json").read_text())["tensors"][0] == {
        "name": "connector.fc1.bias",
        "shape": [64],
        "dtype": "float32",
        # sha256sum of the tensor's bytes, cut out of the file with dd
        "sha256": "edaf473401e8d73ca1648b814921abf3d36dcddc94d038542a01105c43a6635a",
        "file": "ema.safetensors",
    }


def test_in_memory(source):
    config, params = read_bagel_folder(source)
    assert config == read_config(source)
    assert_equal(params, expected_arrays(source))
    coder = read_autoencoder(source, config.autoencoder)
    jax.tree.map(np.testing.assert_array_equal, coder, params["autoencoder"])


@pytest.mark.parametrize("dtype, other", [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_cast(source, tmp_path, dtype, other):
    """From half precision, so that both casts change the values' bytes; the autoencoder keeps its dtype."""
    halved = copy_of_golden(tmp_path / "half")
    for file in (WEIGHTS, AUTOENCODER):
        edit_tensors(halved / file, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    manifest = to_pdgen(halved, tmp_path / "pdgen", dtype=DTYPES[{"bfloat16": "BF16", "float32": "F32"}[dtype]])
    assert {(t.file, t.dtype) for t in manifest.tensors} == {(WEIGHTS, dtype), (AUTOENCODER, "float16")}
    expected = {
        path: array.to(other) if path.startswith("model/") else array for path, array in expected_arrays(halved).items()
    }
    assert_equal(load_checkpoint(tmp_path / "pdgen")[1], expected)
    assert check(tmp_path / "pdgen") == manifest

    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    assert {t.dtype for t in load_file(tmp_path / "back" / WEIGHTS).values()} == {other}
    assert (tmp_path / "back" / AUTOENCODER).read_bytes() == (halved / AUTOENCODER).read_bytes()


def test_half_precision_stays(tmp_path):
    halved = copy_of_golden(tmp_path / "half")
    edit_tensors(halved / WEIGHTS, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    to_pdgen(halved, tmp_path / "pdgen")
    assert_equal(load_checkpoint(tmp_path / "pdgen")[1], expected_arrays(halved))
    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    assert all_bytes(tmp_path / "back") == all_bytes(halved)


def test_cast_back(source, converted, tmp_path):
    """float32 values that bfloat16 holds exactly survive the round trip through it."""
    rounded = copy_of_golden(tmp_path / "rounded")
    edit_tensors(rounded / WEIGHTS, lambda ts: ts.update({n: t.bfloat16().float() for n, t in ts.items()}))
    to_pdgen(rounded, tmp_path / "pdgen", dtype=DTYPES["BF16"])
    to_bagel(tmp_path / "pdgen", tmp_path / "back", dtype=DTYPES["F32"])
    assert all_bytes(tmp_path / "back") == all_bytes(rounded)


def test_sharded(tmp_path):
    folder = copy_of_golden(tmp_path / "bagel")
    whole = expected_arrays(folder)
    shard(folder, 3)
    to_pdgen(folder, tmp_path / "pdgen")
    assert_equal(load_checkpoint(tmp_path / "pdgen")[1], whole)
    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    assert all_bytes(tmp_path / "back") == all_bytes(folder)

    to_bagel(tmp_path / "pdgen", tmp_path / "brain", dtype=DTYPES["BF16"])
    index = json.loads((tmp_path / "brain" / "model.safetensors.index.json").read_text())
    before = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"]["total_size"] * 2 == before["metadata"]["total_size"]
    assert (tmp_path / "brain" / AUTOENCODER).read_bytes() == (folder / AUTOENCODER).read_bytes()


def test_a_single_file_under_another_name(tmp_path):
    folder = copy_of_golden(tmp_path / "bagel")
    whole = expected_arrays(folder)
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    to_pdgen(folder, tmp_path / "pdgen")
    assert_equal(load_checkpoint(tmp_path / "pdgen")[1], whole)
    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    assert all_bytes(tmp_path / "back") == all_bytes(folder)


def test_an_index_that_names_ema_alone_as_published(tmp_path):
    folder = copy_of_golden(tmp_path / "bagel")
    index = {"metadata": {"total_size": 1}, "weight_map": {"llm2vae.bias": WEIGHTS, "gone": WEIGHTS}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "generation_config.json").write_text("{}")
    to_pdgen(folder, tmp_path / "pdgen")
    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    assert all_bytes(tmp_path / "back") == all_bytes(folder)


def test_the_average_takes_precedence_and_the_choice_is_reported(tmp_path):
    folder = copy_of_golden(tmp_path / "bagel")
    shutil.copyfile(folder / WEIGHTS, folder / "model.safetensors")
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors["llm2vae.bias"].zero_())
    lines = []
    to_pdgen(folder, tmp_path / "pdgen", log=lines.append)
    assert any("ema.safetensors is converted, model.safetensors is not" in line for line in lines)
    assert np.any(load_checkpoint(tmp_path / "pdgen")[1]["model"]["latent_out"]["bias"])


def test_without_a_tokenizer(tmp_path):
    folder = copy_of_golden(tmp_path / "bagel")
    for name in TOKENIZER:
        (folder / name).unlink()
    lines = []
    to_pdgen(folder, tmp_path / "pdgen", log=lines.append)
    assert lines == [f"{folder}: no tokenizer files; sampling will need {WHOLE_TOKENIZER}"]
    assert not (tmp_path / "pdgen" / "tokenizer").exists()
    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    assert all_bytes(tmp_path / "back") == all_bytes(folder)


def test_files_left_behind_are_reported(tmp_path):
    lines = []
    to_pdgen(GOLDEN, tmp_path / "pdgen", log=lines.append)
    assert lines == [f"{GOLDEN}: not part of the checkpoint, so not carried over: expected.json, expected.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, key, value, truth",
    [
        ("config.json", "max_latent_size", 32, 8),
        ("config.json", "vit_max_num_patch_per_side", 70, 8),
        ("config.json", "latent_patch_size", 4, 2),
        ("vit_config.json", "num_hidden_layers", 27, 3),
        ("vit_config.json", "intermediate_size", 81, 80),
        ("vit_config.json", "patch_size", 14, 6),
        ("llm_config.json", "vocab_size", 152_064, 320),
        ("llm_config.json", "num_hidden_layers", 4, 3),
        ("llm_config.json", "num_key_value_heads", 4, 2),
    ],
)
def test_tensors_override_the_json_files(source, tmp_path, file, key, value, truth):
    folder = copy_of_golden(tmp_path / "bagel")
    edit_json(folder / file, **{key: value})
    lines = []
    to_pdgen(folder, tmp_path / "pdgen", log=lines.append)
    assert lines == [f"{folder / file}: {key} is {value}, but the tensors say {truth}; the tensors win"]
    assert open_checkpoint(tmp_path / "pdgen").config == read_config(source)

    lines.clear()
    to_bagel(tmp_path / "pdgen", tmp_path / "back", log=lines.append)
    assert lines == [f"{file}: {key} was {value}, is written as {truth}"]
    assert json.loads((tmp_path / "back" / file).read_text()) == json.loads((source / file).read_text())
    assert read_config(tmp_path / "back") == read_config(source)


def test_pytorch_loads_a_trained_model(source, converted, tmp_path):
    """Parameters in memory, of a model without json files, load strictly into the PyTorch reference."""
    config, params = load_checkpoint(converted[0])
    trained = jax.tree.map(lambda leaf: leaf + 1, params)
    write_checkpoint(tmp_path / "trained", config, trained)
    to_bagel(tmp_path / "trained", tmp_path / "bagel")

    model = Bagel(*load_configs(tmp_path / "bagel"))
    model.load_state_dict(load_file(tmp_path / "bagel" / WEIGHTS), strict=True)
    coder = Autoencoder(json.loads((tmp_path / "bagel" / "config.json").read_text())["vae_config"])
    coder.load_state_dict(load_file(tmp_path / "bagel" / AUTOENCODER), strict=True)
    before = load_file(source / WEIGHTS) | load_file(source / AUTOENCODER)
    after = model.state_dict() | coder.state_dict()
    assert set(after) == set(before)
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name] + 1, rtol=0, atol=0)
    assert read_config(tmp_path / "bagel") == config


def test_the_number_of_norm_groups_is_read_from_json(tmp_path):
    """No tensor shows how many groups a norm has; PyTorch and pdgen must read the json file alike."""
    rng = np.random.default_rng(0)
    flat = {path: np.float32(0.1 * rng.normal(size=shape)) for path, shape in array_shapes(NANO).items()}
    write_checkpoint(tmp_path / "nano", NANO, traverse_util.unflatten_dict(flat, sep="/"))
    to_bagel(tmp_path / "nano", tmp_path / "bagel")
    assert read_config(tmp_path / "bagel").autoencoder.num_groups == 4
    coder = Autoencoder(json.loads((tmp_path / "bagel" / "config.json").read_text())["vae_config"])
    coder.load_state_dict(load_file(tmp_path / "bagel" / AUTOENCODER), strict=True)
    params, images = load_checkpoint(tmp_path / "nano")[1]["autoencoder"], rng.uniform(-1, 1, (1, 16, 16, 3))
    mean, _ = autoencoder.encode(NANO.autoencoder, params, jax.numpy.float32(images))
    expected = coder.encode(torch.from_numpy(np.float32(images)).movedim(-1, 1)).movedim(1, -1).detach().numpy()
    ours = autoencoder.latent_from_moments(NANO.autoencoder, mean)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_a_trained_model_keeps_its_json_files_and_tokenizer(source, converted, tmp_path):
    config, params = load_checkpoint(converted[0])
    content = open_checkpoint(converted[0]).content()
    tokenizer = [source / name for name in TOKENIZER]
    write_checkpoint(tmp_path / "trained", config, params, tokenizer_files=tokenizer, source_json=content.source_json)
    to_bagel(tmp_path / "trained", tmp_path / "back")
    assert all_bytes(tmp_path / "back").keys() == all_bytes(source).keys()
    for name, data in all_bytes(source).items():
        if not name.endswith(".safetensors"):
            assert (tmp_path / "back" / name).read_bytes() == data
    assert check(tmp_path / "back").tensors == check(source).tensors


def test_a_mixture_of_dtypes_is_cast_or_refused(tmp_path):
    folder = copy_of_golden(tmp_path / "bagel")
    names = [f"language_model.model.layers.{n}.mlp.up_proj.weight" for n in (0, 2)]
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors.update({n: tensors[n].bfloat16() for n in names}))
    with pytest.raises(
        ValueError,
        match=r"layers of model/language/layers/und/mlp/up/kernel are stored as "
        r"bfloat16 and float32; choose one with --dtype",
    ):
        to_pdgen(folder, tmp_path / "pdgen")
    manifest = to_pdgen(folder, tmp_path / "pdgen", dtype=DTYPES["F32"])
    assert {tensor.dtype for tensor in manifest.tensors} == {"float32"}


def test_each_array_keeps_its_dtype(tmp_path):
    """Norms in float32 beside bfloat16 matrices, as some trainers save them."""
    folder = copy_of_golden(tmp_path / "bagel")
    edit_tensors(folder / WEIGHTS, lambda ts: ts.update({n: t.bfloat16() for n, t in ts.items() if "norm" not in n}))
    to_pdgen(folder, tmp_path / "pdgen")
    assert_equal(load_checkpoint(tmp_path / "pdgen")[1], expected_arrays(folder))
    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    assert all_bytes(tmp_path / "back") == all_bytes(folder)


def test_the_order_of_tensors_in_a_file_is_kept(tmp_path):
    """Also if header and bytes are in another order than the library writes."""
    folder = copy_of_golden(tmp_path / "bagel")
    tensors = load_file(folder / AUTOENCODER)
    shuffled = dict(reversed(tensors.items()))
    (folder / AUTOENCODER).unlink()
    save_file({f"{i:03}": t for i, t in enumerate(shuffled.values())}, folder / AUTOENCODER)
    data = (folder / AUTOENCODER).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    renamed = {name: header[f"{i:03}"] for i, name in enumerate(shuffled)}
    text = json.dumps(renamed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / AUTOENCODER).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    to_pdgen(folder, tmp_path / "pdgen")
    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    assert all_bytes(tmp_path / "back") == all_bytes(folder)


# The sizes in the public checkpoint's json files; the rest follows from defaults and tensors.
PUBLIC = {
    "config.json": {
        "connector_act": "gelu_pytorch_tanh",
        "interpolate_pos": False,
        "latent_patch_size": 2,
        "max_latent_size": 32,
        "vae_config": {"downsample": 8, "z_channels": 16},
        "vit_max_num_patch_per_side": 70,
    },
    "llm_config.json": {
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "vocab_size": 152064,
    },
    "vit_config.json": {
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}


def test_the_public_size(tmp_path):
    """All 1,467 tensors by name and shape, in sparse files that take no room."""
    for name, values in PUBLIC.items():
        (tmp_path / name).write_text(json.dumps(values))
    for part, name, dtype in [("model", WEIGHTS, "BF16"), ("autoencoder", AUTOENCODER, "F32")]:
        tensors = {n: (DTYPES[dtype], shape) for n, shape in expected_tensors(BAGEL_7B, (part,)).items()}
        finish(create(tmp_path / name, tensors, {"format": "pt"}))
    folder = open_bagel_folder(tmp_path)
    assert folder.config == BAGEL_7B
    assert folder.notes == [
        f"{tmp_path}/config.json: max_latent_size is 32, but the tensors say 64; the tensors win",
        f"{tmp_path}: no tokenizer files; sampling will need {WHOLE_TOKENIZER}",
    ]
    assert folder.content().nbytes == 2 * 14_607_260_128 + 4 * 83_819_683

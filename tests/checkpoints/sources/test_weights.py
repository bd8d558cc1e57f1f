"""Folders with raw weights and their moving average: the choice between them, and their distance."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdgen.checkpoints.conversion import check, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint
from pdgen.checkpoints.sources.tensors import module_of
from pdgen.checkpoints.sources.weights import find_weights

from ..folders import (
    AUTOENCODER,
    WEIGHTS,
    all_bytes,
    assert_equal,
    copy_of_golden,
    edit_tensors,
    expected_arrays,
    shard,
)

RAW = "model.safetensors"


def change(name, tensor):
    """Shift a tensor by an amount that depends on its module; the connector stays as it is."""
    factor = {"connector": 0.0, "language_model": 1e-3}.get(module_of(name), 2e-2)
    return tensor + factor * torch.arange(tensor.numel(), dtype=torch.float32).cos().reshape(tensor.shape)


@pytest.fixture
def folder(tmp_path):
    """The golden folder with raw weights beside the moving average."""
    folder = copy_of_golden(tmp_path / "both")
    save_file({n: change(n, t.float()) for n, t in load_file(folder / WEIGHTS).items()}, folder / RAW, {"format": "pt"})
    return folder


def distances(ema, raw):
    """|ema - raw| / |raw| in float64, over all and by module."""
    modules = sorted({module_of(name) for name in raw})
    numbers = []
    for wanted in (modules, *([module] for module in modules)):
        names = [name for name in raw if module_of(name) in wanted]
        norm = torch.cat([raw[name].double().flatten() for name in names]).norm()
        numbers.append((torch.cat([(ema[n].double() - raw[n].double()).flatten() for n in names]).norm() / norm).item())
    return dict(zip(("", *modules), numbers, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["", "raw", "ema"])
@pytest.mark.parametrize("weights", ["raw", "ema", None])
def test_the_choice(folder, tmp_path, weights, sharded):
    sets = {"ema": load_file(folder / WEIGHTS), "raw": load_file(folder / RAW)}
    names = {"ema": WEIGHTS, "raw": RAW}
    if sharded:
        stem = {"raw": "model", "ema": "ema"}[sharded]
        shard(folder, 3, names[sharded], stem)
        names[sharded] = f"{stem}-00001-of-00003.safetensors (and 2 more)"
    lines = []
    to_pdgen(folder, tmp_path / "pdgen", weights=weights, log=lines.append)
    chosen, other = ("raw", "ema") if weights == "raw" else ("ema", "raw")
    tensors = sets[chosen] | load_file(folder / AUTOENCODER)
    assert_equal(load_checkpoint(tmp_path / "pdgen")[1], expected_arrays(folder, tensors))

    first, last = lines
    assert first == f"{folder}: {names[chosen]} is converted, {names[other]} is not (--weights={other} converts it)"
    numbers = distances(sets["ema"], sets["raw"])
    assert numbers["connector"] == 0 and 5e-4 < numbers["language_model"] < numbers["llm2vae"]
    shown = {name: f"{number:.1e}" if number else "0" for name, number in numbers.items()}
    total = shown.pop("")
    modules = ", ".join(f"{name} {number}" for name, number in shown.items())
    assert last == f"{folder}: ema and raw weights differ by {total} ({modules}) of the raw ones' norm"

    if not sharded:
        checked = check(folder, weights=weights, log=lambda line: None)
        assert {t.file for t in checked.tensors} == {names[chosen], AUTOENCODER}
    to_bagel(tmp_path / "pdgen", tmp_path / "back")
    kept = {name: data for name, data in all_bytes(folder).items() if not of_set(name, other)}
    assert all_bytes(tmp_path / "back") == kept


def of_set(name, kind):
    return name.startswith({"raw": "model", "ema": "ema"}[kind])


def test_weights_that_the_folder_lacks(folder, tmp_path):
    (folder / RAW).unlink()
    with pytest.raises(CheckpointError, match=r"both: holds ema\.safetensors and no model\.safetensors; leave --weigh"):
        to_pdgen(folder, tmp_path / "pdgen", weights="raw")
    (folder / WEIGHTS).rename(folder / RAW)
    with pytest.raises(CheckpointError, match=r"both: holds model\.safetensors and no ema\.safetensors"):
        to_pdgen(folder, tmp_path / "pdgen", weights="ema")
    to_pdgen(folder, tmp_path / "pdgen", weights="raw")


def test_damage_of_the_other_weights_is_reported(folder, tmp_path):
    (folder / RAW).write_bytes((folder / RAW).read_bytes()[:-1])
    lines = []
    to_pdgen(folder, tmp_path / "pdgen", log=lines.append)
    assert len(lines) == 1
    assert re.search(r"model\.safetensors is not .* and cannot be compared: .*truncated", lines[0])
    with pytest.raises(CheckpointError, match="truncated"):
        to_pdgen(folder, tmp_path / "again", weights="raw")


def test_distances_leave_out_tensors_that_one_side_lacks(folder, tmp_path):
    edit_tensors(folder / RAW, lambda t: [t.pop(n) for n in list(t) if not n.startswith("llm2vae")])
    lines = []
    to_pdgen(folder, tmp_path / "pdgen", log=lines.append)
    number = f"{distances(load_file(folder / WEIGHTS), load_file(folder / RAW))['llm2vae']:.1e}"
    assert lines[-1].endswith(f"differ by {number} (llm2vae {number}) of the raw ones' norm")


def test_a_published_index_names_the_average(tmp_path):
    """BAGEL's index of raw weights names ema.safetensors alone, so there are no raw weights."""
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "ema.safetensors"}}')
    (tmp_path / WEIGHTS).touch()
    assert {kind: files.names for kind, files in find_weights(tmp_path).items()} == {"ema": (WEIGHTS,)}
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "ema.safetensors", "b": "c"}}')
    assert {kind: files.names for kind, files in find_weights(tmp_path).items()} == {"raw": ("c", WEIGHTS)}

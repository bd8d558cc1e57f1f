"""PEFT adapters: merged as PEFT 0.21.2 merged them (``peft/``) and by the formula in PyTorch; refusals.

Each folder of ``peft/`` is what PEFT's ``save_pretrained`` wrote for the golden model with random factors, and
``expected.safetensors`` the kernels after its ``merge_and_unload``. "patterns" adapts both experts, the ViT and the
connector with different ranks and alphas, "rslora" the generation expert with scale alpha / sqrt(r).
"""

import json
import pathlib
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pdgen.checkpoints.adapters.merging import describe_changes, measure_adapter, merge_adapter
from pdgen.checkpoints.adapters.peft import CONFIG, TENSORS, read_adapter, write_adapter
from pdgen.checkpoints.conversion import to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.load import find
from pdgen.checkpoints.pdgen_checkpoint import Content, open_checkpoint
from pdgen.checkpoints.safetensors_file import DTYPES
from pdgen.config import read_config
from pdgen.files import FolderError

from .folders import GOLDEN, WEIGHTS, copy_of_golden, edit_json, edit_tensors

PEFT = pathlib.Path(__file__).parent / "peft"
CASES = ("patterns", "rslora")
MODEL = read_config(GOLDEN)


def quiet(line):
    del line


@pytest.fixture
def adapter(tmp_path):
    """A copy of an adapter that a test may change."""
    return pathlib.Path(shutil.copytree(PEFT / "patterns", tmp_path / "adapter"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The golden model as a pdgen checkpoint."""
    folder = tmp_path_factory.mktemp("base") / "pdgen"
    to_pdgen(GOLDEN, folder, log=quiet)
    return folder


def read_merged(checkpoint, folder):
    """Convert a checkpoint to a BAGEL folder and read its tensors with the reference library."""
    to_bagel(checkpoint, folder, log=quiet)
    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["BAGEL folder", "checkpoint"])
def test_merging_equals_peft(case, kind, base, tmp_path):
    manifest, changes = merge_adapter(
        PEFT / case, GOLDEN if kind == "BAGEL folder" else base, tmp_path / "merged", log=quiet
    )
    assert open_checkpoint(tmp_path / "merged").manifest == manifest
    before, after = load_file(GOLDEN / WEIGHTS), read_merged(tmp_path / "merged", tmp_path / "back")
    expected = load_file(PEFT / case / "expected.safetensors")
    assert set(changes) == {name for name in before if not torch.equal(before[name], after[name])} == set(expected)
    for name, kernel in expected.items():
        torch.testing.assert_close(after[name], kernel, rtol=1e-6, atol=1e-7)
        change, stated = changes[name], torch.linalg.norm((kernel - before[name]).double())
        assert (change.difference / change.before) ** 0.5 == pytest.approx(
            float(stated / torch.linalg.norm(before[name].double())), rel=1e-5
        )


def test_the_summary_counts_changed_kernels_by_expert(base):
    line = describe_changes(measure_adapter(PEFT / "patterns", base))
    assert line.startswith("6 of 6 adapted kernels changed, by 0.")
    for group in ("generation expert 2 by 0.", "others 2 by 0.", "understanding expert 2 by 0."):
        assert group in line


def test_an_adapter_that_changes_nothing_is_reported(base, adapter):
    edit_tensors(adapter / TENSORS, lambda ts: ts.update({n: t * ("lora_A" in n) for n, t in ts.items()}))
    assert describe_changes(measure_adapter(adapter, base)).startswith("0 of 6 adapted kernels changed, by 0 of")


def test_blocks_take_their_own_rows_of_b(base, monkeypatch):
    """Large kernels are merged block by block; here every block is one row of the array."""
    whole = measure_adapter(PEFT / "patterns", base)
    monkeypatch.setattr(Content, "jobs", lambda self: [(place, dtype, 1) for place, dtype, _ in self.tensors])
    by_rows = measure_adapter(PEFT / "patterns", base)
    for name, change in whole.items():
        np.testing.assert_allclose(by_rows[name], change, rtol=1e-7)


@pytest.mark.parametrize("dtype", [None, DTYPES["BF16"]])
def test_a_base_in_half_precision(dtype, tmp_path):
    """The sum is in float32 and rounded once; ``dtype`` also casts the kernels that no adapter changes."""
    folder = copy_of_golden(tmp_path / "half")
    edit_tensors(folder / WEIGHTS, lambda ts: ts.update({n: t.half() for n, t in ts.items()}))
    merge_adapter(PEFT / "rslora", folder, tmp_path / "merged", dtype=dtype, log=quiet)
    before, after = load_file(folder / WEIGHTS), read_merged(tmp_path / "merged", tmp_path / "back")
    factors = read_adapter(PEFT / "rslora", MODEL)
    for name, kernel in before.items():
        wide = kernel.float()
        if name in factors:
            a, b, scale = factors[name]
            wide = wide + scale * torch.from_numpy(b) @ torch.from_numpy(a)
        expected = wide.to(torch.float16 if dtype is None else torch.bfloat16)
        torch.testing.assert_close(after[name], expected, rtol=0 if name not in factors else 1e-2, atol=1e-6)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("base_model.model.language_model.", "base_model.model."),
    ],
    ids=["adapter's name", "no wrapper", "the language model alone"],
)
def test_other_names_of_the_same_tensors(rename, tmp_path):
    folder = pathlib.Path(shutil.copytree(PEFT / "rslora", tmp_path / "adapter"))
    save_file({rename(name): values for name, values in load_file(folder / TENSORS).items()}, folder / TENSORS)
    given, expected = read_adapter(folder, MODEL), read_adapter(PEFT / "rslora", MODEL)
    assert given.keys() == expected.keys()
    for name, (a, b, scale) in given.items():
        np.testing.assert_array_equal(a, expected[name].a)
        np.testing.assert_array_equal(b, expected[name].b)
        assert scale == expected[name].scale == 3 / 4**0.5


def test_a_written_adapter_is_read_back(tmp_path):
    factors = read_adapter(PEFT / "rslora", MODEL)
    write_adapter(tmp_path / "out", [(name, f.a, f.b) for name, f in factors.items()], 4, 6.0, log=quiet)
    assert load_file(tmp_path / "out" / TENSORS).keys() == load_file(PEFT / "rslora" / TENSORS).keys()
    for name, found in read_adapter(tmp_path / "out", MODEL).items():
        np.testing.assert_array_equal(found.a, factors[name].a)
        np.testing.assert_array_equal(found.b, factors[name].b)
        assert found.scale == factors[name].scale
    with pytest.raises(FolderError, match="exists; choose another target or add --overwrite"):
        write_adapter(tmp_path / "out", [], 4, 6.0, log=quiet)


def refuse(folder, said):
    with pytest.raises(CheckpointError) as fault:
        read_adapter(folder, MODEL)
    line = str(fault.value)
    assert said in line and str(folder) in line and "\n" not in line and len(line) < 400, line


A = "base_model.model.connector.fc1.lora_A.weight"


@pytest.mark.parametrize(
    "edit, said",
    [
        (
            lambda ts: ts.update({"base_model.model.head.lora_A.weight": ts[A].clone()}),
            "1 of 13 tensors fit no linear kernel",
        ),
        (
            lambda ts: ts.update({f"base_model.model.lm.layers.{n}.lora_A.weight": ts[A].clone() for n in range(99)}),
            "99 of 111 tensors fit no linear kernel of the model (lm.layers.0.lora_A.weight, ",
        ),
        (lambda ts: ts.clear(), "0 of 0 tensors fit no linear kernel of the model (there are none)"),
        (lambda ts: ts.pop(A), "connector.fc1 has no lora_A"),
        (lambda ts: ts.update({A: ts[A].repeat(2, 1)}), "lora_A.weight is [2, 48], expected [1, 48]"),
        (lambda ts: ts.update({A: ts[A] * float("nan")}), "has 48 values that are not finite"),
        (lambda ts: ts.update({A.replace(".w", ".x.w"): ts[A].clone()}), "holds base_model.model.connector.fc1.lora_A"),
        (
            lambda ts: ts.update({A.replace(".w", ".x.w"): ts.pop(A)}),
            "holds several adapters (None, x); save one of them alone",
        ),
    ],
)
def test_misshapen_tensors(adapter, edit, said):
    edit_tensors(adapter / TENSORS, edit)
    refuse(adapter, said)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', only 'LORA' is supported"),
        ({"use_dora": True, "bias": "all"}, "use_dora, bias in use, so the adapter does more than add B A"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save in use"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base too"),
        ({"r": 0}, "r and rank_pattern must be at least 1"),
        ({"r": 2**30}, "6 faults, 6 of another shape: language_model."),
        ({"r": 10**12}, "at least 1 and below 2^31"),
        ({"r": "two"}, "cannot be read (Expected `int`, got `str`"),
        ({"alpha_pattern": {"(": 1}}, "cannot be read ("),
    ],
)
def test_unsupported_settings(adapter, values, said):
    edit_json(adapter / CONFIG, **values)
    refuse(adapter, said)


def test_missing_files_and_pickles(adapter, tmp_path):
    refuse(tmp_path / "none", "no such folder")
    (adapter / CONFIG).rename(tmp_path / "aside")
    refuse(adapter, "missing; PEFT's save_pretrained writes it")
    (tmp_path / "aside").rename(adapter / CONFIG)
    (adapter / TENSORS).rename(adapter / "adapter_model.bin")
    refuse(adapter, "is a pickle")


def test_a_damaged_base_is_not_merged(adapter, base, tmp_path):
    broken = pathlib.Path(shutil.copytree(base, tmp_path / "base"))
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["tensors"][0]["sha256"] = "0" * 64
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"differs from manifest.json; convert again"):
        merge_adapter(adapter, broken, tmp_path / "merged", log=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_loading_an_adapter_names_the_merge_command(adapter):
    with pytest.raises(CheckpointError, match=r"is a PEFT adapter; merge it first: .*convert.py --source=.* --base="):
        find(adapter)


def test_mutated_files_are_read_or_refused_in_one_line(adapter):
    """Two hundred files with bytes changed, cut off or doubled are read or raise CheckpointError, nothing else."""
    rng = random.Random(0)
    original = {name: (adapter / name).read_bytes() for name in (CONFIG, TENSORS)}
    refused = 0
    for number in range(200):
        name = (CONFIG, TENSORS)[number % 2]
        data = bytearray(original[name])
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(min(len(data), 3000) or 1)
            change = rng.choice(("flip", "cut", "double"))
            if change == "flip" and data:
                data[place] = rng.randrange(256)
            elif change == "cut":
                del data[place : place + rng.randint(1, 50)]
            else:
                data[place:place] = data[place : place + 20]
        (adapter / name).write_bytes(data)
        try:
            read_adapter(adapter, MODEL)
        except CheckpointError as fault:
            refused += 1
            assert "\n" not in str(fault) and len(str(fault)) < 400, fault
        (adapter / name).write_bytes(original[name])
    assert refused > 100

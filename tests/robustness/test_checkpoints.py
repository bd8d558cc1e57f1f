"""Checkpoints of both formats: safetensors and json files, the manifest, the arrays, the files of a run."""

import json
import struct

import pytest

from pdgen.checkpoints.conversion import check, to_pdgen
from pdgen.checkpoints.manifest import MANIFEST
from pdgen.checkpoints.pdgen_checkpoint import PARAMS, open_checkpoint
from pdgen.checkpoints.runs.layout import LAYOUT, TrainingLayout, read_layout, write_layout
from pdgen.checkpoints.runs.step import read_facts
from pdgen.checkpoints.runs.workdir import (
    CONFIG_FILE,
    DIGESTS,
    EXPORTED,
    find_corruption,
    read_exported_step,
    write_digests,
)
from pdgen.checkpoints.torch_checkpoint import open_bagel_folder
from pdgen.train.run_config import read_run_config, run_to_json
from tests.checkpoints.folders import WEIGHTS, copy_of_golden, shard
from tests.robustness.calls import survey
from tests.robustness.mutations import mutate

pytestmark = pytest.mark.slow  # hundreds of damaged copies

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return copy_of_golden(tmp_path / "bagel")


def open_folder(folder):
    open_bagel_folder(folder).content()


def split(data):
    """Return the header of a safetensors file and the bytes behind it."""
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length], data[8 + length :]


def test_headers_of_safetensors(folder, capfd):
    """The stated length fits each damaged header."""
    header, rest = split((folder / WEIGHTS).read_bytes())
    mutated = ((name, struct.pack("<Q", len(text)) + text + rest) for name, text in mutate(header, 21))
    survey(folder / WEIGHTS, mutated, lambda: open_folder(folder), capfd, ("bagel",))


def test_safetensors(folder, capfd):
    """Damage in the first 2,000 bytes; after the header, any bytes are numbers."""
    data = (folder / WEIGHTS).read_bytes()
    mutated = ((name, start + data[2000:]) for name, start in mutate(data[:2000], 22))
    survey(folder / WEIGHTS, mutated, lambda: open_folder(folder), capfd, ("bagel",))


def test_values_of_safetensors(folder, capfd):
    data = (folder / WEIGHTS).read_bytes()
    mutated = ((name, data[:10_000] + rest) for name, rest in mutate(data[10_000:], 23))
    survey(folder / WEIGHTS, mutated, lambda: check(folder), capfd, ("bagel",))


@pytest.mark.parametrize("name", ["config.json", "llm_config.json", "vit_config.json", INDEX])
def test_json_of_bagel(folder, capfd, name):
    if name == INDEX:
        shard(folder, 2)
    survey(folder / name, mutate((folder / name).read_bytes(), 24), lambda: open_folder(folder), capfd, ("bagel",))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "nano"
    to_pdgen(copy_of_golden(folder.with_name("bagel")), folder, log=lambda line: None)
    return folder


def test_manifests(converted, capfd):
    file = converted / MANIFEST
    survey(file, mutate(file.read_bytes(), 25), lambda: open_checkpoint(converted).content(), capfd, ("nano",))


def test_arrays(converted, capfd):
    file = min((converted / PARAMS).glob("*/zarr.json"))
    survey(file, mutate(file.read_bytes(), 26), lambda: open_checkpoint(converted).arrays(), capfd, ("nano",))


def test_the_layout_of_training(tmp_path, capfd):
    write_layout(tmp_path, TrainingLayout(("vae",), ("vit",), "sample", 64, 64, 3))
    file = tmp_path / LAYOUT
    survey(file, mutate(file.read_bytes(), 27), lambda: read_layout({LAYOUT: file.read_bytes()}), capfd)


def test_files_of_a_run(tmp_path, capfd):
    run = read_run_config({"data": "data", "num_steps": 1, "rows": 1, "budgets": {"text": 8, "vit": 8, "vae": 8}})
    step = tmp_path / "checkpoints" / "10"
    step.mkdir(parents=True)
    (step / "value").write_bytes(b"1")
    write_digests(step)
    (tmp_path / CONFIG_FILE).write_text(run_to_json(run))
    (tmp_path / EXPORTED).write_text(json.dumps({"step": 10}))
    for name, read in {
        CONFIG_FILE: lambda: read_facts(tmp_path),
        EXPORTED: lambda: read_exported_step(tmp_path),
        f"checkpoints/10/{DIGESTS}": lambda: find_corruption(step),
    }.items():
        file = tmp_path / name
        survey(file, mutate(file.read_bytes(), 28), read, capfd)

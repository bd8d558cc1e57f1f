"""The shipped models: converted once, found again, converted anew if missing, and known by their names."""

import os
import shutil

import jax
import numpy as np
import pytest

from pdgen.assets import shapes_folder
from pdgen.checkpoints import shipped
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.load import find
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint, open_checkpoint
from pdgen.data.latents import add_latents
from pdgen.data.records import Origin, write_dataset
from pdgen.files import FolderError
from pdgen.sample.sampler import Sampler
from pdgen.sequence.layout import Budgets
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.train import loop
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.run_config import RunConfig
from tests.checkpoints.folders import read_bagel_folder
from tests.support.shapes_records import trajectories
from tests.support.shipped import write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, tmp_path_factory.mktemp("scratch"))
    return folder


@pytest.fixture
def own(models, tmp_path, monkeypatch):
    """A copy of stand-ins for the shipped models, and an empty cache folder."""
    folder = shutil.copytree(models, tmp_path / "models")
    monkeypatch.setattr(shipped, "shapes_folder", lambda name="shapes": folder / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.mark.slow
def test_a_model_is_converted_at_its_first_use_and_found_at_the_second(own, tmp_path, monkeypatch):
    calls = []
    convert = shipped.to_pdgen
    monkeypatch.setattr(shipped, "to_pdgen", lambda *a, **k: calls.append(a) or convert(*a, **k))
    folder = find("shapes")
    assert folder.parent == tmp_path / "cache" / "pdgen" / "checkpoints"
    assert folder.name.startswith("shapes-") and len(calls) == 1
    held = load_checkpoint(folder)[1]["model"]
    jax.tree.map(np.testing.assert_array_equal, held, read_bagel_folder(own / "shapes")[1]["model"])
    assert find("shapes") == folder and len(calls) == 1
    assert find("shapes_base") != folder and len(calls) == 2


def test_the_model_of_another_release_has_another_folder(own):
    first, base = find("shapes"), find("shapes_base")
    with open(own / "shapes" / "ema.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    second = find("shapes")
    assert second != first and first.is_dir() and second.is_dir()
    assert find("shapes_base") == base


def test_a_conversion_that_has_vanished_is_made_again(own):
    folder = find("shapes_base")
    before = open_checkpoint(folder).manifest
    shutil.rmtree(folder)
    assert find(folder) == folder and open_checkpoint(folder).manifest == before


@pytest.mark.parametrize("name", ["shapes", "shapes_base"])
def test_a_trajectory_names_the_model(own, name):
    samplers = [Sampler.from_checkpoint(path) for path in (name, find(name))]
    for sampler in samplers:
        (start,) = sampler.make_starts(["a red circle"])
        assert start.checkpoint == sampler.model.name == name


def test_an_unwritable_cache_folder_is_one_line_with_the_remedy(own, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(FolderError) as caught:
        find("shapes")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'file'}/pdgen/checkpoints/shapes-") and "\n" not in line
    assert "(Not a directory)" in line and "environment variable XDG_CACHE_HOME" in line


def test_other_files_in_its_place_are_not_replaced(own):
    folder = find("shapes")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    with pytest.raises(FolderError, match=r"exists and is no checkpoint.*XDG_CACHE_HOME"):
        find("shapes")
    assert (folder / "mine.txt").exists()


def test_missing_weights_are_named(own):
    shutil.rmtree(own / "shapes_base")
    (own / "shapes" / "config.json").unlink()
    for name in ("shapes", "shapes_base"):
        with pytest.raises(CheckpointError, match=f"^{name}: this installation lacks the model's weights in {own}"):
            find(name)
    with pytest.raises(CheckpointError, match=r"^nowhere: no such folder; .* or shapes or shapes_base"):
        find("nowhere")


def moments(pictures):
    """Moments of the right shape that depend on the picture: no autoencoder to compile."""
    mean = np.tile(pictures[:, ::8, ::8].astype(np.float32) / 255, 6)[..., :16]
    return mean, np.full_like(mean, -6)


@pytest.mark.slow
def test_a_run_starts_from_a_shipped_model(own, tmp_path):
    records = add_latents(trajectories(12, seed=3), moments)
    tokenizer = load_tokenizer(shapes_folder()).fingerprint
    write_dataset(tmp_path / "data", records, Origin(seed=3, tokenizer=tokenizer))
    run = RunConfig(
        data=str(tmp_path / "data"),
        num_steps=1,
        rows=1,
        budgets=Budgets(448, 96, 768),
        mesh=(1, 1, 1),
        model="",
        init="shapes_base",
        optimizer=OptimizerConfig(learning_rate=0.0),
    )
    loop.train(run, tmp_path / "run", lambda line: None, devices=jax.devices()[:1])
    paths = [find(path) for path in (tmp_path / "run", "shapes_base", "shapes")]
    trained, base, other = (load_checkpoint(path)[1]["model"] for path in paths)
    jax.tree.map(np.testing.assert_array_equal, trained, base)
    assert not np.array_equal(base["language"]["head"]["kernel"], other["language"]["head"]["kernel"])

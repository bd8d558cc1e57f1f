"""Folders that can be sampled from, and refusals of others."""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest

from pdgen.checkpoints.conversion import to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.load import find
from pdgen.checkpoints.runs.workdir import EXPORT
from pdgen.config import ComputeConfig
from pdgen.flow.denoise import ImageSettings
from pdgen.models.linear import is_int8
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleError, make_base_settings
from tests.checkpoints.folders import read_bagel_folder
from tests.sample.conftest import NANO, SETTINGS


def test_a_converted_checkpoint(sampler, checkpoint):
    config, params = read_bagel_folder(NANO)
    assert (sampler.model.config, sampler.model.name) == (config, str(checkpoint))
    jax.tree.map(np.testing.assert_array_equal, sampler.model.params, params)
    assert sampler.model.tokenizer.files[0].read_bytes() == (NANO / "tokenizer.json").read_bytes()


def test_an_int8_checkpoint(sampler, checkpoint, tmp_path):
    """It draws in the dtype of its norms, and nearly the picture of the float checkpoint."""
    to_pdgen(checkpoint, tmp_path / "int8", int8=True)
    small = Sampler.from_checkpoint(tmp_path / "int8")
    assert small.model.compute.dtype == sampler.model.compute.dtype == "float32"
    assert is_int8(small.model.params["model"]) and not is_int8(sampler.model.params["model"])
    assert small.model.digest != sampler.model.digest
    settings = make_base_settings("single_pass", image=ImageSettings(num_timesteps=4), batch_size=1)
    drawn = [one(["a red circle"], [3], settings)[0].images[0] for one in (sampler, small)]
    difference = np.abs(np.asarray(drawn[0], int) - np.asarray(drawn[1], int))
    assert 0 < difference.mean() < 8


def test_the_export_of_a_training_run(checkpoint, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    shutil.copytree(checkpoint, tmp_path / EXPORT)
    sampler = Sampler.from_checkpoint(tmp_path, ComputeConfig(dtype="bfloat16"))
    assert sampler.model.name == str(tmp_path / EXPORT)
    assert sampler.model.compute.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("part", "mode", "task"),
    [
        (("language", "norm", "und"), "process", "writing a text"),
        (("latent_out", "bias"), "single_pass", "drawing an image"),
    ],
)
def test_values_that_are_not_finite_end_sampling(sampler, part, mode, task):
    def spoil(tree, path):
        if not path:
            return jax.tree.map(lambda leaf: leaf * np.nan, tree)
        return {**tree, path[0]: spoil(tree[path[0]], path[1:])}

    params = spoil(sampler.model.params, ("model", *part))
    broken = Sampler(dataclasses.replace(sampler.model, params=params))
    settings = dataclasses.replace(SETTINGS, mode=mode, batch_size=1)
    with pytest.raises(
        SampleError, match=rf"{task}: .* are NaN or infinite; check its weights with .*--check"
    ) as fault:
        broken(["a red circle"], [1], settings)
    assert len(str(fault.value)) < 250


def test_other_folders_are_refused(checkpoint, tmp_path):
    without_tokenizer = tmp_path / "without_tokenizer"
    shutil.copytree(checkpoint, without_tokenizer, ignore=shutil.ignore_patterns("tokenizer*"))
    (tmp_path / "run").mkdir()
    for folder, words in {
        tmp_path / "nothing": "no such folder; name a pdgen checkpoint, the workdir of a training run, or shapes",
        checkpoint / "manifest.json": "no such folder",
        tmp_path / "run": "is no pdgen checkpoint and no workdir of a training run",
        NANO: f"is a BAGEL folder; convert it first: python launch/convert.py --source={NANO} --target=",
        without_tokenizer: "has no tokenizer; convert again from a folder that holds tokenizer.json, tokenizer.model",
    }.items():
        with pytest.raises(CheckpointError, match=re.escape(f"{folder}: {words}")) as fault:
            find(folder)
        assert "\n" not in str(fault.value)

"""The autoencoder's command line: a short run writes weights that read back; wrong input ends in one line."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import SHAPES_AUTOENCODER

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=configs/shapes_autoencoder.py"


def run(*arguments):
    command = [sys.executable, str(ROOT / "launch" / "train_autoencoder.py"), *map(str, arguments)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "autoencoder"
    small = ("--config.image_size=16", "--config.pictures=4", "--config.held_out=2", "--config.train.batch_size=2")
    done = run(CONFIG, f"--workdir={folder}", "--steps=2", *small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder / 'ae.safetensors'}: 2,0")
    assert "PSNR on held-out scenes" in done.stdout and "decoder: 100%" in done.stderr
    return folder


def test_the_file_holds_the_autoencoder_and_nothing_else_is_left(folder):
    assert read_autoencoder(folder, SHAPES_AUTOENCODER).keys() == {"encoder", "decoder"}
    assert [path.name for path in folder.iterdir()] == ["ae.safetensors"]


def test_an_existing_file_is_replaced_only_with_permission(folder):
    before = (folder / "ae.safetensors").read_bytes()
    refused = run(CONFIG, f"--workdir={folder}")
    assert (refused.returncode, refused.stdout) == (2, "")
    path = folder / "ae.safetensors"
    assert refused.stderr == f"train_autoencoder: {path}: exists already; pass --overwrite to replace it\n"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing"),
        ([CONFIG, "--steps=1"], "steps=1: give 2 or more"),
        ([CONFIG, "--config.model=huge"], "model preset 'huge' does not exist"),
        ([CONFIG, "--config.train.colour=3"], "the config has no key colour"),
        ([CONFIG, "stray"], "stray is no flag"),
    ],
)
def test_wrong_input_ends_in_one_line(arguments, words, tmp_path):
    done = run(f"--workdir={tmp_path / 'new'}", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("train_autoencoder: ") and words in done.stderr
    assert not (tmp_path / "new").exists()

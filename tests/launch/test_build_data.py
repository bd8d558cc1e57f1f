"""The data builder's command line: the same config gives the same bytes, and nothing is left half-written."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pdgen.assets import shapes_folder
from pdgen.config import SHAPES_AUTOENCODER
from pdgen.convert.torch_checkpoint import read_autoencoder
from pdgen.data.latents import autoencoder_fingerprint
from pdgen.data.records import RecordSource
from pdgen.interleave.tokenizer import load_tokenizer
from pdgen.interleave.trajectory import Image

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "launch" / "build_data.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def build(folder, *arguments):
    return run("--config=configs/data_shapes.py", f"--output={folder}", "--count=60", "--scale=0.1", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    done = build(folder, "--config.seed=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder}: 6 records in 1 files, ")
    return folder


def test_every_picture_has_latents_and_the_origin_is_told(folder):
    source = RecordSource(folder)
    images = [s for i in range(6) for s in source[i].segments if isinstance(s, Image)]
    assert {s.latent_shape for s in images} == {(16, 16, 4)}
    first = np.frombuffer(images[0].latent_mean, np.float16)
    assert np.isfinite(first).all() and first.std() > 0
    origin = source.dataset.origin
    assert (origin.seed, origin.settings["count"]) == (5, 6)
    assert origin.tokenizer == load_tokenizer(shapes_folder()).fingerprint
    assert origin.autoencoder == autoencoder_fingerprint(read_autoencoder(shapes_folder(), SHAPES_AUTOENCODER))


def test_building_again_gives_the_same_bytes_and_needs_permission(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    refused = build(folder)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"build_data: {folder}: exists; choose another target or add --overwrite\n"
    )
    assert build(folder, "--config.seed=5", "--overwrite").returncode == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=none.py"], "none.py"),
        (["--config=configs/data_shapes.py", "--config.fault_rate=2"], "fault_rate 2.0 is no probability"),
        (["--config=configs/data_shapes.py", "--config.falt_rate=0"], "falt_rate"),
        (["--config=configs/data_shapes.py", "--scale=0"], "--scale=0.0 is no positive number"),
    ],
)
def test_wrong_arguments_end_in_one_line(tmp_path, arguments, words):
    done = run(f"--output={tmp_path / 'data'}", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("build_data: ") and words in done.stderr
    assert list(tmp_path.iterdir()) == []

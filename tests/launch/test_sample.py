"""The sampler's command line: one trajectory from a converted checkpoint, and one line for every fault."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from pdgen.convert.both_ways import to_pdgen
from pdgen.interleave.trajectory import ImageStage, load_trajectory

ROOT = pathlib.Path(__file__).parents[2]
PROMPT = "--prompt=a red circle left of a blue square"
# Little to compile: no guidance, one image, one Euler step.
QUICK = ("--text_scale=1", "--max_images=1", "--num_timesteps=2", "--max_tokens=8", "--max_prompt_tokens=40")
SIZE = ("--height=16", "--width=24")


def run(*arguments):
    # What one test run compiles, the next one finds.
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    command = [sys.executable, str(ROOT / "launch" / "sample.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "nano"
    to_pdgen(ROOT / "tests" / "golden" / "bagel-nano", folder, say=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def output(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled") / "circle"
    done = run(f"--checkpoint={checkpoint}", PROMPT, f"--output={folder}", *QUICK, *SIZE, "--seed=3")
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout.splitlines()


def test_a_trajectory_with_its_images_strip_and_page(output):
    folder, lines = output
    trajectory = load_trajectory(folder)
    assert trajectory.prompt == PROMPT.removeprefix("--prompt=") and trajectory.seed == 3
    assert trajectory.settings["max_images"] == 1 and trajectory.settings["image.num_timesteps"] == 2
    assert [image.size for image in trajectory.images] == [(24, 16)]
    files = [stage.file for stage in trajectory.stages if isinstance(stage, ImageStage)]
    assert {path.name for path in folder.iterdir()} == {*files, "trajectory.json", "strip.png", "index.html"}
    page = (folder / "index.html").read_text()
    assert all(f'src="./{file}"' in page for file in files)
    assert list(folder.parent.iterdir()) == [folder]  # no partial folder beside it
    segments = [line for line in lines if line.startswith("seed 3: ")]
    assert len(segments) == len(trajectory.stages)
    assert any(line.startswith("compiled write_text in ") for line in lines)
    assert lines[-1].startswith(f"{folder}/index.html: trajectories 1, images 1, sampling ")


def test_an_output_is_replaced_with_permission_only(checkpoint, output, tmp_path):
    folder, _ = output
    before = (folder / "trajectory.json").stat().st_mtime_ns
    arguments = (f"--checkpoint={checkpoint}", PROMPT, *QUICK, *SIZE)
    refused = run(*arguments, f"--output={folder}")
    assert refused.returncode == 2
    assert refused.stderr == f"sample: {folder}: exists already; name another folder or pass --overwrite\n"
    (tmp_path / "precious").write_text("x")
    refused = run(*arguments, f"--output={tmp_path}", "--overwrite")
    assert refused.returncode == 2 and "holds no sampled trajectories, so --overwrite does not" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert (folder / "trajectory.json").stat().st_mtime_ns == before
    assert run(*arguments, f"--output={folder}", "--overwrite").returncode == 0
    assert (folder / "trajectory.json").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt= "], "a prompt is empty; say what to draw"),
        (["--prompt=" + "a b " * 99], "has 199 tokens, at most 40 are allowed; shorten it or raise max_prompt_tokens"),
        ([PROMPT, "--checkpoint=nowhere"], "nowhere: no such folder"),
        ([PROMPT, "--height=30"], "height=30: must be a multiple of 4 between 4 and 32 pixels"),
        ([PROMPT, "--text_scale=0.5"], "--text_scale=0.5"),
        ([PROMPT, "--max_images=900000000"], "make room"),
        ([PROMPT, "stray"], "stray is no flag"),
        ([], "--prompt"),
    ],
)  # fmt: skip
def test_faults_end_in_one_line(checkpoint, tmp_path, arguments, words):
    done = run(f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}", *QUICK, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("sample: ") and words in done.stderr
    assert not list(tmp_path.iterdir())

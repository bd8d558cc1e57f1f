"""Every command of the README, the guide and docs/checkpoints.md runs in one empty folder, at smaller sizes."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.checkpoints.folders import step_folder

ROOT = pathlib.Path(__file__).parents[1]
SET_UP = ("python3 -m venv", ".venv/bin/pip install")  # what the test run has done already
SUITE = ".venv/bin/pytest"
SMALLER = {
    "--config.num_steps=": "--config.num_steps=4",
    "--num_timesteps=": "--num_timesteps=4",
    "--setting=image.num_timesteps=": "--setting=image.num_timesteps=4",
    "--count=": "--count=1",
}
EXTRA = {
    "launch/build_data.py": ["--scale=0.01"],
    "launch/train.py": ["--config.optimizer.warmup_steps=1", "--config.held_out=8"],  # fewer steps, fewer records
    "launch/show.py pack": ["--config.held_out=8"],
}
# The user's BAGEL folder; here the small one of the golden tests.
GIVEN = {"BAGEL-7B-MoT": ROOT / "tests" / "golden" / "bagel-nano"}


def _commands():
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/guide.md", "docs/checkpoints.md"))
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [command.strip() for line in lines for command in line.split("&&") if command.strip()]


def _smaller(word):
    return next((small for start, small in SMALLER.items() if word.startswith(start)), word)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder with the checkout's launchers and configs, and the given checkpoints."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("launch", "configs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for name, source in GIVEN.items():
        shutil.copytree(source, folder / name)
    (folder / "results").mkdir()
    step_folder(folder / "results" / "0010000", without=("vit_model", "connector", "vit_pos_embed"))
    return folder


def test_the_first_two_lines_are_the_promised_ones():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    draw, tests = (block.strip().splitlines() for block in blocks[:2])
    assert len(draw) == len(tests) == 1
    assert "launch/sample.py" in draw[0] and "--checkpoint" not in draw[0]
    assert tests[0].split("&&")[-1].strip().startswith(SUITE)
    assert tests[0].split("&&")[1:] == [f" {line}" for line in _ci_lines()]


def _ci_lines():
    """Return CI's lines as parts of the README's test command, which joins them with " && "."""
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith(".venv/bin/p")]
    return [*(f"{line} " for line in lines[:-1]), lines[-1]]


@pytest.mark.slow
def test_every_command_runs(folder):
    commands = [c for c in _commands() if not c.startswith((*SET_UP, SUITE))]
    assert len(commands) >= 5
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    for command in commands:
        words = [_smaller(word) for word in shlex.split(command)]
        assert words[0] == ".venv/bin/python", command
        argv = [sys.executable, *words[1:], *EXTRA.get(words[1], EXTRA.get(" ".join(words[1:3]), []))]
        done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    assert (folder / "out" / "first" / "003" / "trajectory.json").is_file()
    assert (folder / "out" / "circle" / "index.html").is_file()
    assert (folder / "out" / "converted-torch" / "ema.safetensors").is_file()

"""Command lines without --checkpoint use the shipped models."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from pdgen.evaluate.abilities.prompts import GROUPS
from pdgen.evaluate.geneval.scoring import read_results
from pdgen.sequence.trajectory_folder import load_trajectory
from tests.support.shipped import write_models

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
# The command line of argv[2:] with the models of the folder argv[1].
DRIVER = """
import pathlib, runpy, sys
from pdgen.checkpoints import shipped
models = pathlib.Path(sys.argv[1])
shipped.shapes_folder = lambda name="shapes": models / name
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
QUICK = ["--setting=image.text_scale=1", "--setting=image.num_timesteps=2", "--setting=text.max_tokens=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, tmp_path_factory.mktemp("scratch"))
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }

    def start(script, *arguments):
        command = [sys.executable, "-c", DRIVER, str(folder), str(ROOT / "launch" / script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return start


def test_geneval_draws_and_scores_as_shapes_does(run, tmp_path):
    """With the process model and without guidance, whose interval differs in GenEval's protocol."""
    results, tables = [], []
    common = [*QUICK, "--setting=max_images=1", "--samples=1", "--batch=4"]
    for benchmark, more in (
        ("shapes", ["--count=1"]),
        ("geneval", [f"--metadata={tmp_path / 'shapes' / 'metadata.jsonl'}", "--detector=shapes"]),
    ):
        output = tmp_path / benchmark
        done = run("evaluate.py", f"--benchmark={benchmark}", *more, *common, f"--output={output}")
        assert done.returncode == 0, done.stderr
        summary = json.loads((output / "summary.json").read_text())
        assert summary["checkpoint"] == "shapes"
        tables.append((output / f"{benchmark}.csv").read_text())
        results.append([one._replace(filename="") for one in read_results(output / "results.jsonl")])
        (first, *_) = sorted(output.glob("trajectories/*/samples/*/trajectory.json"))
        assert load_trajectory(first.parent).checkpoint == "shapes"
    assert len(results[0]) == 7 and results[0] == results[1] and tables[0] == tables[1]
    images = [
        [path.read_bytes() for path in sorted((tmp_path / name / "images").rglob("*.png"))]
        for name in ("shapes", "geneval")
    ]
    assert len(images[0]) == 7 and images[0] == images[1]


def test_abilities_evaluate_the_base_and_resume(run, tmp_path):
    arguments = ["--benchmark=abilities", "--count=1", "--batch=2", *QUICK, f"--output={tmp_path}"]
    done = run("evaluate.py", *arguments)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["benchmark"], summary["checkpoint"]) == ("abilities", "shapes_base")
    assert "image.num_timesteps=2" in summary["findings"][0] and summary["made_by"]["edit.image.num_timesteps"] == 2
    assert [(t["title"], len(t["rows"])) for t in summary["tables"]] == [
        ("drawing", 9),
        ("editing", 7),
        ("reading", 6),
        ("thinking", 9),
    ]
    assert "six things" in done.stdout and "caption with places" in done.stdout
    page = (tmp_path / "index.html").read_text()
    assert "Scores on abilities" in page and "reading: caption" in page
    assert 'src="images/editing/move/00000-00.png"' in page
    log = tmp_path / "results.jsonl"
    lines = log.read_bytes().splitlines()[1:]  # the first is empty
    assert len(lines) == 30 and {json.loads(line)["group"] for line in lines} == {*GROUPS}
    log.write_bytes(b"\n".join([b"", *lines[:-2], lines[-2][:40]]))  # as after a kill
    again = run("evaluate.py", *arguments)
    assert again.returncode == 0, again.stderr
    whole, cut = log.read_bytes().splitlines()[-2:], log.read_bytes().splitlines()[-3]
    assert sorted(whole) == sorted(lines[-2:]) and cut == lines[-2][:40]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    other = run("evaluate.py", *arguments, "--setting=image.num_timesteps=3")
    assert other.returncode == 2 and "was begun with single_pass.image.num_timesteps=2, now it is 3" in other.stderr


def test_sampling_takes_the_process_model(run, tmp_path):
    size = ["--max_images=1", "--max_tokens=8", "--num_timesteps=2", "--text_scale=1"]
    done = run("sample.py", "--prompt=a red circle", *size, f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert load_trajectory(tmp_path / "out" / "000").checkpoint == "shapes"

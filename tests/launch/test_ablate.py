"""One table of the shipped sweep, end to end at the smallest sizes: data, training, scores."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from tests.support.own_lines import own_lines

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    "--config.scale=0.0005",
    "--config.seeds=(0,)",
    "--config.train_keys.num_steps=2",
    "--config.train_keys.optimizer.warmup_steps=1",
    # After two steps of training a model writes no readable plan.
    *(f"--config.cells.{cell}.plans_from=" for cell in ("plain_critique", "rewritten_critique")),
    "--config.evaluate_flags=('--samples=1','--count=2','--setting=image.num_timesteps=2','--setting=max_images=1')",
)


def ablate(output, *arguments):
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, "JAX_NUM_CPU_DEVICES": "1"}
    flags = ("--config=configs/ablation_shapes.py", f"--output={output}", *arguments)
    command = [sys.executable, "launch/ablate.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | cache)


@pytest.mark.slow
def test_the_sweep_writes_its_table_and_runs_once(tmp_path):
    jobs = min(2, os.cpu_count() or 1)
    done = ablate(tmp_path, *SMALL, "--tables=critiques", f"--jobs={jobs}")
    assert done.returncode == 0, done.stderr[-3000:]
    (table,) = json.loads((tmp_path / "tables.json").read_text())
    assert "Table 6" in table["title"] and table["title"] in done.stdout
    rows = [dict(zip(table["columns"], row)) for row in table["rows"]]
    assert all(0 <= row["low"] <= row["score"] <= row["high"] <= 1 and row["prompts"] == 2 for row in rows)
    assert [row["training data"] for row in rows[::3]] == ["none", "scene graph", "self-sampled"]
    assert [row["published"] for row in rows[3:6]] == [0.83, 0.70, 0.67]
    assert len((tmp_path / "critiques.csv").read_text().splitlines()) == 1 + len(rows)
    assert len(list(tmp_path.rglob("*.done"))) == 11  # three of data, four of training and scores
    again = ablate(tmp_path, *SMALL, "--tables=critiques")
    assert again.returncode == 0 and "launch/train.py" not in again.stderr + again.stdout
    assert json.loads((tmp_path / "tables.json").read_text()) == [table]


def test_faults_are_one_line(tmp_path):
    for arguments, words in (
        (["--tables=colours"], "--tables: 'colours' is not in the config"),
        (["--config.seeds=()"], "seeds is empty"),
    ):
        done = ablate(tmp_path, *arguments)
        assert done.returncode == 2 and words in done.stderr and own_lines(done.stderr, "ablate").count("\n") == 1

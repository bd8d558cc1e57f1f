"""The shipped sweep from end to end at the smallest sizes: data, training, scores, a table."""

import json
import os
import pathlib
import subprocess
import sys

import jax

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    "--config.scale=0.0005", "--config.seeds=(0,)", "--config.train_keys.num_steps=2",
    "--config.train_keys.optimizer.warmup_steps=1",
    "--config.cells.rewritten_critique.plans_from=",  # what two steps teach writes no plan that can be read
    "--config.evaluate_flags=('--samples=1','--count=1','--setting=image.num_timesteps=2','--setting=max_images=1')",
)  # fmt: skip


def ablate(output, *arguments):
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, "JAX_NUM_CPU_DEVICES": "1"}
    flags = ("--config=configs/ablation_shapes.py", f"--output={output}", *arguments)
    command = [sys.executable, "launch/ablate.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | cache)


def test_the_sweep_ends_in_a_table_and_is_done_once(tmp_path):
    done = ablate(tmp_path, *SMALL, "--tables=critiques")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "scene graph" in done.stdout and "self-sampled" in done.stdout
    [table] = json.loads((tmp_path / "tables.json").read_text())
    rows = [dict(zip(table["columns"], row)) for row in table["rows"]]
    assert [row["training data"] for row in rows[::3]] == ["none", "scene graph", "self-sampled"]
    assert all(0 <= row["score"] <= 1 and row["prompts"] == 1 for row in rows)
    assert [row["published"] for row in rows[3:6]] == [0.83, 0.70, 0.67]
    stages = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.done"))
    assert len(stages) == 9  # three cells of data, training and scores
    again = ablate(tmp_path, *SMALL, "--tables=critiques")
    assert again.returncode == 0 and "launch/train.py" not in again.stderr + again.stdout


def test_faults_are_one_line(tmp_path):
    for arguments, words in (
        (["--tables=colours"], "--tables: 'colours' is none of the config's"),
        (["--config.seeds=()"], "seeds is empty"),
    ):
        done = ablate(tmp_path, *arguments)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1

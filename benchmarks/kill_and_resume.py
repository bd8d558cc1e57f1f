"""A run killed with SIGKILL at random times and resumed each time, compared with an uninterrupted run.

    python -m benchmarks.kill_and_resume --kills=20

A model much smaller than nano trains on a few dozen trajectories of shapes world, with EMA, dropout, a limit on loss
spikes and held-out losses, saving every five steps. A third of the kills are at random times before the first step, the
others at random steps, some of them during a save. The exit status is 0 only if parameters, optimizer and EMA end with
the same bits, the exported checkpoints have the same digests, and metrics.jsonl and held_out.jsonl have the same rows
except for measurements of the machine.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from pdgen.assets import shapes_folder
from pdgen.checkpoints.manifest import read_manifest
from pdgen.checkpoints.pdgen_checkpoint import write_checkpoint
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, DIGESTS, EXPORT, list_steps
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import NANO
from pdgen.models import bagel
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.train.monitor.meter import TIMING_METRICS
from pdgen.train.monitor.run_monitor import HELD_OUT, METRICS

FLAGS = flags.FLAGS
flags.DEFINE_integer("kills", 20, "kills", lower_bound=1)
flags.DEFINE_integer("steps", 100, "steps of the run", lower_bound=20)
flags.DEFINE_integer("seed", 0, "of the moments")
flags.DEFINE_string("folder", None, "where to work and leave everything; by default a temporary folder")

ROOT = pathlib.Path(__file__).parents[1]
SAMPLES, SAVE_EVERY = 80, 5  # half of the samples are multi-turn
BEFORE = 1 / 3  # share of the kills before the first step
LANGUAGE = dataclasses.replace(NANO.language, hidden_size=32, intermediate_size=64, num_layers=2, head_dim=8)
MODEL = dataclasses.replace(NANO, language=LANGUAGE)


def make_inputs(folder: pathlib.Path, steps: int) -> pathlib.Path:
    """Write data set, first checkpoint and config into ``folder`` and return the config's path."""
    build = [
        sys.executable,
        str(ROOT / "launch/build_data.py"),
        f"--config={ROOT / 'configs/data_shapes.py'}",
        f"--output={folder / 'data'}",
        f"--count={SAMPLES}",
        "--stages=multi_turn",
        "--workers=1",
    ]
    subprocess.run(build, check=True, env=make_environment(folder))
    params = jax.jit(functools.partial(bagel.init_params, MODEL))(jax.random.key(0))
    autoencoder = read_autoencoder(shapes_folder(), MODEL.autoencoder)
    write_checkpoint(
        folder / "init",
        MODEL,
        {"model": params, "autoencoder": autoencoder},
        tokenizer_files=load_tokenizer(shapes_folder()).files,
    )
    config = {
        "data": str(folder / "data"),
        "init": str(folder / "init"),
        "model": "",
        "num_steps": steps,
        "rows": 1,
        "budgets": {"text": 640, "vit": 128, "vae": 896},
        "mesh": (1, 1, 1),
        "save_every": SAVE_EVERY,
        "keep": 2,
        "log_every": 1,
        "held_out": 4,
        "held_out_every": 10,
        "spike_factor": 3.0,
        "dropout": {"text": 0.05, "vae": 0.05, "vit": 0.05},
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 10, "ema_decay": 0.9},
    }
    path = folder / "config.py"
    path.write_text(f"import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({config!r})\n")
    return path


def make_environment(folder: pathlib.Path) -> dict[str, str]:
    """Return an environment with one CPU device and a compilation cache, by default in ``folder``."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return kept | os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


class RunProcess:
    """One process of a run, from its start to its end."""

    def __init__(self, config: pathlib.Path, workdir: pathlib.Path) -> None:
        self.workdir, self._began = workdir, time.monotonic()
        self._earlier = self._log()
        command = [sys.executable, str(ROOT / "launch/train.py"), f"--config={config}", f"--workdir={workdir}"]
        with workdir.with_suffix(".log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=make_environment(config.parent))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def wait_for(self, step: int) -> None:
        """Wait until this process has logged a step, or has ended."""
        while self.process.poll() is None and (self._log() == self._earlier or read_step(self.workdir) < step):
            time.sleep(0.005)

    def _log(self) -> int:
        """Return the inode of the metrics: a resuming process starts with a shorter copy in a new file."""
        path = self.workdir / METRICS
        return path.stat().st_ino if path.exists() else 0

    def kill(self) -> bool:
        """Send SIGKILL and return whether the process was alive."""
        alive = self.process.poll() is None
        self.process.kill()
        self.process.wait()
        return alive

    def end(self) -> None:
        """Wait for the end. Raises RuntimeError if the status is not 0."""
        if self.process.wait():
            tail = self.workdir.with_suffix(".log").read_text()[-2000:]
            raise RuntimeError(f"{self.workdir}: left with status {self.process.returncode}: {tail}")


def read_rows(workdir: pathlib.Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Return the complete rows of a run's metrics, or of its held-out losses."""
    path = workdir / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_step(workdir: pathlib.Path) -> int:
    """Return the last logged step."""
    return max((row["step"] for row in read_rows(workdir)), default=0)


def describe_state(workdir: pathlib.Path) -> str:
    """Describe what a killed run left."""
    folder = workdir / CHECKPOINTS
    saving = [path.name.partition(".")[0] for path in folder.glob("*.orbax-checkpoint-tmp*")]
    saved = ", ".join(map(str, list_steps(folder))) or "none"
    return f"step {read_step(workdir)} logged, saved {saved}" + "".join(f", {step} half saved" for step in saving)


def run_with_kills(config: pathlib.Path, workdir: pathlib.Path, kills: int, steps: int, seed: int) -> int:
    """Run with ``kills`` SIGKILLs. Return how many there were, fewer if the run ended before."""
    rng, first = np.random.default_rng(seed), 5.0
    for number in range(kills):
        saved = max(list_steps(workdir / CHECKPOINTS), default=0)
        life = RunProcess(config, workdir)
        if rng.random() < BEFORE:
            time.sleep(rng.uniform(0, first))
        else:
            reach = max(1, 2 * (steps - 2 - saved) // (kills - number))
            target = min(saved + int(rng.integers(1, reach + 1)), steps - 2)
            life.wait_for(saved + 1)
            first = life.seconds
            life.wait_for(target)
            time.sleep(rng.uniform(0, 0.3))
        seconds = life.seconds
        if not life.kill():
            return number
        print(f"kill {number + 1} of {kills} after {seconds:.2f} s: {describe_state(workdir)}", flush=True)
    RunProcess(config, workdir).end()
    return kills


def read_array_digests(workdir: pathlib.Path) -> dict[str, str]:
    """Return the SHA-256 of every file of values in the last checkpoint: parameters, optimizer and EMA."""
    folder = workdir / CHECKPOINTS / str(list_steps(workdir / CHECKPOINTS)[-1])
    files = json.loads((folder / DIGESTS).read_text())
    return {f"{folder.name}/{name}": entry["sha256"] for name, entry in files.items() if "/c" in name}


def find_differences(alone: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """Return the differences between the ends of two runs, empty if they are the same."""
    ours, theirs = read_array_digests(alone), read_array_digests(killed)
    changed = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    found = [f"the checkpoints differ in {name}" for name in changed]
    if read_manifest(alone / EXPORT) != read_manifest(killed / EXPORT):
        found.append("the exported checkpoints differ")
    for name in (METRICS, HELD_OUT):
        ours, theirs = (
            [{k: v for k, v in row.items() if k not in TIMING_METRICS} for row in read_rows(w, name)]
            for w in (alone, killed)
        )
        if ours != theirs:
            found.append(
                f"{name} differs: {len(ours)} rows and {len(theirs)}, first in "
                f"{next((a for a, b in zip(ours, theirs) if a != b), 'the number')}"
            )
    return found


def compare_runs(folder: pathlib.Path, kills: int, steps: int, seed: int) -> int:
    """Run both in ``folder`` and return the exit status."""
    config, alone, killed = make_inputs(folder, steps), folder / "alone", folder / "killed"
    life = RunProcess(config, alone)
    life.end()
    print(
        f"alone: {steps} steps in {life.seconds:.1f} s with compiling, {len(read_array_digests(alone))} files of arrays"
    )
    began = time.monotonic()
    done = run_with_kills(config, killed, kills, steps, seed)
    print(f"killed {done} times and resumed: {time.monotonic() - began:.1f} s in all")
    found = find_differences(alone, killed)
    if done < kills:
        found.append(f"the run ended before kill {done + 1}")
    print("\n".join(found) or "identical: parameters, optimiser, EMA, exported digests, metrics and held-out losses")
    return 1 if found else 0


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)
    if FLAGS.folder:
        pathlib.Path(FLAGS.folder).mkdir(parents=True)
        return compare_runs(pathlib.Path(FLAGS.folder).absolute(), FLAGS.kills, FLAGS.steps, FLAGS.seed)
    with tempfile.TemporaryDirectory() as folder:
        return compare_runs(pathlib.Path(folder), FLAGS.kills, FLAGS.steps, FLAGS.seed)


if __name__ == "__main__":
    app.run(main)

"""A run killed with SIGKILL at random moments and resumed each time, beside one left alone: are they the same?

    python -m benchmarks.kill_and_resume --kills=20

A model much smaller than nano learns from a few dozen trajectories of shapes world, with EMA, dropout, a limit on loss
spikes and held-out losses, saving all five steps. A third of the kills fall at random into the time before the first
step, the others at random into the steps, of which some are being saved. Exit status 0 only if parameters, optimiser
and EMA end with the same bits, the exported checkpoints have the same digests, and metrics.jsonl and held_out.jsonl
the same rows but for what is measured of the machine.
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
    """Writes data set, first checkpoint and config into ``folder``; returns the config's path."""
    build = [
        sys.executable,
        str(ROOT / "launch/build_data.py"),
        f"--config={ROOT / 'configs/data_shapes.py'}",
        f"--output={folder / 'data'}",
        f"--count={SAMPLES}",
        "--stages=multi_turn",
        "--workers=1",
    ]
    subprocess.run(build, check=True, env=environment(folder))
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


def environment(folder: pathlib.Path) -> dict[str, str]:
    """One CPU device, and all that is compiled kept: in ``folder``, or where the environment says."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return kept | os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


class Life:
    """One process of a run, from its start to its death or end."""

    def __init__(self, config: pathlib.Path, workdir: pathlib.Path) -> None:
        self.workdir, self._began = workdir, time.monotonic()
        self._earlier = self._log()
        command = [sys.executable, str(ROOT / "launch/train.py"), f"--config={config}", f"--workdir={workdir}"]
        with workdir.with_suffix(".log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(config.parent))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def wait_for(self, step: int) -> None:
        """Waits until this life has logged a step, or has ended."""
        while self.process.poll() is None and (self._log() == self._earlier or step_of(self.workdir) < step):
            time.sleep(0.005)

    def _log(self) -> int:
        """Which file holds the metrics: a life that resumes begins with a shorter copy."""
        path = self.workdir / METRICS
        return path.stat().st_ino if path.exists() else 0

    def kill(self) -> bool:
        """SIGKILL; whether there was a process left to kill."""
        alive = self.process.poll() is None
        self.process.kill()
        self.process.wait()
        return alive

    def end(self) -> None:
        """Waits for the end. Raises RuntimeError if it is not a good one."""
        if self.process.wait():
            tail = self.workdir.with_suffix(".log").read_text()[-2000:]
            raise RuntimeError(f"{self.workdir}: left with status {self.process.returncode}: {tail}")


def rows(workdir: pathlib.Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The whole rows of a run's metrics, or of its held-out losses."""
    path = workdir / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def step_of(workdir: pathlib.Path) -> int:
    """The last step that is logged."""
    return max((row["step"] for row in rows(workdir)), default=0)


def state_of(workdir: pathlib.Path) -> str:
    """What a killed run has left, in words."""
    folder = workdir / CHECKPOINTS
    saving = [path.name.partition(".")[0] for path in folder.glob("*.orbax-checkpoint-tmp*")]
    saved = ", ".join(map(str, list_steps(folder))) or "none"
    return f"step {step_of(workdir)} logged, saved {saved}" + "".join(f", {step} half saved" for step in saving)


def killed_run(config: pathlib.Path, workdir: pathlib.Path, kills: int, steps: int, seed: int) -> int:
    """A run with ``kills`` SIGKILLs. Returns how many there were: fewer if the run ended before."""
    rng, first = np.random.default_rng(seed), 5.0
    for number in range(kills):
        saved = max(list_steps(workdir / CHECKPOINTS), default=0)
        life = Life(config, workdir)
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
        print(f"kill {number + 1} of {kills} after {seconds:.2f} s: {state_of(workdir)}", flush=True)
    Life(config, workdir).end()
    return kills


def arrays(workdir: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file that holds values in the last checkpoint: parameters, optimiser and EMA."""
    folder = workdir / CHECKPOINTS / str(list_steps(workdir / CHECKPOINTS)[-1])
    files = json.loads((folder / DIGESTS).read_text())
    return {f"{folder.name}/{name}": entry["sha256"] for name, entry in files.items() if "/c" in name}


def differences(alone: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """What the ends of two runs differ in; empty if they are the same."""
    ours, theirs = arrays(alone), arrays(killed)
    changed = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    found = [f"the checkpoints differ in {name}" for name in changed]
    if read_manifest(alone / EXPORT) != read_manifest(killed / EXPORT):
        found.append("the exported checkpoints differ")
    for name in (METRICS, HELD_OUT):
        ours, theirs = (
            [{k: v for k, v in row.items() if k not in TIMING_METRICS} for row in rows(w, name)]
            for w in (alone, killed)
        )
        if ours != theirs:
            found.append(
                f"{name} differs: {len(ours)} rows and {len(theirs)}, first in "
                f"{next((a for a, b in zip(ours, theirs) if a != b), 'the number')}"
            )
    return found


def compare(folder: pathlib.Path, kills: int, steps: int, seed: int) -> int:
    """Both runs in ``folder``; the exit status."""
    config, alone, killed = make_inputs(folder, steps), folder / "alone", folder / "killed"
    life = Life(config, alone)
    life.end()
    print(f"alone: {steps} steps in {life.seconds:.1f} s with compiling, {len(arrays(alone))} files of arrays")
    began = time.monotonic()
    done = killed_run(config, killed, kills, steps, seed)
    print(f"killed {done} times and resumed: {time.monotonic() - began:.1f} s in all")
    found = differences(alone, killed)
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
        return compare(pathlib.Path(FLAGS.folder).absolute(), FLAGS.kills, FLAGS.steps, FLAGS.seed)
    with tempfile.TemporaryDirectory() as folder:
        return compare(pathlib.Path(folder), FLAGS.kills, FLAGS.steps, FLAGS.seed)


if __name__ == "__main__":
    app.run(main)

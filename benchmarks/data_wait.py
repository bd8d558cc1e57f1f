"""The share of a training run's time in which no step runs because the data is not ready.

    python -m benchmarks.data_wait --json

Builds a data set of shapes world, trains ``--config`` on it with its own loader and command line, and reads the run's
log (``data_wait`` of ``metrics.jsonl``, without the first logged steps, which include compilation).
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from absl import app, flags

from benchmarks.result import get_cpu_name, get_versions, write_json
from pdgen.train.monitor.run_log import read_run_log

FLAGS = flags.FLAGS
flags.DEFINE_string("config", "configs/shapes_process.py", "of the run")
flags.DEFINE_string("data", None, "data set of the run; by default one is built")
flags.DEFINE_integer("samples", 400, "trajectories of the one that is built", lower_bound=20)
flags.DEFINE_integer("steps", 100, "steps of the run", lower_bound=20)
flags.DEFINE_boolean("json", False, "write the result under benchmarks/results/")

ROOT = pathlib.Path(__file__).parents[1]
AIM = 0.02
LOG_EVERY = 5


def run_command(script: str, *arguments: str) -> None:
    """Run a command line of pdgen. Its output goes to standard error."""
    subprocess.run([sys.executable, str(ROOT / "launch" / script), *arguments], check=True, stdout=sys.stderr, cwd=ROOT)


def measure(folder: pathlib.Path) -> dict[str, Any]:
    """Train and return every printed number."""
    data = FLAGS.data
    if data is None:
        data = str(folder / "data")
        run_command("build_data.py", "--config=configs/data_shapes.py", f"--output={data}", f"--count={FLAGS.samples}")
    workdir = folder / "run"
    run_command(
        "train.py",
        f"--config={FLAGS.config}",
        f"--workdir={workdir}",
        f"--config.data={data}",
        f"--config.num_steps={FLAGS.steps}",
        f"--config.save_every={FLAGS.steps}",
        f"--config.log_every={LOG_EVERY}",
    )
    rows = [row for row in read_run_log(workdir).metrics.rows if "data_wait" in row][1:]
    waits = [row["data_wait"] for row in rows]
    return {
        "config": FLAGS.config,
        "steps": FLAGS.steps,
        "data_wait": statistics.mean(waits),
        "largest": max(waits),
        "step_s": statistics.median(row["step_seconds"] for row in rows),
        "aim": AIM,
        "cpu": get_cpu_name(),
        "versions": get_versions("jax", "grain"),
        "load": os.getloadavg()[0],
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = measure(pathlib.Path(folder))
        except subprocess.CalledProcessError as fault:
            print(f"data_wait: {pathlib.Path(fault.cmd[1]).name} ended with status {fault.returncode}", file=sys.stderr)
            sys.exit(2)
    print(
        f"{result['config']}: {result['data_wait']:.2%} of the time waited for data, {result['largest']:.2%} at most "
        f"(aim: below {AIM:.0%}); {result['step_s']:.3f} s a step"
    )
    if FLAGS.json:
        print(f"wrote {write_json('data_wait', result)}")


if __name__ == "__main__":
    app.run(main)

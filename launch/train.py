"""Trains a model and exports it as a pdgen checkpoint. A run that is started again resumes.

python launch/train.py --config=configs/shapes_base.py --workdir=out/base [--config.num_steps=300]

Parameters come from the workdir's newest complete checkpoint, else from the checkpoint config.init, else they are
initialized. SIGTERM or one Ctrl-C finishes the current step, saves, and ends with status 75; start again to resume. A
second Ctrl-C ends at once. A finished run continues with a larger num_steps. Status 2 means invalid input, with one
line on stderr.

With --distributed this is one of several processes, which launch/slurm/train.sh or launch/k8s/train.yaml start. Without
a scheduler, give each JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import pathlib
import sys

from absl import flags

from pdgen.cli import run_command, use_huge_pages
from pdgen.sample.compiled import keep_compiled
from pdgen.train.checkpoint import silence_orbax
from pdgen.train.loop import train
from pdgen.train.monitor.pictures import PictureSampler
from pdgen.train.planning.processes import join_processes, print_once
from pdgen.train.run_config import define_run_config, read_run_config
from pdgen.train.stop import EXIT_STATUS, Stopped

CONFIG = define_run_config("File such as configs/shapes_base.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, export.", required=True)
flags.mark_flag_as_required("config")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the processes of a job, as described by Slurm, Kubernetes, MPI or the JAX_* variables."
)


def train_model() -> int:
    """Train the run and return the exit status."""
    silence_orbax()
    keep_compiled()
    run = read_run_config(CONFIG.value.to_dict())
    if DISTRIBUTED.value:
        join_processes()
    workdir = pathlib.Path(WORKDIR.value)
    try:
        train(run, workdir, print_once, lambda base: PictureSampler(run, workdir, print_once, base))
    except Stopped as line:
        print(f"train: {line}", file=sys.stderr)
        return EXIT_STATUS
    return 0


if __name__ == "__main__":
    use_huge_pages()
    run_command(train_model)

"""Trains a model and exports it as a pdgen checkpoint; started again, it goes on where it stopped.

python launch/train.py --config=configs/shapes_base.py --workdir=out/base [--config.num_steps=300]

Parameters come from the newest whole checkpoint of the workdir; if there is none, from the checkpoint that config.init
names; if it names none, they are fresh. SIGTERM, or one Ctrl-C, ends the current step, saves and leaves with status
75: start again to go on. A second one leaves at once. Status 2: the line on stderr says what is wrong.

With --distributed this is one of several processes, which launch/slurm/train.sh or launch/k8s/train.yaml start.
"""

import pathlib
import sys

from absl import flags, logging

from pdgen.cli import run_command, use_huge_pages
from pdgen.sample.compiled import keep_compiled
from pdgen.train.loop import train
from pdgen.train.monitor.pictures import PictureSampler
from pdgen.train.planning.processes import join_processes, print_once
from pdgen.train.run_config import define_run_config, read_run_config
from pdgen.train.stop import EXIT_STATUS, Stopped

CONFIG = define_run_config("File such as configs/shapes_base.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, export.", required=True)
flags.mark_flag_as_required("config")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of the processes that Slurm, Kubernetes or MPI has started.")


def train_model() -> int:
    """Trains the run of the flags; returns the exit status. Raises ValueError, OSError."""
    # Orbax's tracebacks and warnings are left out: one line of ours says what matters of them.
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
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

"""Trains a model and exports it as a pdgen checkpoint; started again, it goes on where it stopped.

python launch/train.py --config=configs/shapes_base.py --workdir=out/base [--config.num_steps=300]

Parameters come from the newest whole checkpoint of the workdir; if there is none, from the checkpoint that config.init
names; if it names none, they are fresh. SIGTERM, or one Ctrl-C, ends the current step, saves and leaves with status
75: start again to go on. A second one leaves at once. Status 2: the line on stderr says what is wrong.

With --distributed this is one of several processes, which launch/slurm/train.sh or launch/k8s/train.yaml start.
"""

import pathlib
import sys

from absl import app, flags, logging

from pdgen.cli import fail, parse, use_huge_pages
from pdgen.sample.compiled import keep_compiled
from pdgen.train.loop import train
from pdgen.train.monitor.pictures import Pictures
from pdgen.train.planning.processes import join_processes, say_once
from pdgen.train.run_config import define_run_config, read_run_config
from pdgen.train.stop import EXIT_STATUS, Stopped

CONFIG = define_run_config("File such as configs/shapes_base.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, export.", required=True)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of the processes that Slurm, Kubernetes or MPI has started.")


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)
    # what matters of Orbax's tracebacks and warnings is said in one line
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    keep_compiled()
    try:
        run = read_run_config(CONFIG.value.to_dict())
        if DISTRIBUTED.value:
            join_processes()
        workdir = pathlib.Path(WORKDIR.value)
        train(run, workdir, say_once, lambda base: Pictures(run, workdir, say_once, base))
    except Stopped as line:
        print(f"train: {line}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)


if __name__ == "__main__":
    use_huge_pages()
    app.run(main, flags_parser=parse)

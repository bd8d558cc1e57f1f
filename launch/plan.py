"""What a training run takes on machines that one does not have: memory, fit, FLOPs, time. Nothing is rented.

python launch/plan.py --config=configs/bagel_7b_process.py --topology=h100:8 [--mfu=0.25] [--json]

Compiles the very train step for the topology (also h100:64, v5p:2x2x2), on any machine, for minutes on a laptop. Needs
the compilers of the extra "plan", best in an environment of their own. Any value of the config may be overridden, as
in training: --config.rows=64.
"""

import json
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the compilers' notes about the hardware that is not there

import jax
from absl import app, flags, logging

from pdgen.cli import fail, parse
from pdgen.train.planning.plan import plan, table
from pdgen.train.planning.topology import parse_topology
from pdgen.train.run_config import define_run_config, read_run_config

CONFIG = define_run_config("File such as configs/bagel_7b_process.py.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Such as h100:8, h100:64 or v5p:2x2x2.", required=True)
MFU = flags.DEFINE_float("mfu", 0.25, "Share of the peak FLOP/s at which times are stated.", 0.01, 1.0)
SAMPLE_LENGTH = flags.DEFINE_float(
    "sample_length", 9500.0, "Tokens of the sample that an average token is in; the paper's data at 512 px.", 1.0
)
JSON = flags.DEFINE_bool("json", False, "Print one line of JSON in place of the table.")


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_platforms", "cpu")  # an accelerator that is there stays free
    try:
        run = read_run_config(CONFIG.value.to_dict())
        facts = plan(run, parse_topology(TOPOLOGY.value), SAMPLE_LENGTH.value, MFU.value)
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)
    flag: Any = flags.FLAGS["config"]  # ml_collections adds the file's name
    print(json.dumps(facts) if JSON.value else "\n".join(table(facts, flag.config_filename)))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

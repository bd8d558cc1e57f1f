"""Compares training data: builds, trains and evaluates every cell of a sweep, and writes the paper's tables.

python launch/ablate.py --config=configs/ablation_shapes.py --output=out/ablation [--tables=subsets] [--jobs=2]

It resumes after a kill. OUTPUT/<table>.csv and tables.json hold the printed tables. With --jobs, that many commands run
side by side, each on its share of the CPUs.
"""

import pathlib

import msgspec
from absl import flags
from ml_collections import config_flags

from pdgen.cli import exit_on_sigterm, run_command
from pdgen.evaluate.ablation import TABLES, Sweep, make_stages, make_table
from pdgen.evaluate.tables import format_csv, format_json, format_text, write_files
from pdgen.files import check_writable
from pdgen.train.release.stages import run_stages

CONFIG = config_flags.DEFINE_config_file("config", None, "File such as configs/ablation_shapes.py.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of the sweep.", required=True)
WANTED = flags.DEFINE_list("tables", None, f"Tables from {', '.join(TABLES)}; by default all of the config's.")
JOBS = flags.DEFINE_integer("jobs", 1, "Commands to run side by side, each on its share of the CPUs.", lower_bound=1)
flags.mark_flag_as_required("config")


def ablate() -> None:
    """Run the missing stages and write the tables."""
    exit_on_sigterm()  # also ends the running commands, which resume from their last checkpoints
    sweep = msgspec.convert(CONFIG.value.to_dict(), Sweep)
    names = WANTED.value or [name for name in TABLES if name in sweep.tables]
    if unknown := [name for name in names if name not in sweep.tables]:
        raise ValueError(f"--tables: {unknown[0]!r} is not in the config, which has {', '.join(sweep.tables)}")
    output = pathlib.Path(OUTPUT.value)
    check_writable(output)
    cells = list(dict.fromkeys(cell for name in names for cell in sweep.tables[name].values()))
    run_stages(list(make_stages(sweep, cells, output)), pathlib.Path(__file__).parent, JOBS.value)
    tables = [make_table(sweep, name, output) for name in names]
    files = {f"{name}.csv": format_csv(one) for name, one in zip(names, tables)}
    write_files(output, files | {"tables.json": format_json(tables)})
    print("\n\n".join([*map(format_text, tables), f"wrote {output}/tables.json and a CSV file for each table"]))


if __name__ == "__main__":
    run_command(ablate)

"""Imports another data set as records: BAGEL parquet, Zebra-CoT, ThinkMorph, UniCoT, GenRef, or one's own images.

python launch/import_data.py --format=folder --source=drawings --output=out/drawings

What does not fit the sequence grammar is left out, counted by reason and named. The formats and what becomes of
their parts are told in pdgen/data/importers. Encode the result with launch/encode.py before training.
"""

import pathlib
import signal
import sys

from absl import app, flags

from pdgen.cli import fail, parse
from pdgen.synthesis.importers import FORMATS, import_dataset

FORMAT = flags.DEFINE_enum("format", None, sorted(FORMATS), "What the source is.", required=True)
SOURCE = flags.DEFINE_string("source", None, "File to read, or a folder of such files.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
RECORDS_PER_FILE = flags.DEFINE_integer("records_per_file", 1000, "Records in a written file.", lower_bound=1)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing data set.")


def run() -> str:
    """Imports and returns the lines that sum it up."""
    folder = pathlib.Path(OUTPUT.value)
    dataset, tally = import_dataset(
        FORMAT.value,
        pathlib.Path(SOURCE.value),
        folder,
        records_per_file=RECORDS_PER_FILE.value,
        overwrite=OVERWRITE.value,
    )
    skipped = dataset.facts["skipped"]
    lines = [f"skipped {held['samples']}: {held['first'][0]}" for held in skipped.values()]
    total = sum(tally.skipped.values())
    return "\n".join([*lines, f"{folder}: {dataset.records} records in {len(dataset.files)} files, {total} skipped"])


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a partial folder is removed
    try:
        print(run())
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

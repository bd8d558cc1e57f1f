"""Explains a pack of a training run token by token: stage, stream, expert, positions, what is seen, targets.

python launch/explain_batch.py --config=configs/shapes_process.py --pack=0 --output=out/pack0

Prints every text token and every run of image tokens in sequence order. With --output also writes index.html with the
pack's fill, documents and attention mask, and a page for each document.
"""

import pathlib

from absl import app, flags, logging

from pdgen.checkpoints.runs.base import load_model
from pdgen.cli import fail, parse
from pdgen.data.explain import explain_pack
from pdgen.data.loader import Batches
from pdgen.data.page import INDEX, document_lines, pack_pages
from pdgen.data.records import RecordSource
from pdgen.files import new_folder
from pdgen.sequence.explained import ExplainedPack
from pdgen.train.export import resolved
from pdgen.train.run_config import RunConfig, define_run_config, read_run_config

CONFIG = define_run_config("A training run's file, such as configs/shapes_process.py.")
DATA = flags.DEFINE_string("data", None, "Data set, in place of the config's.")
PACK = flags.DEFINE_integer("pack", 0, "Number of the pack in the run, from 0.", lower_bound=0)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write the pages to.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an earlier output.")


def read_run(values: dict) -> RunConfig:
    """The config's run with ``--data``, its ``init`` found. Raises RunError, or CheckpointError where there is none."""
    return resolved(read_run_config(values | ({} if DATA.value is None else {"data": DATA.value})))


def explain(run: RunConfig, number: int) -> ExplainedPack:
    """Pack ``number`` of the run. Raises a ValueError that names what is wrong with the config or the data."""
    config, tokenizer = load_model(run.init, run.model)
    return explain_pack(Batches(config, RecordSource(run.data), tokenizer, run.loader), number)


def write(pack: ExplainedPack, path: pathlib.Path, title: str) -> None:
    """Writes the pages. Raises FolderError where the folder may not be written."""
    with new_folder(path, kind="explained pack", replaceable=is_output, overwrite=OVERWRITE.value) as folder:
        for name, page in pack_pages(pack, title).items():
            (folder / name).write_text(page, encoding="utf-8")


def is_output(folder: pathlib.Path) -> bool:
    """Whether a folder holds the pages of a pack."""
    return (folder / INDEX).is_file() and (folder / "document-000.html").is_file()


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)
    try:
        run = read_run(CONFIG.value.to_dict())
        pack = explain(run, PACK.value)
        for number, document in enumerate(pack.documents):
            print("\n".join(document_lines(document, number)))
        print(f"\nslots {pack.used} to {run.budgets.total - 1}: padding")
        if OUTPUT.value:
            write(pack, pathlib.Path(OUTPUT.value), f"Pack {PACK.value} of {run.data}")
            print(f"\nwrote {pathlib.Path(OUTPUT.value) / INDEX}")
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

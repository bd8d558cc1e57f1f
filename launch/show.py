"""Shows a training run's data, requirements and progress.

python launch/show.py fill --config=configs/shapes_process.py --data=out/shapes      how full its packs are
python launch/show.py pack --config=configs/shapes_process.py --data=out/shapes      one pack, token by token
python launch/show.py plan --config=configs/bagel_7b_process.py --topology=h100:8    memory and time on machines
python launch/show.py run out/process                                                curves and pictures
python launch/show.py prompts --metadata=evaluation_metadata.jsonl                   how prompts are parsed

fill prints the fill of each stream, the lengths of documents, and budgets that fit the data better.

pack prints every text token and every run of image tokens in sequence order: stage, stream, expert, positions, visible
tokens, targets. With --output it also writes index.html with the pack's fill, documents and attention mask, and a page
for each document.

plan compiles the training step for the topology (h100:8, h100:64, v5p:2x2x2) on any machine, in minutes on a laptop. It
needs the compilers of the extra "plan", best in a separate environment.

run also accepts a run that is still training or was killed. Several workdirs give one page that compares them.

prompts parses every prompt and compares the graph with the metadata. The exit status is 1 if some do not agree.

Flags such as --config.rows=64 override the config, as in training. For one mode's flags: show.py MODE --help.
"""

import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides the compilers' messages about missing hardware

import jax
from absl import flags
from ml_collections import config_flags

from pdgen.checkpoints.runs.base import load_model
from pdgen.cli import Mode, require, run_modes
from pdgen.data.explain import explain_pack
from pdgen.data.fill import format_fill, measure_fill
from pdgen.data.loader import Batches
from pdgen.data.page import format_document, write_pack_pages
from pdgen.data.records import RecordSource
from pdgen.evaluate.folder import read_prompts
from pdgen.evaluate.geneval.metadata import find_disagreements
from pdgen.files import check_writable, new_file
from pdgen.train.export import resolve_init
from pdgen.train.monitor.page import render_run_page
from pdgen.train.monitor.run_log import read_run_log
from pdgen.train.planning.plan import format_plan_table, plan_run
from pdgen.train.planning.topology import parse_topology
from pdgen.train.run_config import RunConfig, RunError, define_run_config, read_run_config

PAGE = "report.html"

CONFIG = define_run_config("A training run's file, such as configs/shapes_process.py.")
DATA = flags.DEFINE_string("data", None, "Data set, instead of the config's.")
JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")
OUTPUT = flags.DEFINE_string(
    "output", None, f"pack: folder for the pages. run: file for the page (default: {PAGE} in the workdir)."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an earlier --output.")
PACKS = flags.DEFINE_integer("packs", 1000, "Number of packs to measure.", lower_bound=1)
TOTAL = flags.DEFINE_integer("total", 0, "Largest size of a proposed pack in tokens; 0 = the config's.", lower_bound=0)
PACK = flags.DEFINE_integer("pack", 0, "Index of the pack in the run, from 0.", lower_bound=0)
TOPOLOGY = flags.DEFINE_string("topology", None, "Devices, such as h100:8, h100:64 or v5p:2x2x2.")
MFU = flags.DEFINE_float("mfu", 0.25, "Share of the peak FLOP/s, for the estimated times.", 0.01, 1.0)
SAMPLE_LENGTH = flags.DEFINE_float(
    "sample_length", 9500.0, "Mean sample length over all tokens; by default that of the paper's data.", 1.0
)
METADATA = flags.DEFINE_string("metadata", None, "GenEval's evaluation_metadata.jsonl.")


def read_run() -> RunConfig:
    """Return the config's run, with ``--data`` and the folder of ``init``."""
    return resolve_init(read_run_config(CONFIG.value.to_dict() | ({} if DATA.value is None else {"data": DATA.value})))


def show_fill() -> None:
    """Print how full the packs of a run are."""
    run = read_run()
    model, tokenizer = load_model(run.init, run.model)
    facts = measure_fill(RecordSource(run.data), tokenizer, model, run.loader_config, PACKS.value, TOTAL.value)
    print(json.dumps(facts, indent=1) if JSON.value else "\n".join(format_fill(facts)))


def show_pack() -> None:
    """Print a pack of a run, and write its pages with ``--output``."""
    if OUTPUT.value:
        check_writable(pathlib.Path(OUTPUT.value).absolute().parent)
    run = read_run()
    model, tokenizer = load_model(run.init, run.model)
    pack = explain_pack(Batches(model, RecordSource(run.data), tokenizer, run.loader_config), PACK.value)
    for number, document in enumerate(pack.documents):
        print("\n".join(format_document(document, number)))
    print(f"\nslots {pack.used} to {run.budgets.total - 1}: padding")
    if OUTPUT.value:
        title = f"Pack {PACK.value} of {run.data}"
        print(f"\nwrote {write_pack_pages(pack, pathlib.Path(OUTPUT.value), title, OVERWRITE.value)}")


def show_plan() -> None:
    """Print the memory and time of a run on the devices of a topology."""
    jax.config.update("jax_platforms", "cpu")  # leaves this machine's accelerators free
    facts = plan_run(
        read_run_config(CONFIG.value.to_dict()), parse_topology(require(TOPOLOGY)), SAMPLE_LENGTH.value, MFU.value
    )
    config = config_flags.get_config_filename(flags.FLAGS["config"])
    print(json.dumps(facts) if JSON.value else "\n".join(format_plan_table(facts, config)))


def show_run(*workdirs: str) -> None:
    """Write the page of one or several runs."""
    if not workdirs:
        raise RunError("name the workdir of a training run")
    logs = [read_run_log(pathlib.Path(workdir)) for workdir in workdirs]
    path = choose_page(workdirs)
    check_writable(path.parent)
    page = render_run_page(logs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"{path}: {', '.join(f'{log.name} at step {log.step:,}' for log in logs)}")


def choose_page(workdirs: tuple[str, ...]) -> pathlib.Path:
    """Return the path of the runs' page, which may replace an earlier page but nothing else."""
    if OUTPUT.value is None and len(workdirs) > 1:
        raise RunError(f"{len(workdirs)} workdirs make one page; name it: --output=FILE")
    path = pathlib.Path(workdirs[0]) / PAGE if OUTPUT.value is None else pathlib.Path(OUTPUT.value)
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name a file")
    if path.exists() and not path.read_bytes().startswith(b"<!DOCTYPE html>"):
        raise RunError(f"{path}: exists and is not a page, so it is not replaced; name another --output")
    return path


def show_prompts() -> int:
    """Print the differences between parsed prompts and GenEval's metadata; return 1 if there are some."""
    found = [find_disagreements(prompt.metadata) for prompt in read_prompts(pathlib.Path(require(METADATA)))]
    for number, differences in enumerate(found, 1):
        for line in differences:
            print(f"line {number}: {line}")
    print(f"{found.count([])} of {len(found)} prompts agree with their metadata")
    return int(any(found))


MODES = {
    "fill": Mode(show_fill, ("config", "data", "packs", "total", "json"), needs=("config",)),
    "pack": Mode(show_pack, ("config", "data", "pack", "output", "overwrite"), needs=("config",)),
    "plan": Mode(show_plan, ("config", "topology", "mfu", "sample_length", "json"), needs=("config", "topology")),
    "run": Mode(show_run, ("output",), arguments=True),
    "prompts": Mode(show_prompts, ("metadata",), needs=("metadata",)),
}

if __name__ == "__main__":
    run_modes(MODES)

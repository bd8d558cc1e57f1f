"""How a data set fills packs: fill of each stream, lengths, and budgets that would suit it better.

python launch/pack_report.py --config=configs/shapes_process.py [--data=out/shapes] [--packs=1000] [--json]
"""

import dataclasses
import json
from typing import Any

import numpy as np
from absl import app, flags, logging

from pdgen.checkpoints.runs.base import load_model
from pdgen.cli import fail, parse
from pdgen.data.budgets import Proposal, propose_budgets
from pdgen.data.documents import Documents, PackingError, make_documents
from pdgen.data.lengths import LengthIndex, length_index
from pdgen.data.loader import subset_documents
from pdgen.data.packing import Packer
from pdgen.data.records import RecordSource
from pdgen.data.stream import Stream
from pdgen.sequence.layout import STREAMS
from pdgen.train.export import resolved
from pdgen.train.run_config import RunConfig, define_run_config, read_run_config

CONFIG = define_run_config("A training run's file, such as configs/shapes_process.py.")
DATA = flags.DEFINE_string("data", None, "Data set, in place of the config's.")
PACKS = flags.DEFINE_integer("packs", 1000, "Packs to plan.", lower_bound=1)
TOTAL = flags.DEFINE_integer("total", 0, "Tokens of a proposed pack, at most; 0 = the config's.", lower_bound=0)
JSON = flags.DEFINE_bool("json", False, "Print one JSON object in place of the tables.")

NAMES = {"whole": "whole trajectories", "single": "single turns"}
QUANTILES = {"least": 0, "median": 0.5, "95 %": 0.95, "most": 1}


def report(run: RunConfig, packs: int, total: int) -> dict[str, Any]:
    """Everything that is printed. Raises a ValueError that names what is wrong with the config or the data."""
    config, tokenizer = load_model(run.init, run.model)
    source = RecordSource(run.data)
    index = length_index(source, tokenizer, config, run.broken, run.draws)
    everything = make_documents(index, turns=run.turns)
    subsets = subset_documents(source, everything)
    stream = Stream(everything, subsets, run.mixture, run.dropout, run.seed)
    facts = {
        "data": run.data,
        "records": len(index),
        "broken": len(index.broken),
        "turns": run.turns,
        "documents": {name: len(numbers) for name, numbers in subsets.items()},
        "shares": stream.shares,
        "lengths": lengths(everything),
        "budgets": dataclasses.asdict(run.budgets),
    }
    facts |= now(run, index, source, packs)
    try:
        proposals = propose_budgets(everything, stream, total or run.budgets.total)
    except PackingError as fault:
        return facts | {"no_proposal": str(fault), "proposals": []}
    return facts | {"proposals": [shown(proposal) for proposal in proposals]}


def lengths(documents: Documents) -> dict[str, dict[str, float]]:
    """Tokens of a document by stream, nothing dropped: quantiles and mean."""
    totals = documents.totals()
    rows = {}
    for name, own in zip((*STREAMS, "all"), (*totals.T, totals.sum(axis=1))):
        rows[name] = {label: float(np.quantile(own, share)) for label, share in QUANTILES.items()}
        rows[name]["mean"] = float(own.mean())
    return rows


def now(run: RunConfig, index: LengthIndex, source: RecordSource, packs: int) -> dict[str, Any]:
    """What the run's own budgets make of the data; a record that they refuse is said, not raised."""
    try:
        documents = make_documents(index, run.budgets, run.turns, run.too_long)
    except PackingError as fault:
        return {"refused": str(fault)}
    packer = Packer(documents, subset_documents(source, documents), run.budgets, run.dropout, run.seed, run.mixture)
    packer.seek(packs)
    used = np.array([packer.used(number) for number in range(packs)])
    return {
        "cut": len(documents.cut),
        "packs": packs,
        "documents_per_pack": float(np.mean([len(packer.documents(number)) for number in range(packs)])),
        "fill": packer.fill(range(packs)),
        "used": float(used.sum() / (packs * run.budgets.total)),
    }


def shown(proposal: Proposal) -> dict[str, Any]:
    """A proposal as plain data."""
    return {
        "budgets": dataclasses.asdict(proposal.budgets),
        "fill": proposal.fill,
        "used": proposal.used,
        "documents_per_pack": proposal.documents,
    }


def table(facts: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    subsets = ", ".join(f"{name or 'all'} {count:,} (share {facts['shares'].get(name, 0):.3f})"
                        for name, count in facts["documents"].items())  # fmt: skip
    lines = [f"{facts['data']}: {facts['records']:,} records, {facts['broken']} broken",
             f"{NAMES[facts['turns']]}: {subsets}", "",
             f"{'tokens of a document':<22}" + "".join(f"{label:>9}" for label in (*QUANTILES, "mean"))]  # fmt: skip
    for name, row in facts["lengths"].items():
        lines.append(f"{name:<22}" + "".join(f"{row[label]:>9,.0f}" for label in (*QUANTILES, "mean")))
    fills = "".join(f"{name:>8}" for name in (*STREAMS, "all"))
    lines += ["", f"{'budgets: text, vit, vae':<26}{'slots':>7}{fills}{'documents':>11}"]
    if "refused" in facts:
        lines.append(f"{', '.join(map(str, facts['budgets'].values())):<26} refused: {facts['refused']}")
    else:
        lines.append(row_of(facts) + f"   these now, {facts['packs']} packs, {facts['cut']} records cut")
    lines += [row_of(proposal) for proposal in facts["proposals"]]
    return lines + ([facts["no_proposal"]] if "no_proposal" in facts else [])


def row_of(facts: dict[str, Any]) -> str:
    """Budgets, slots, fill in percent, documents a pack."""
    sizes = list(facts["budgets"].values())
    fill = "".join(f"{100 * share:>7.1f}%" for share in (*facts["fill"].values(), facts["used"]))
    return f"{', '.join(map(str, sizes)):<26}{sum(sizes):>7}{fill}{facts['documents_per_pack']:>11.2f}"


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)
    try:
        values = CONFIG.value.to_dict() | ({} if DATA.value is None else {"data": DATA.value})
        facts = report(resolved(read_run_config(values)), PACKS.value, TOTAL.value)
        print(json.dumps(facts, indent=1) if JSON.value else "\n".join(table(facts)))
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

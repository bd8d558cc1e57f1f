"""The fill of packs with a data set: fill of each stream, lengths of documents, and better budgets."""

import dataclasses
from typing import Any

import numpy as np

from pdgen.config import ModelConfig
from pdgen.data.budgets import propose_budgets
from pdgen.data.documents import Documents, PackingError, make_documents
from pdgen.data.lengths import LengthIndex, load_length_index
from pdgen.data.loader import LoaderConfig, group_by_subset
from pdgen.data.packing import Packer
from pdgen.data.records import RecordSource
from pdgen.data.stream import Stream
from pdgen.sequence.layout import STREAMS
from pdgen.sequence.tokenizer import Tokenizer

_TURNS = {"whole": "whole trajectories", "single": "single turns", "pairs": "pairs of trajectories"}
_QUANTILES = {"least": 0, "median": 0.5, "95 %": 0.95, "most": 1}


def measure_fill(
    source: RecordSource, tokenizer: Tokenizer, model: ModelConfig, config: LoaderConfig, packs: int, total: int = 0
) -> dict[str, Any]:
    """Plan packs of a data set and measure their fill.

    Args:
      source, tokenizer, model, config: see ``loader.Batches``.
      packs: number of packs to plan, at least 1.
      total: maximum tokens of a proposed pack; 0: those of ``config``.

    Returns:
      Plain data for ``format_fill`` or JSON. "fill" and "used" are shares from 0 to 1; lengths are in tokens.

    Raises:
      ValueError: the config or the data set cannot be used; the message is one line with the reason.
    """
    index = load_length_index(source, tokenizer, model, config.broken, config.draws)
    everything = make_documents(index, turns=config.turns)
    subsets = group_by_subset(source, everything)
    stream = Stream(everything, subsets, config.mixture, config.dropout, config.seed)
    facts = {
        "data": str(source.folder),
        "records": len(index),
        "broken": len(index.broken),
        "turns": config.turns,
        "documents": {name: len(numbers) for name, numbers in subsets.items()},
        "shares": stream.shares,
        "lengths": _summarise_lengths(everything),
        "budgets": dataclasses.asdict(config.budgets),
    }
    facts |= _measure_current(config, index, source, packs)
    try:
        proposals = propose_budgets(everything, stream, total or config.budgets.total)
    except PackingError as fault:
        return facts | {"no_proposal": str(fault), "proposals": []}
    return facts | {"proposals": [dataclasses.asdict(proposal) for proposal in proposals]}


def _summarise_lengths(documents: Documents) -> dict[str, dict[str, float]]:
    """Compute quantiles and mean of the tokens of a document by stream, before condition dropout."""
    totals = documents.count_tokens()
    rows = {}
    for name, own in zip((*STREAMS, "all"), (*totals.T, totals.sum(axis=1))):
        rows[name] = {label: float(np.quantile(own, share)) for label, share in _QUANTILES.items()}
        rows[name]["mean"] = float(own.mean())
    return rows


def _measure_current(config: LoaderConfig, index: LengthIndex, source: RecordSource, packs: int) -> dict[str, Any]:
    """Measure the fill with the config's own budgets, or return the reason under "refused" if a record does not fit."""
    try:
        documents = make_documents(index, config.budgets, config.turns, config.too_long)
    except PackingError as fault:
        return {"refused": str(fault)}
    packer = Packer(
        documents, group_by_subset(source, documents), config.budgets, config.dropout, config.seed, config.mixture
    )
    packer.seek(packs)
    used = np.array([packer.count_used(number) for number in range(packs)])
    return {
        "cut": len(documents.cut),
        "packs": packs,
        "documents_per_pack": float(np.mean([len(packer.choose_documents(number)) for number in range(packs)])),
        "fill": packer.measure_fill(range(packs)),
        "used": float(used.sum() / (packs * config.budgets.total)),
    }


def format_fill(facts: dict[str, Any]) -> list[str]:
    """Format the facts of ``measure_fill`` as lines of text."""
    subsets = ", ".join(
        f"{name or 'all'} {count:,} (share {facts['shares'].get(name, 0):.3f})"
        for name, count in facts["documents"].items()
    )
    lines = [
        f"{facts['data']}: {facts['records']:,} records, {facts['broken']} broken",
        f"{_TURNS[facts['turns']]}: {subsets}",
        "",
        f"{'tokens of a document':<22}" + "".join(f"{label:>9}" for label in (*_QUANTILES, "mean")),
    ]
    for name, row in facts["lengths"].items():
        lines.append(f"{name:<22}" + "".join(f"{row[label]:>9,.0f}" for label in (*_QUANTILES, "mean")))
    fills = "".join(f"{name:>8}" for name in (*STREAMS, "all"))
    lines += ["", f"{'budgets: text, vit, vae':<26}{'slots':>7}{fills}{'documents':>11}"]
    if "refused" in facts:
        lines.append(f"{', '.join(map(str, facts['budgets'].values())):<26} refused: {facts['refused']}")
    else:
        lines.append(_format_row(facts) + f"   these now, {facts['packs']} packs, {facts['cut']} records cut")
    lines += [_format_row(proposal) for proposal in facts["proposals"]]
    return lines + ([facts["no_proposal"]] if "no_proposal" in facts else [])


def _format_row(facts: dict[str, Any]) -> str:
    """Format budgets, slots, fill in percent and documents per pack."""
    sizes = list(facts["budgets"].values())
    fill = "".join(f"{100 * share:>7.1f}%" for share in (*facts["fill"].values(), facts["used"]))
    return f"{', '.join(map(str, sizes)):<26}{sum(sizes):>7}{fill}{facts['documents_per_pack']:>11.2f}"

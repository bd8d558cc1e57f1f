"""Ablations: a sweep over training data, each cell a data set, training runs and their evaluation, ending in tables.

A sweep runs in stages (``pdgen.train.release.stages``) and may be stopped and started again.

    OUTPUT/<cell>/data                 build_data.py
    OUTPUT/<cell>/<seed>/run           train.py
    OUTPUT/<cell>/<seed>/scores        evaluate.py --benchmark=shapes
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from flax import traverse_util

from pdgen.evaluate import published
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.scoring import RESULTS, by_task, read_results
from pdgen.evaluate.statistics import difference, estimate, spread
from pdgen.evaluate.tables import Table
from pdgen.train.release.stages import Stage

TABLES: Mapping[str, published.PublishedTable] = {
    "rewriting": published.REWRITING,
    "critiques": published.CRITIQUES,
    "subsets": published.SUBSETS,
}


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One data set of the sweep.

    Attributes:
      data: keys of the data config and their values in this cell.
      plans_from: cell whose model, of the first seed, writes the plans of the conflict subset; "" makes wrong plans
        from the scene graph.
    """

    data: dict[str, Any] = {}
    plans_from: str = ""


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is compared.

    Attributes:
      data, train: config files of build_data.py and train.py.
      scale: factor on the numbers of samples.
      seeds: of training; each is a run of its own.
      train_keys: keys of the training config, the same in all cells.
      evaluate_flags: further flags of evaluate.py.
      cells: by name.
      tables: by name of ``TABLES``, the cell of each row.

    Raises:
      ValueError: a name is unknown, or cells wait for each other.
    """

    data: str
    train: str
    cells: dict[str, Cell]
    tables: dict[str, dict[str, str]]
    scale: float = 1.0
    seeds: tuple[int, ...] = (0,)
    train_keys: dict[str, Any] = {}
    evaluate_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one")
        for table, rows in self.tables.items():
            if table not in TABLES:
                raise ValueError(f"tables: {table!r} is none of {', '.join(TABLES)}")
            if unknown := sorted(set(rows.values()) - set(self.cells)):
                raise ValueError(f"tables.{table}: {unknown[0]!r} is no cell; there are {', '.join(self.cells)}")
        for name, cell in self.cells.items():
            if cell.plans_from and cell.plans_from not in self.cells:
                raise ValueError(f"cells.{name}.plans_from: {cell.plans_from!r} is no cell")
        in_order(self, list(self.cells))


def in_order(sweep: Sweep, names: Sequence[str]) -> list[str]:
    """The cells and those that they need, each after what it needs. Raises ValueError where cells wait in a circle."""
    ordered: list[str] = []

    def visit(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            raise ValueError(f"cells.{name}.plans_from: {' needs '.join((*waiting, name))}")
        if name not in ordered:
            if before := sweep.cells[name].plans_from:
                visit(before, (*waiting, name))
            ordered.append(name)

    for name in names:
        visit(name, ())
    return ordered


def stages(sweep: Sweep, names: Sequence[str], output: pathlib.Path) -> Iterator[Stage]:
    """The commands of some cells, in order: all data and runs that later ones need come first."""
    for name in in_order(sweep, names):
        cell, folder = sweep.cells[name], output / name
        keys = dict(cell.data)
        if cell.plans_from:
            writer = output / cell.plans_from / str(sweep.seeds[0]) / "run"
            keys["conflict"] = keys.get("conflict", {}) | {"variant": "self", "checkpoint": str(writer)}
        build = [f"--config={sweep.data}", f"--output={folder / 'data'}", f"--scale={sweep.scale}", *_overrides(keys)]
        yield Stage("build_data", folder, tuple(build))
        for seed in sweep.seeds:
            own = folder / str(seed)
            keys = {**sweep.train_keys, "data": str(folder / "data"), "seed": seed}
            yield Stage("train", own, (f"--config={sweep.train}", f"--workdir={own / 'run'}", *_overrides(keys)))
            flags = (
                "--benchmark=shapes",
                f"--checkpoint={own / 'run'}",
                f"--output={own / 'scores'}",
                f"--training_data={folder / 'data'}",
            )
            yield Stage("evaluate", own, (*flags, *sweep.evaluate_flags))


def _overrides(keys: Mapping[str, Any]) -> Iterator[str]:
    return (f"--config.{key}={value}" for key, value in traverse_util.flatten_dict(keys, sep=".").items())


def table(sweep: Sweep, name: str, output: pathlib.Path) -> Table:
    """One of ``TABLES`` from the finished cells: each row's scores with intervals, the published number beside.

    A prompt's score is its mean over images. The intervals are over prompts and seeds, crossed: of the score, and of
    what the row scores more than the first one on the same prompts, seed by seed. "over seeds" is the standard
    deviation over the seeds' runs.

    Raises:
      EvaluationError: a cell's results or summary are missing or broken.
    """
    paper = TABLES[name]
    order = list(paper.rows)  # what the paper has not comes first
    named = sorted(sweep.tables[name].items(), key=lambda item: order.index(item[0]) if item[0] in order else -1)
    rows, leaks = [], {}
    base: dict[str, Any] = {}  # the first row's scores by task
    for row, cell in named:
        folders = [output / cell / str(seed) / "scores" for seed in sweep.seeds]
        leaks |= dict.fromkeys(line for folder in folders for line in _findings(folder))
        runs = [by_task(read_results(folder / RESULTS)) for folder in folders]
        for column, stated in zip(paper.columns, paper.rows.get(row, (None,) * len(paper.columns)), strict=True):
            scores = np.stack([run[column].mean(1) for run in runs])  # [seeds, prompts]
            ours, first = estimate([scores]), base.setdefault(column, scores)
            more = difference([first], [scores]) if row != named[0][0] else None
            apart = spread(scores.mean(1)).deviation
            gained = (more.value, more.low, more.high) if more else (None,) * 3
            rows.append((row, column, ours.value, ours.low, ours.high, apart, *gained, ours.n, stated))
    return Table(
        title=f"{paper.title.partition(': ')[2]} (as the paper's {paper.title.partition(':')[0]}), shapes world",
        columns=(
            "training data",
            "task",
            "score",
            "low",
            "high",
            "over seeds",
            "difference",
            "difference low",
            "difference high",
            "prompts",
            "published",
        ),
        rows=rows,
        note="\n".join(
            [
                f"Difference: to {named[0][0]!r}, on the same prompts, seed by seed. Trainings of each row: "
                f'{len(sweep.seeds)}. "Over seeds": a standard deviation.',
                f"Published: on GenEval, {published.SOURCE}; comparable in direction alone.",
                *leaks,
            ]
        ),
        drawn="prompt" if len(sweep.seeds) == 1 else "prompt and training seed",
    )


def _findings(folder: pathlib.Path) -> list[str]:
    """What stands at the head of an evaluation's report."""
    path = folder / "summary.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["findings"])
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise EvaluationError(f"{path}: no summary of an evaluation ({fault}); evaluate again") from None

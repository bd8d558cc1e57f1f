"""Ablations: a sweep over training data. Each cell has a data set, training runs and evaluations. The result is tables.

A sweep runs in stages (``pdgen.train.release.stages``). It can be stopped and started again.

    OUTPUT/<cell>/data                 build_data.py, unless the cell uses another's
    OUTPUT/<cell>/<seed>/run           train.py
    OUTPUT/<cell>/<seed>/scores        evaluate.py --benchmark=shapes
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from flax import traverse_util

from pdgen.evaluate import published
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval.scoring import RESULTS, group_by_task, read_results
from pdgen.evaluate.statistics import compute_spread, estimate, estimate_difference
from pdgen.evaluate.tables import Table, to_cells
from pdgen.json_text import load_json
from pdgen.train.release.stages import Stage

TABLES: Mapping[str, published.PublishedTable] = {
    "rewriting": published.REWRITING,
    "critiques": published.CRITIQUES,
    "subsets": published.SUBSETS,
}


class SweepCell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training of the sweep.

    Attributes:
      data: Keys of the data config and their values in this cell.
      data_from: The cell whose data set this one uses, perhaps with another mixture. "": it has its own.
      train: Keys of the training config and their values in this cell.
      plans_from: The cell whose model, trained with the first seed, writes the plans of the conflict subset. "": wrong
        plans are made from the scene graph.
      init_from: The cell whose model, trained with the same seed, the training continues. "": the training config's
        ``init``.
    """

    data: dict[str, Any] = {}
    data_from: str = ""
    train: dict[str, Any] = {}
    plans_from: str = ""
    init_from: str = ""

    def get_sources(self) -> dict[str, str]:
        """Return the other cells that this one needs, by the name of the field."""
        sources = {"data_from": self.data_from, "plans_from": self.plans_from, "init_from": self.init_from}
        return {field: name for field, name in sources.items() if name}


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A comparison of training data.

    Attributes:
      data: Config file of build_data.py.
      train: Config file of train.py.
      cells: The cells by name.
      tables: By name of ``TABLES``, the cell of each row.
      scale: Factor on the numbers of samples.
      seeds: Training seeds. Each is a run of its own.
      train_keys: Keys of the training config, the same in all cells.
      evaluate_flags: Additional flags of evaluate.py.

    Raises:
      ValueError: A name is unknown, or cells depend on each other in a circle.
    """

    data: str
    train: str
    cells: dict[str, SweepCell]
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
                raise ValueError(f"tables: {table!r} is not one of {', '.join(TABLES)}")
            if unknown := sorted(set(rows.values()) - set(self.cells)):
                raise ValueError(f"tables.{table}: {unknown[0]!r} is not a cell; choose one of {', '.join(self.cells)}")
        for name, cell in self.cells.items():
            for field, source in cell.get_sources().items():
                if source not in self.cells:
                    raise ValueError(f"cells.{name}.{field}: {source!r} is not a cell")
            if cell.data_from and (cell.data or cell.plans_from or self.cells[cell.data_from].data_from):
                raise ValueError(
                    f"cells.{name}.data_from: {cell.data_from!r} must have its own data, and {name!r} none"
                )
        order_cells(self, list(self.cells))


def order_cells(sweep: Sweep, names: Sequence[str]) -> list[str]:
    """Return the cells and their dependencies, each after its dependencies.

    Raises:
      ValueError: Cells depend on each other in a circle.
    """
    ordered: list[str] = []

    def visit(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            raise ValueError(f"cells.{name}: {' needs '.join((*waiting, name))}")
        if name not in ordered:
            for before in sweep.cells[name].get_sources().values():
                visit(before, (*waiting, name))
            ordered.append(name)

    for name in names:
        visit(name, ())
    return ordered


def make_stages(sweep: Sweep, names: Sequence[str], output: pathlib.Path) -> Iterator[Stage]:
    """Yield the commands of some cells in order, after the data and runs that they depend on."""
    for name in order_cells(sweep, names):
        cell, folder = sweep.cells[name], output / name
        data = output / (cell.data_from or name) / "data"
        if not cell.data_from:
            yield _make_data_stage(sweep, cell, folder, output)
        for seed in sweep.seeds:
            own = folder / str(seed)
            init = {"init": str(output / cell.init_from / str(seed) / "run")} if cell.init_from else {}
            given = {"data": str(data), "seed": seed, **init}
            keys = _make_overrides(sweep.train_keys, cell.train, given)
            needs = (data.with_name("build_data.done"), *_marks_of_run(output, cell.init_from, seed))
            yield Stage("train", own, (f"--config={sweep.train}", f"--workdir={own / 'run'}", *keys), needs)
            flags = (
                "--benchmark=shapes",
                f"--checkpoint={own / 'run'}",
                f"--output={own / 'scores'}",
                f"--training_data={data}",
            )
            yield Stage("evaluate", own, (*flags, *sweep.evaluate_flags), _marks_of_run(output, name, seed))


def _make_data_stage(sweep: Sweep, cell: SweepCell, folder: pathlib.Path, output: pathlib.Path) -> Stage:
    """Return the command that builds a cell's own data set."""
    keys = dict(cell.data)
    if cell.plans_from:
        writer = output / cell.plans_from / str(sweep.seeds[0]) / "run"
        keys["conflict"] = keys.get("conflict", {}) | {"variant": "self", "checkpoint": str(writer)}
    flags = (f"--config={sweep.data}", f"--output={folder / 'data'}", f"--scale={sweep.scale}", *_make_overrides(keys))
    return Stage("build_data", folder, flags, _marks_of_run(output, cell.plans_from, sweep.seeds[0]))


def _marks_of_run(output: pathlib.Path, cell: str, seed: int) -> tuple[pathlib.Path, ...]:
    """Return the mark of a cell's training, or none without a cell."""
    return (output / cell / str(seed) / "train.done",) if cell else ()


def _make_overrides(*settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the flags for settings. Later ones replace earlier ones, key by key."""
    merged = {key: value for keys in settings for key, value in traverse_util.flatten_dict(keys, sep=".").items()}
    return (f"--config.{key}={value}" for key, value in merged.items())


def make_table(sweep: Sweep, name: str, output: pathlib.Path) -> Table:
    """Make one of ``TABLES`` from finished cells: each row's scores with intervals, and the published score.

    A prompt's score is its mean over images. The intervals resample prompts and seeds, crossed. They are given for the
    score, and for the difference to the first row on the same prompts, seed by seed. "over seeds" is the standard
    deviation over the seeds' runs.

    Raises:
      EvaluationError: A cell's results or summary are missing or broken.
    """
    paper = TABLES[name]
    order = list(paper.rows)  # rows that the paper lacks come first
    named = sorted(sweep.tables[name].items(), key=lambda item: order.index(item[0]) if item[0] in order else -1)
    rows, leaks = [], {}
    base: dict[str, Any] = {}  # the first row's scores by task
    for row, cell in named:
        folders = [output / cell / str(seed) / "scores" for seed in sweep.seeds]
        leaks |= dict.fromkeys(line for folder in folders for line in _read_findings(folder))
        runs = [group_by_task(read_results(folder / RESULTS)) for folder in folders]
        for column, stated in zip(paper.columns, paper.rows.get(row, (None,) * len(paper.columns)), strict=True):
            scores = np.stack([run[column].mean(1) for run in runs])  # [seeds, prompts]
            ours, first = estimate([scores]), base.setdefault(column, scores)
            gain = estimate_difference([first], [scores]) if row != named[0][0] else None
            over_seeds = compute_spread(scores.mean(1)).deviation
            rows.append((row, column, *to_cells(ours)[:3], over_seeds, *to_cells(gain)[:3], ours.n, stated))
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
                f"Difference: to {named[0][0]!r}, on the same prompts, seed by seed. Training runs of each row: "
                f'{len(sweep.seeds)}. "Over seeds": a standard deviation.',
                f"Published: on GenEval, {published.SOURCE}; comparable only in direction.",
                *leaks,
            ]
        ),
        drawn="prompt" if len(sweep.seeds) == 1 else "prompt and training seed",
    )


def _read_findings(folder: pathlib.Path) -> list[str]:
    """Read the findings at the head of an evaluation's report."""
    path = folder / "summary.json"
    try:
        return list(load_json(path.read_bytes())["findings"])
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise EvaluationError(f"{path}: no summary of an evaluation ({fault}); evaluate again") from None

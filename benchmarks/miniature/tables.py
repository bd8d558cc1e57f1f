"""The tables of ``docs/miniature.md``, from the numbers of ``benchmarks.miniature.results.collect``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.miniature.results import COSTS, Numbers
from pdgen.evaluate import published
from pdgen.evaluate.process.tables import MEASURES
from pdgen.evaluate.tables import Cell, Table, format_markdown

THINKS = ("process", "stepwise_best_of_n", "planner", "inspector")  # strategies whose trajectories hold texts
_NONE = {"value": None, "low": None, "high": None}
_PAPER = "paper, GenEval: "


def format_tables(rows: Numbers) -> str:
    """Format all tables, each with its title and note."""
    made = (
        make_strategy_table(rows),
        make_task_table(rows),
        make_difference_table(rows),
        make_object_table(rows),
        make_process_table(rows),
        make_complexity_table(rows),
    )
    parts = [part for table in made for part in (f"## {table.title}", format_markdown(table), table.note) if part]
    return "\n\n".join(parts)


def make_strategy_table(rows: Numbers) -> Table:
    """Return the paper's Table 4: cost and score of each row."""
    lines = []
    for row in rows.values():
        costs = [row["measures"][name]["value"] for name in (*COSTS, "images")]
        seeds = ", ".join(f"{score:.2f}" for score in row["by_seed"])
        apart = [cell for key in ("than_first", "than_own") for cell in _get_interval(row.get(key, {}), "overall")]
        lines.append((row["says"], *costs, *_get_interval(row["scores"], "overall"), seeds, *apart, row["paper"]))
    first, more, own = next(iter(rows.values()))["says"], "more than the base", "more than the model's single pass"
    return Table(
        "What an image costs and scores",
        ("way", *COSTS, "images", *_add_bounds(["score"]), "by training seed", *_add_bounds([more, own]), "paper"),
        lines,
        "Network evaluations of an image count every guidance branch and all that was drawn for it, chosen or not; "
        "images are those of the trajectory. Score: the mean of the tasks. Intervals: 95 %, bootstrap over prompts and "
        "training seeds, differences on the same prompts and seeds; the base was trained once, so its rows' are over "
        f'prompts alone. "{more.capitalize()}": than {first}. Planner, inspector and verifier from outside are the '
        "exact ones of shapes world, which do not err. Paper: GenEval with BAGEL-7B, comparable only in direction.",
    )


def _get_interval(found: Mapping[str, Mapping[str, Any]], name: str) -> tuple[Cell, Cell, Cell]:
    one = found.get(name, _NONE)
    return one["value"], one["low"], one["high"]


def _add_bounds(names: Iterable[str]) -> list[str]:
    return [column for name in names for column in (name, f"{name} low", f"{name} high")]


def _make_table(title: str, rows: Iterable[Mapping[str, Any]], key: str, names: Sequence[str], note: str = "") -> Table:
    """Return a table with a line for each row and a column for each name."""
    lines = [(row["says"], *[cell for name in names for cell in _get_interval(row[key], name)]) for row in rows]
    return Table(title, ("way", *_add_bounds(names)), lines, note)


def make_task_table(rows: Numbers) -> Table:
    """Return the paper's Table 2, for all rows."""
    names = list(next(iter(rows.values()))["scores"])
    made = _make_table("Scores by task", rows.values(), "scores", names)
    for says in ("BAGEL-7B", "BAGEL-7B, process-driven"):
        scores = dict(zip(published.GENEVAL.columns, published.GENEVAL.rows[says]))
        cells = [cell for name in names for cell in (scores.get(name), None, None)]
        made.rows.append((f"{_PAPER}{says}", *cells))
    return made


def make_difference_table(rows: Numbers) -> Table:
    """Return the differences to the first row, by task."""
    first, *others = rows.values()
    return _make_table(f"Differences to {first['says']}", others, "than_first", list(first["scores"]))


def make_object_table(rows: Numbers) -> Table:
    """Return scores by the number of objects that a prompt asks for."""
    first = next(iter(rows.values()))
    prompts = ", ".join(f"{one['prompts']} for {count}" for count, one in first["objects"].items())
    return _make_table(
        "Scores by number of objects", rows.values(), "objects", list(first["objects"]), f"Prompts: {prompts}."
    )


def make_process_table(rows: Numbers) -> Table:
    """Return the measures of plans, inspections and refinements, with a column for each row that has some."""
    ways = [row for row in rows.values() if row["strategy"] in THINKS]
    lines = []
    for name in MEASURES:
        if any(name in row["measures"] for row in ways):
            lines.append((name, *[cell for row in ways for cell in _get_interval(row["measures"], name)]))
    return Table(
        "What the stages are worth",
        ("measure", *_add_bounds(row["says"] for row in ways)),
        lines,
        "Means over all trajectories, judged by the exact judge of shapes world. Precision: share of `<refine>` where "
        "the judge finds a fault; recall: share of the judge's faults with `<refine>`.",
    )


def make_complexity_table(rows: Numbers) -> Table:
    """Return images drawn, and the correct share of what was asked for, by the kinds of things asked for."""
    first = next(iter(rows.values()))
    ways = [row for row in rows.values() if row["strategy"] in THINKS[:3]]
    columns = [f"images, {row['says']}" for row in ways] + [f"share right, {row['says']}" for row in (first, *ways)]
    lines = []
    for kinds, one in first["share"].items():
        cells = [cell for row in ways for cell in _get_interval(row["length"], kinds)]
        cells += [cell for row in (first, *ways) for cell in _get_interval(row["share"], kinds)]
        lines.append((kinds, one["prompts"], *cells))
    return Table(
        "Length and share right by kinds of things asked for",
        ("kinds", "prompts", *_add_bounds(columns)),
        lines,
        "Share right: the verifier's score of the last image, the mean share of what the prompt asks for.",
    )

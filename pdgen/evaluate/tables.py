"""Tables as plain data, and as text, Markdown, CSV and JSON."""

import csv
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from pdgen.evaluate.statistics import LEVEL, Estimate
from pdgen.files import new_file

Cell = str | float | int | None


class Table(msgspec.Struct, frozen=True):
    """A table of scores. Every row gives its number of prompts.

    Attributes:
      columns: One name for each cell of a row.
      rows: The cells. None is an unknown value.
      note: What a reader must know to read the table.
      drawn: What the intervals resample.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    note: str = ""
    drawn: Literal["prompt", "prompt and training seed"] = "prompt"

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"table {self.title!r}: {wrong[0]} is no row of {self.columns}")


def to_cells(estimate: Estimate | None) -> tuple[float | None, float | None, float | None, int | None]:
    """Return the cells value, low, high, n of an estimate; None for each if it is unknown."""
    return (estimate.value, estimate.low, estimate.high, estimate.n) if estimate else (None, None, None, None)


def fold_intervals(table: Table, format_cell: Callable[[Cell], str]) -> tuple[list[str], list[list[str]]]:
    """Return columns and formatted cells for a reader, with a value and its interval in one cell."""
    columns, rows, names = [], [[] for _ in table.rows], [*table.columns, "", ""]
    at = 0  # the column; a value with an interval takes three
    while at < len(table.columns):
        name = names[at]
        has_interval = names[at + 1] in ("low", f"{name} low") and names[at + 2] in ("high", f"{name} high")
        columns.append(name)
        for whole, row in zip(table.rows, rows):
            value, *ends = map(format_cell, whole[at : at + 3])
            row.append(f"{value} [{ends[0]}, {ends[1]}]" if has_interval and whole[at + 1] is not None else value)
        at += 3 if has_interval else 1
    return columns, rows


def format_text(table: Table) -> str:
    """Format a table for a terminal: four decimals, "-" for None, intervals in brackets."""
    columns, rows = fold_intervals(table, _format_cell)
    cells = [columns, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in cells]
    title = f"{table.title} (intervals: {LEVEL:.0%}, bootstrap by {table.drawn})"
    return "\n".join([title, *lines, *([table.note] if table.note else [])])


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)


def format_markdown(table: Table) -> str:
    """Format a table for a document, without title and note: two decimals, none from 10; an empty cell for None."""
    columns, rows = fold_intervals(table, _format_short)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _format_short(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.2f}" if abs(cell) < 10 else f"{cell:,.0f}"
    return "" if cell is None else str(cell)


def format_csv(table: Table) -> str:
    """Format a table as CSV with a line of column names: full precision, an empty cell for None."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue()


def format_json(tables: Sequence[Table]) -> str:
    """Format tables as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(list(tables)).decode(), indent=1) + "\n"


def write_files(folder: pathlib.Path, texts: Mapping[str, str]) -> None:
    """Write texts by file name into a folder."""
    for name, text in texts.items():
        with new_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")

"""The page and the files of an evaluation or a comparison: tables, published scores, and images."""

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import to_builtins

from pdgen.evaluate.gallery import TRAJECTORIES, ImageGallery, make_trajectory_entries
from pdgen.evaluate.published import GENEVAL, SOURCE, STRATEGIES, WISE, PublishedTable
from pdgen.evaluate.statistics import LEVEL
from pdgen.evaluate.tables import Cell, Table, fold_intervals, format_csv, write_files
from pdgen.files import is_plain_name
from pdgen.json_text import decode_json
from pdgen.report.page import render, render_trajectories
from pdgen.train.monitor.curves import COLOURS, Point, draw_scatter

PUBLISHED: Mapping[str, tuple[PublishedTable, ...]] = {
    "geneval": (GENEVAL, STRATEGIES),
    "shapes": (GENEVAL, STRATEGIES),
    "wise": (WISE,),
    "abilities": (),
}


class RunCost(NamedTuple):
    """A run's network evaluations for an image, and its total score with the bounds of its interval, if known."""

    name: str
    evaluations: float
    score: float
    low: float | None
    high: float | None


def render_evaluation(
    title: str,
    findings: Sequence[str],
    facts: Mapping[str, Any],
    tables: Sequence[Table],
    paper: Sequence[PublishedTable] = (),
    shown: Sequence[ImageGallery] = (),
    costs: Sequence[RunCost] = (),
) -> str:
    """Render a self-contained HTML page.

    Args:
      findings: What a reader must know before any number, such as leaks. They come first.
      facts: What was evaluated and how.
      paper: Published scores, shown separately with their source.
      shown: Images with detections or judgements.
      costs: Costs of at least two runs, for a plot.
    """
    points = [Point(one.evaluations, one.score, one.low, one.high, n) for n, one in enumerate(costs)]
    return render(
        "evaluation.html",
        title=title,
        findings=findings,
        facts=facts,
        level=f"{LEVEL:.0%}",
        tables=[_format_table(table.title, *fold_intervals(table, _format_cell), table.note) for table in tables],
        source=SOURCE,
        paper=[_format_table(one.title, ("", *one.columns), [(n, *r) for n, r in one.rows.items()]) for one in paper],
        galleries=shown,
        marked=any(one.marks for gallery in shown for one in gallery.images),
        trajectories=TRAJECTORIES,
        costs=costs,
        colours=COLOURS,
        plot=draw_scatter(points, "network evaluations per image", "score") if len(costs) > 1 else "",
    )


def _format_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> dict[str, Any]:
    # A no-break space keeps an interval on one line.
    cells = [[_format_cell(cell).replace(", ", ",\N{NO-BREAK SPACE}") for cell in row] for row in rows]
    return {"title": title, "columns": columns, "rows": cells, "note": note}


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


class _Summary(msgspec.Struct):
    """The part of an earlier ``summary.json`` that says which files were written with it."""

    tables: list[Table]


def write_summary(output: pathlib.Path, facts: Mapping[str, Any], tables: Sequence[Table]) -> None:
    """Write ``summary.json`` and a CSV file for every table. CSV files of an earlier evaluation are removed."""
    files = {f"{table.title.lower()}.csv": format_csv(table) for table in tables}
    with contextlib.suppress(OSError, ValueError):
        for table in decode_json((output / "summary.json").read_bytes(), _Summary).tables:
            name = f"{table.title.lower()}.csv"
            if name not in files and is_plain_name(name):
                (output / name).unlink(missing_ok=True)
    summary = json.dumps({**facts, "tables": to_builtins(tables)}, indent=1) + "\n"
    write_files(output, {"summary.json": summary, **files})


def write_pages(
    output: pathlib.Path,
    facts: Mapping[str, Any],
    source: Mapping[str, Any],
    tables: Sequence[Table],
    shown: Sequence[ImageGallery],
) -> None:
    """Write ``index.html``, and a page of the shown images' trajectories if they have any.

    Args:
      output: The folder of the evaluation.
      facts: The facts that ``write_summary`` wrote, with "benchmark" and "findings".
      source: The origin of the images, by label.
      shown: Images with detections or judgements.
    """
    benchmark = facts["benchmark"]
    labels = {name: value for name, value in facts.items() if isinstance(value, str) and name != "prompts"}
    labels |= {"images per prompt": str(facts["samples"])} if "samples" in facts else {}
    for name, value in facts.get("judge", {}).items():
        words = (f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else [str(value)]
        labels[f"judge's {name}"] = ", ".join(words)
    title, paper = f"Scores on {benchmark}", PUBLISHED[benchmark]
    pages = {"index.html": render_evaluation(title, facts["findings"], {**labels, **source}, tables, paper, shown)}
    if drawn := make_trajectory_entries(shown, output, output / "trajectories"):
        pages[TRAJECTORIES] = render_trajectories(drawn, f"Trajectories of {output.resolve().name}")
    else:
        (output / TRAJECTORIES).unlink(missing_ok=True)
    write_files(output, pages)

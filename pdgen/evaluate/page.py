"""The page and the files of an evaluation, or of several compared: tables, published numbers apart, and images."""

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import to_builtins

from pdgen.evaluate.gallery import TRAJECTORIES, Gallery, entries
from pdgen.evaluate.published import GENEVAL, SOURCE, STRATEGIES, WISE, PublishedTable
from pdgen.evaluate.statistics import LEVEL
from pdgen.evaluate.tables import Cell, Table, as_csv, folded
from pdgen.files import new_file
from pdgen.report.page import render, render_trajectories
from pdgen.train.monitor.curves import COLOURS, Point, draw_scatter

PUBLISHED: Mapping[str, tuple[PublishedTable, ...]] = {
    "geneval": (GENEVAL, STRATEGIES),
    "shapes": (GENEVAL, STRATEGIES),
    "wise": (WISE,),
    "abilities": (),
}


class Cost(NamedTuple):
    """What a run cost and what it is worth: a name, evaluations of the network for an image, score and interval."""

    name: str
    evaluations: float
    score: float
    low: float | None
    high: float | None


def evaluation_page(
    title: str,
    findings: Sequence[str],
    facts: Mapping[str, Any],
    tables: Sequence[Table],
    paper: Sequence[PublishedTable] = (),
    shown: Sequence[Gallery] = (),
    costs: Sequence[Cost] = (),
) -> str:
    """An HTML page without network.

    Args:
      findings: what a reader must know before any number, such as leaks; at the head.
      facts: what was evaluated and how.
      tables: our own.
      paper: published ones, shown apart and with their source.
      shown: images with what was detected in them, or how they were judged.
      costs: of at least two runs, to be plotted.
    """
    points = [Point(one.evaluations, one.score, one.low, one.high, n) for n, one in enumerate(costs)]
    return render(
        "evaluation.html",
        title=title,
        findings=findings,
        facts=facts,
        level=f"{LEVEL:.0%}",
        tables=[_cells(table.title, *folded(table, _text), table.note) for table in tables],
        source=SOURCE,
        paper=[_cells(one.title, ("", *one.columns), [(n, *r) for n, r in one.rows.items()]) for one in paper],
        galleries=shown,
        marked=any(one.marks for gallery in shown for one in gallery.shown),
        trajectories=TRAJECTORIES,
        costs=costs,
        colours=COLOURS,
        plot=draw_scatter(points, "network evaluations for an image", "score") if len(costs) > 1 else "",
    )


def _cells(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> dict[str, Any]:
    words = [[_text(cell).replace(", ", ",\N{NO-BREAK SPACE}") for cell in row] for row in rows]  # intervals stay whole
    return {"title": title, "columns": columns, "rows": words, "note": note}


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def write_summary(output: pathlib.Path, facts: Mapping[str, Any], tables: Sequence[Table]) -> None:
    """Writes ``summary.json`` and a CSV file for every table; those of an earlier evaluation go."""
    files = {f"{table.title.lower()}.csv": table for table in tables}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for table in json.loads((output / "summary.json").read_text(encoding="utf-8"))["tables"]:
            if (name := f"{table['title'].lower()}.csv") not in files:
                (output / name).unlink(missing_ok=True)
    with new_file(output / "summary.json") as partial:
        partial.write_text(json.dumps({**facts, "tables": to_builtins(tables)}, indent=1) + "\n", encoding="utf-8")
    for name, table in files.items():
        with new_file(output / name) as partial:
            partial.write_text(as_csv(table), encoding="utf-8")


def write_pages(
    output: pathlib.Path,
    facts: Mapping[str, Any],
    source: Mapping[str, Any],
    tables: Sequence[Table],
    shown: Sequence[Gallery],
) -> None:
    """Writes ``index.html``, and beside it the page of the shown images' trajectories where they have some.

    Args:
      output: The folder of the evaluation.
      facts: What ``write_summary`` wrote; "benchmark" and "findings" must be there.
      source: Where the images come from, in words for the reader.
      tables: The results.
      shown: Images with what was detected in them, or how they were judged.
    """
    benchmark = facts["benchmark"]
    told = {name: value for name, value in facts.items() if isinstance(value, str) and name != "prompts"}
    told |= {"images of a prompt": str(facts["samples"])} if "samples" in facts else {}
    for name, value in facts.get("judge", {}).items():
        words = (f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else [str(value)]
        told[f"judge's {name}"] = ", ".join(words)
    title, paper = f"Scores on {benchmark}", PUBLISHED[benchmark]
    pages = {"index.html": evaluation_page(title, facts["findings"], {**told, **source}, tables, paper, shown)}
    if drawn := entries(shown, output, output / "trajectories"):
        pages[TRAJECTORIES] = render_trajectories(drawn, f"Trajectories of {output.resolve().name}")
    else:
        (output / TRAJECTORIES).unlink(missing_ok=True)
    for name, page in pages.items():
        with new_file(output / name) as partial:
            partial.write_text(page, encoding="utf-8")

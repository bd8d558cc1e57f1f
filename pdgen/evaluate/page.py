"""The page of an evaluation, or of several compared: tables, published numbers apart, and images with detections."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pdgen.evaluate.gallery import TRAJECTORIES, Gallery
from pdgen.evaluate.published import SOURCE, PublishedTable
from pdgen.evaluate.statistics import LEVEL
from pdgen.evaluate.tables import Cell, Table, folded
from pdgen.report.page import render
from pdgen.train.monitor.curves import COLOURS, Point, scatter


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
        plot=scatter(points, "network evaluations for an image", "score") if len(costs) > 1 else "",
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

"""The plots of ``docs/miniature.md`` from the numbers of ``benchmarks.miniature_results.collect``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.miniature_results import Numbers
from pdgen.train.monitor.curves import COLOURS, format_number

MARKERS = "os^vDPX*h<>"
_SIZE = (9.0, 4.0)  # inches; the legend stands beside the axes


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _ends(points: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far the intervals reach below and above their values; nowhere where they cannot be told."""
    low = [0.0 if one["low"] is None else one["value"] - one["low"] for one in points]
    high = [0.0 if one["high"] is None else one["high"] - one["value"] for one in points]
    return [low, high]


def cost(rows: Numbers) -> Figure:
    """Score against network evaluations of an image, in one colour for each kind of model."""
    figure, axes = _axes()
    colours = dict(zip(dict.fromkeys(row["model"] for row in rows.values()), COLOURS))
    for row, marker in zip(rows.values(), MARKERS):
        score, colour = row["scores"]["overall"], colours[row["model"]]
        at = row["measures"]["network evaluations"]["value"]
        axes.errorbar([at], [score["value"]], _ends([score]), fmt=marker, color=colour, label=row["says"])
    axes.set(xlabel="network evaluations of an image", ylabel="score", xscale="log", ylim=(0, 1))
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: format_number(value))
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _lines(rows: Sequence[Mapping[str, Any]], key: str, x_label: str, y_label: str) -> Figure:
    """A line for each row over what its numbers are by, with their intervals, a little apart so that all are seen."""
    figure, axes = _axes()
    for place, (row, colour, marker) in enumerate(zip(rows, COLOURS, MARKERS)):
        points = list(row[key].values())
        at = [int(name) + 0.06 * (place - (len(rows) - 1) / 2) for name in row[key]]
        values = [one["value"] for one in points]
        axes.errorbar(at, values, _ends(points), marker=marker, color=colour, linewidth=1.2, label=row["says"])
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _of(rows: Numbers, *strategies: str) -> list[Mapping[str, Any]]:
    return [row for row in rows.values() if row["strategy"] in strategies]


def length(rows: Numbers) -> Figure:
    """Images of a trajectory against the kinds of things asked for."""
    shown = _of(rows, "process", "stepwise_best_of_n", "planner")
    return _lines(shown, "length", "kinds of things asked for", "images of a trajectory")


def objects(rows: Numbers) -> Figure:
    """Score against the number of objects asked for: where a single pass breaks, and whether a process holds."""
    shown = _of(rows, "single_pass", "process", "stepwise_best_of_n")
    return _lines(shown, "objects", "objects asked for", "score")


PLOTS: Mapping[str, Callable[[Numbers], Figure]] = {"cost": cost, "length": length, "objects": objects}

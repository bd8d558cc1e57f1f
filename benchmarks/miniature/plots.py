"""The plots of ``docs/miniature.md``, from the numbers of ``benchmarks.miniature.results.collect``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.miniature.results import Numbers
from pdgen.train.monitor.curves import COLOURS, format_number

MARKERS = "os^vDPX*h<>"
_SIZE = (9.0, 4.0)  # inches, with the legend beside the axes


def _make_axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _compute_error_bars(points: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Return the lengths of the intervals below and above their values; zero if they are unknown."""
    low = [0.0 if one["low"] is None else one["value"] - one["low"] for one in points]
    high = [0.0 if one["high"] is None else one["high"] - one["value"] for one in points]
    return [low, high]


def plot_cost(rows: Numbers) -> Figure:
    """Plot score against network evaluations of an image, in one color for each kind of model."""
    figure, axes = _make_axes()
    colours = dict(zip(dict.fromkeys(row["model"] for row in rows.values()), COLOURS))
    for row, marker in zip(rows.values(), MARKERS):
        score, colour = row["scores"]["overall"], colours[row["model"]]
        at = row["measures"]["network evaluations"]["value"]
        axes.errorbar([at], [score["value"]], _compute_error_bars([score]), fmt=marker, color=colour, label=row["says"])
    axes.set(xlabel="network evaluations of an image", ylabel="score", xscale="log", ylim=(0, 1))
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: format_number(value))
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _plot_lines(rows: Sequence[Mapping[str, Any]], key: str, x_label: str, y_label: str) -> Figure:
    """Plot a line for each row with intervals, slightly shifted so that all are visible."""
    figure, axes = _make_axes()
    for place, (row, colour, marker) in enumerate(zip(rows, COLOURS, MARKERS)):
        points = list(row[key].values())
        at = [int(name) + 0.06 * (place - (len(rows) - 1) / 2) for name in row[key]]
        values = [one["value"] for one in points]
        axes.errorbar(
            at, values, _compute_error_bars(points), marker=marker, color=colour, linewidth=1.2, label=row["says"]
        )
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _select_rows(rows: Numbers, *strategies: str) -> list[Mapping[str, Any]]:
    return [row for row in rows.values() if row["strategy"] in strategies]


def plot_length(rows: Numbers) -> Figure:
    """Plot images of a trajectory against the kinds of things asked for."""
    shown = _select_rows(rows, "process", "stepwise_best_of_n", "planner")
    return _plot_lines(shown, "length", "kinds of things asked for", "images of a trajectory")


def plot_objects(rows: Numbers) -> Figure:
    """Plot score against the number of objects asked for."""
    shown = _select_rows(rows, "single_pass", "process", "stepwise_best_of_n")
    return _plot_lines(shown, "objects", "objects asked for", "score")


PLOTS: Mapping[str, Callable[[Numbers], Figure]] = {"cost": plot_cost, "length": plot_length, "objects": plot_objects}

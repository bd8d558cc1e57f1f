"""Curves as SVG to inline into a page: they use the page's colours and scale to any width."""

import io
import itertools
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

# Legible on white and on black.
COLOURS = ("#2f7fd0", "#d98a1f", "#4f9a34", "#a860c0", "#cf4a5a", "#7d7d84", "#12988a", "#9b6b3e")
LEVEL = 5  # index into ``COLOURS`` for levels
_SIZE = (4.7, 2.7)  # inches of 72 units: text of 9 units is legible when the chart is as wide as a phone
_PAGE_COLOURS = {"#010203": "var(--soft)", "#040506": "var(--line)"}  # placeholders: matplotlib has no CSS variables
_TEXT, _GRID = _PAGE_COLOURS
_LOG_RANGE = 8  # a larger ratio of the largest to the smallest value calls for a log axis
_MAX_POINTS = 400
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pdgen",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.edgecolor": _GRID,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Line(NamedTuple):
    """One series of a chart.

    Attributes:
      steps, values: coordinates of the points.
      colour: index into ``COLOURS``, which repeat.
      style: "noisy" draws the values faintly under their smoothed curve, "exact" the values alone, "sparse" dots joined
        by dashes.
    """

    steps: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    colour: int
    style: Literal["noisy", "exact", "sparse"] = "noisy"

    @property
    def last(self) -> float:
        """The last value, smoothed if the drawn curve is."""
        values = smooth(self.values, _half_life(self.values)) if self.style == "noisy" else self.values
        return float(values[-1])


def smooth(values: Float[np.ndarray, " n"], half_life: float) -> Float[np.ndarray, " n"]:
    """Return exponentially weighted means: a value counts half after ``half_life`` further values.

    >>> smooth(np.array([1.0, 4.0]), 1.0)
    array([1., 3.])
    """
    decay = 0.5 ** (1 / half_life)
    total = weight = 0.0
    means = np.empty(len(values))
    for n, value in enumerate(values):
        total, weight = decay * total + value, decay * weight + 1
        means[n] = total / weight
    return means


def thin(values: Float[np.ndarray, " n"], max_points: int) -> Int[np.ndarray, " m"]:
    """Return ascending indices of at most ``max_points`` values: the extremes of equal intervals, so spikes survive."""
    if len(values) <= max_points:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), max_points // 2 + 1).astype(int)
    intervals = itertools.pairwise(edges)
    return np.unique([start + pick(values[start:end]) for start, end in intervals for pick in (np.argmin, np.argmax)])


def draw_chart(lines: Sequence[Line], levels: Sequence[float] = (), log: bool = False) -> str:
    """Draw lines over steps as an ``<svg>`` without title or legend.

    Args:
      lines: lines to draw, later ones on top.
      levels: values to mark with a dotted line across the chart.
      log: use a log axis if the values are positive and span a factor of ``_LOG_RANGE``.
    """
    values = np.concatenate([*(line.values for line in lines), levels])
    with matplotlib.rc_context(_STYLE):
        figure = Figure(_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _draw_line(axes, line)
        for level in levels:
            axes.axhline(level, color=COLOURS[LEVEL], linestyle=":", linewidth=1.2)
        if not (log and _use_log_axis(axes, axes.yaxis, values)) and 0 <= values.min() <= values.max() / 2:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: format_number(value))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return _save_inline(figure)


class Point(NamedTuple):
    """A dot at (x, y) with the interval [low, high] of y, None if unknown; ``colour`` as in ``Line``."""

    x: float
    y: float
    low: float | None
    high: float | None
    colour: int


def draw_scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Draw points, numbered from 1, with their intervals as an ``<svg>``; x has a log axis if its range is wide."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for label, point in enumerate(points, 1):
            colour = COLOURS[point.colour % len(COLOURS)]
            if point.low is not None:
                axes.plot([point.x, point.x], [point.low, point.high], color=colour, linewidth=1.2, alpha=0.6)
            axes.plot([point.x], [point.y], marker="o", markersize=5, color=colour)
            axes.annotate(str(label), (point.x, point.y), (5, 3), textcoords="offset points")
        _use_log_axis(axes, axes.xaxis, np.array([point.x for point in points]))
        axes.xaxis.set_major_formatter(lambda value, _: format_number(value))
        axes.set(xlabel=x_label, ylabel=y_label)
        return _save_inline(figure)


def format_number(value: float) -> str:
    """Format a number for readers: 12,345 or 0.123."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _draw_line(axes: Axes, line: Line) -> None:
    colour = COLOURS[line.colour % len(COLOURS)]
    dots: dict[str, Any] = {"marker": "o", "markersize": 2.6}
    if line.style == "sparse":
        axes.plot(line.steps, line.values, linestyle="--", color=colour, linewidth=1.2, **dots)
        return
    curve, markers = line.values, dots if len(line.values) == 1 else {}  # a line of one point is invisible
    if line.style == "noisy":
        shown = thin(line.values, _MAX_POINTS)
        axes.plot(line.steps[shown], line.values[shown], color=colour, alpha=0.3, linewidth=0.8)
        curve = smooth(line.values, _half_life(line.values))
    shown = thin(curve, _MAX_POINTS)
    axes.plot(line.steps[shown], curve[shown], color=colour, linewidth=1.5, **markers)


def _half_life(values: np.ndarray) -> float:
    """Return the half-life that smooths a noisy curve, in points."""
    return max(1.0, len(values) / 50)


def _use_log_axis(axes: Axes, axis: Axis, values: np.ndarray) -> bool:
    """Make the axis of ``values`` logarithmic if they are positive and of a wide range; return whether they are."""
    if values.min() <= 0 or values.max() <= _LOG_RANGE * values.min():
        return False
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(ticker.NullLocator())
    return True


def _save_inline(figure: Figure) -> str:
    """Return the drawing without matplotlib's headers and fixed size, in the page's font and colours."""
    figure.axes[0].tick_params(length=0)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"| xmlns(:\w+)?="[^"]*"| font-family: [^;]*;', "", svg)  # ids repeat in a page
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None  # matplotlib always writes one
    svg = f"<svg {view[0]}" + svg[svg.index(">") :]
    for placeholder, colour in _PAGE_COLOURS.items():
        svg = svg.replace(placeholder, colour)
    return svg.strip()

"""Layout: squares on a grid under constraints on single squares and on pairs, by randomised greedy search.

All lengths are whole grid units, x to the right, y downwards. The corner of a square is its top left corner. The domain
of a square is a boolean array over its corners. The constraint on a pair is a boolean array over the difference of
their corners, so that placing one square restricts the other by a single slice.
"""

import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

GRID = 32
MARGIN = 0.1
# GenEval's threshold is 0.5. Layouts keep a distance from it, so that an error of one pixel flips no relation.
CLEAR, CLEARLY_NOT = 0.55, 0.45
CELL = 4.5  # distance from a ninth's centre, at most; half its side is 5.33
CHOICES_PER_WIDTH = 24
RELATIONS = ("left of", "right of", "above", "below")

# Squares of other sizes have other numbers of corners, so that the axes have no common names.
Domain = Bool[np.ndarray, "_ _"]  # [top, left]: the allowed corners of a square
Ninths = Int[np.ndarray, "_ _"]  # [top, left]: by corner, the ninth of the grid that holds the square's centre
Table = Bool[np.ndarray, "dy dx"]  # index GRID + offset, where offset = second corner - first corner
Numbers = np.ndarray | np.floating


class NinthRule(NamedTuple):
    """A constraint on the ninths of two squares: ``allowed[first, second]``."""

    first: Ninths
    second: Ninths
    allowed: Bool[np.ndarray, "9 9"]

    def reverse(self) -> "NinthRule":
        """Return the same constraint with the squares in the other order."""
        return NinthRule(self.second, self.first, self.allowed.T)


class _Link(NamedTuple):
    """The constraints of one square on another: the allowed offsets, and rules whose first square is this one."""

    table: Table
    rules: tuple[NinthRule, ...]

    def restrict(self, top: int, left: int, choices: Domain) -> Domain:
        """Return the corners of the other square that a square at (left, top) allows."""
        rows, columns = choices.shape
        free = choices & self.table[GRID - top : GRID - top + rows, GRID - left : GRID - left + columns]
        for rule in self.rules:
            free = free & rule.allowed[rule.first[top, left], rule.second]
        return free


def compute_directions(dx: Numbers, dy: Numbers, width: Numbers, height: Numbers) -> np.ndarray:
    """Compute GenEval's strength of each relation of ``RELATIONS``; above 0.5 the relation holds.

    A strength is a component of the offset, shortened by ``MARGIN`` times the sum of both extents along its axis and
    divided by the length of the whole offset.

    Args:
      dx, dy: centre of the subject minus centre of the reference, any shape.
      width, height: sum of both boxes' extents along each axis, same shape.

    Returns:
      [4, ...], zero where the shortened offset vanishes.
    """
    right = np.maximum(np.abs(dx) - MARGIN * width, 0) * np.sign(dx)
    down = np.maximum(np.abs(dy) - MARGIN * height, 0) * np.sign(dy)
    still = (np.abs(right) < 1e-3) & (np.abs(down) < 1e-3)
    length = np.where(still, np.inf, np.hypot(dx, dy))
    return np.stack([-right, right, -down, down]) / length


def make_domain(size: int, spacing: int = 1) -> Domain:
    """Return the corners, multiples of ``spacing``, at which a square of this size lies inside the grid."""
    allowed = np.arange(GRID - size + 1) % spacing == 0
    return allowed[:, None] & allowed[None, :]


@functools.lru_cache(maxsize=1024)
def make_cell_domain(extent: int, inset: int, size: int, column: int, row: int) -> Domain:
    """Return the corners of a reserved square for which the object in it is centred well inside a ninth of the grid.

    Args:
      extent: side of the reserved square.
      inset: distance of the object's corner from the reserved square's, along both axes.
      size: side of the object.
      column, row: the ninth; 0, 1 or 2.
    """
    centres = np.arange(GRID - extent + 1) + inset + size / 2
    across, down = (np.abs(centres - (i + 0.5) * GRID / 3) <= CELL for i in (column, row))
    return down[:, None] & across[None, :]


@functools.lru_cache(maxsize=1024)
def compute_ninths(extent: int, inset: int, size: int) -> Ninths:
    """Return 3 x row + column of the ninth by corner of the reserved square. Arguments as in ``make_cell_domain``."""
    third = ((np.arange(GRID - extent + 1) + inset + size / 2) * 3 // GRID).astype(int)
    return 3 * third[:, None] + third[None, :]


@functools.lru_cache
def make_middle_domain(extent: int) -> Domain:
    """Return the corners at which a square is centred in a ninth of the grid, or as nearly as it fits."""
    columns = np.zeros(GRID - extent + 1, bool)
    columns[[min(max(middle - extent // 2, 0), GRID - extent) for middle in (5, 16, 27)]] = True
    return columns[:, None] & columns[None, :]


@functools.lru_cache(maxsize=4096)
def make_gap_table(first: int, second: int, gap: int) -> Table:
    """Allow offsets with at least ``gap`` empty units between two squares of these sizes."""
    offset = np.arange(-GRID, GRID + 1)
    free = (offset >= first + gap) | (-offset >= second + gap)
    return free[:, None] | free[None, :]


@functools.lru_cache(maxsize=4096)
def _compute_strength(kind: str, subject: int, reference: int, shift: int) -> Float[np.ndarray, "dy dx"]:
    """Compute the strength of a relation of the second square, the subject, to the first, the reference, by offset.

    Args:
      kind: one of ``RELATIONS``.
      subject, reference: sizes.
      shift: added to the difference of the corners along both axes.
    """
    offset = np.arange(-GRID, GRID + 1) + shift + (subject - reference) / 2
    dx, dy = np.broadcast_arrays(offset[None, :], offset[:, None])
    extent = np.float64(subject + reference)
    return compute_directions(dx, dy, extent, extent)[RELATIONS.index(kind)]


def _make_move_table(distance: int) -> Table:
    """Allow offsets of at least ``distance`` along some axis."""
    far = np.abs(np.arange(-GRID, GRID + 1)) >= distance
    return far[:, None] | far[None, :]


@functools.lru_cache(maxsize=4096)
def make_joint_table(parts: tuple[tuple[str | int, ...], ...]) -> Table:
    """Combine constraints, each given as a name and the arguments of its function.

    "related" pairs are clearly in a relation, "unrelated" ones clearly are not.
    """
    tables: dict[str | int, Callable[..., Table]]
    tables = {
        "apart": make_gap_table,
        "related": lambda *relation: _compute_strength(*relation) > CLEAR,
        "unrelated": lambda *relation: _compute_strength(*relation) < CLEARLY_NOT,
        "moved": _make_move_table,
    }
    return np.logical_and.reduce([tables[name](*arguments) for name, *arguments in parts])


def solve(
    rng: np.random.Generator,
    domains: Sequence[Domain],
    tables: Mapping[tuple[int, int], Table],
    width: int = 1,
    budget: int = 1,
    rules: Mapping[tuple[int, int], Sequence[NinthRule]] = types.MappingProxyType({}),
) -> list[tuple[int, int]] | None:
    """Search for corners (left, top) that satisfy all constraints; None if the search finds none.

    Squares are placed one by one, the one with the fewest corners left first. For each square, up to
    ``CHOICES_PER_WIDTH`` x ``width`` random corners are examined until ``width`` are found that leave every other
    square a corner. These are tried in the order of the room they leave. With ``width`` 1 the corner is a plain random
    draw.

    Args:
      rng: the only source of randomness.
      domains: the allowed corners of each square.
      tables: constraints by (first, second), indices of ``domains``; each unordered pair at most once.
      width: corners tried for each square.
      budget: dead ends after which the search gives up.
      rules: constraints on the ninths of the grid, for pairs of ``tables``.
    """
    neighbours: list[dict[int, _Link]] = [{} for _ in domains]
    for (first, second), table in tables.items():
        both = tuple(rules.get((first, second), ()))
        neighbours[first][second] = _Link(table, both)
        neighbours[second][first] = _Link(table[::-1, ::-1], tuple(rule.reverse() for rule in both))
    corners = _search(rng, neighbours, dict(enumerate(domains)), width, [budget])
    return None if corners is None else [corners[i] for i in range(len(domains))]


def _search(
    rng: np.random.Generator,
    neighbours: Sequence[Mapping[int, _Link]],
    waiting: Mapping[int, Domain],
    width: int,
    budget: list[int],
) -> dict[int, tuple[int, int]] | None:
    # `budget` is a list of one number, because the whole recursion shares it.
    if not waiting:
        return {}
    index = min(waiting, key=lambda i: np.count_nonzero(waiting[i]))
    rest = {i: d for i, d in waiting.items() if i != index}
    choices = np.flatnonzero(waiting[index])
    options = []
    for choice in rng.permutation(choices)[: CHOICES_PER_WIDTH * width].tolist():
        top, left = divmod(choice, waiting[index].shape[1])
        narrowed = {}
        for other, link in neighbours[index].items():
            if other in rest:
                narrowed[other] = link.restrict(top, left, rest[other])
                if not narrowed[other].any():
                    break
        else:
            room = sum(math.log(np.count_nonzero(d)) for d in narrowed.values())
            options.append((room, (left, top), rest | narrowed))
            if len(options) == width:
                break
    for _, corner, remaining in sorted(options, key=lambda option: -option[0]):
        found = _search(rng, neighbours, remaining, width, budget)
        if found is not None:
            return found | {index: corner}
        if budget[0] <= 0:
            return None
    budget[0] -= 1
    return None

"""Where boxes go: squares on a grid under constraints on each one and on pairs, by randomised greedy search.

Every quantity is a whole number of grid units, x to the right, y downwards. A square's corner is its left top
one. What a square may do is a boolean array over its corners, what a pair may do a boolean array over the
difference of their corners, so that placing one square narrows another's choice by a single slice.
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
# GenEval's threshold is 0.5; layouts keep a distance, so that a box that is a pixel wrong does not turn a relation.
CLEAR, CLEARLY_NOT = 0.55, 0.45
CELL = 4.5  # of half a ninth's 5.33, for the same reason
CHOICES_PER_WIDTH = 24
RELATIONS = ("left of", "right of", "above", "below")

Domain = Bool[np.ndarray, "top left"]
Numbers = np.ndarray | np.floating
Table = Bool[np.ndarray, "dy dx"]  # index GRID + offset, offset = second corner - first corner
Ninths = Int[np.ndarray, "top left"]  # by a square's corner, the ninth of the grid that holds its centre


class _Link(NamedTuple):
    """What a square's corner leaves to another one: offsets, and where both are given, any ninth but its own."""

    table: Table
    here: Ninths | None
    there: Ninths | None

    def left_over(self, top: int, left: int, choices: Domain) -> Domain:
        """What a square at (left, top) leaves of the other one's corners."""
        rows, columns = choices.shape
        free = choices & self.table[GRID - top : GRID - top + rows, GRID - left : GRID - left + columns]
        return free if self.here is None else free & (self.there != self.here[top, left])


def compute_directions(dx: Numbers, dy: Numbers, width: Numbers, height: Numbers) -> np.ndarray:
    """GenEval's four numbers of which each says, beyond 0.5, that a relation of ``RELATIONS`` holds.

    offset = subject centre - reference centre, shortened by ``MARGIN`` times the sum of both extents along each
    axis and divided by |offset|.

    Args:
      dx, dy: offset, any shape.
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
    """All corners, multiples of ``spacing``, at which a square of that size is inside the grid."""
    allowed = np.arange(GRID - size + 1) % spacing == 0
    return allowed[:, None] & allowed[None, :]


@functools.lru_cache(maxsize=1024)
def make_cell_domain(extent: int, inset: int, size: int, column: int, row: int) -> Domain:
    """Corners of reserved squares in which a square has its centre well inside a ninth of the grid.

    Args:
      extent: of the reserved square.
      inset, size: of the one in it, whose corner is so far from the reserved one's.
      column, row: 0, 1 or 2.
    """
    centres = np.arange(GRID - extent + 1) + inset + size / 2
    across, down = (np.abs(centres - (i + 0.5) * GRID / 3) <= CELL for i in (column, row))
    return down[:, None] & across[None, :]


@functools.lru_cache(maxsize=1024)
def compute_ninths(extent: int, inset: int, size: int) -> Ninths:
    """3 x row + column of the ninth, by the corner of the reserved square; arguments as of ``make_cell_domain``."""
    third = ((np.arange(GRID - extent + 1) + inset + size / 2) * 3 // GRID).astype(int)
    return 3 * third[:, None] + third[None, :]


@functools.lru_cache
def make_middle_domain(extent: int) -> Domain:
    """Corners at which a square is about the middle of a ninth of the grid, or as near to it as it can be."""
    columns = np.zeros(GRID - extent + 1, bool)
    columns[[min(max(middle - extent // 2, 0), GRID - extent) for middle in (5, 16, 27)]] = True
    return columns[:, None] & columns[None, :]


@functools.lru_cache(maxsize=4096)
def make_gap_table(first: int, second: int, gap: int) -> Table:
    """Where two squares of these sizes have at least ``gap`` empty units between them."""
    offset = np.arange(-GRID, GRID + 1)
    free = (offset >= first + gap) | (-offset >= second + gap)
    return free[:, None] | free[None, :]


@functools.lru_cache(maxsize=4096)
def make_relation_table(kind: str, subject: int, reference: int, shift: int) -> Table:
    """Where the second square, the subject, stands ``kind`` the first, the reference.

    Args:
      kind: one of ``RELATIONS``.
      subject, reference: sizes.
      shift: to be added to the difference of the corners along both axes.
    """
    return _compute_strength(kind, subject, reference, shift) > CLEAR


@functools.lru_cache(maxsize=4096)
def make_exclusion_table(kind: str, subject: int, reference: int, shift: int) -> Table:
    """Where the second square does not stand ``kind`` the first; arguments as of ``make_relation_table``."""
    return _compute_strength(kind, subject, reference, shift) < CLEARLY_NOT


def _compute_strength(kind: str, subject: int, reference: int, shift: int) -> Float[np.ndarray, "dy dx"]:
    offset = np.arange(-GRID, GRID + 1) + shift + (subject - reference) / 2
    dx, dy = np.broadcast_arrays(offset[None, :], offset[:, None])
    extent = np.float64(subject + reference)
    return compute_directions(dx, dy, extent, extent)[RELATIONS.index(kind)]


@functools.lru_cache(maxsize=64)
def make_move_table(distance: int) -> Table:
    """Where the corners differ by at least ``distance`` along some axis."""
    far = np.abs(np.arange(-GRID, GRID + 1)) >= distance
    return far[:, None] | far[None, :]


@functools.lru_cache(maxsize=4096)
def make_joint_table(parts: tuple[tuple[str | int, ...], ...]) -> Table:
    """Where all parts hold: each the name of one of the functions above and its arguments."""
    tables: dict[str | int, Callable[..., Table]]
    tables = {
        "apart": make_gap_table,
        "related": make_relation_table,
        "unrelated": make_exclusion_table,
        "moved": make_move_table,
    }
    return np.logical_and.reduce([tables[name](*arguments) for name, *arguments in parts])


def solve(
    rng: np.random.Generator,
    domains: Sequence[Domain],
    tables: Mapping[tuple[int, int], Table],
    width: int = 1,
    budget: int = 1,
    elsewhere: Mapping[tuple[int, int], tuple[Ninths, Ninths]] = types.MappingProxyType({}),
) -> list[tuple[int, int]] | None:
    """Corners (left, top) that obey all constraints; None if the search finds none.

    Squares are placed one after the other, the one with the fewest choices first. For each, ``width`` random
    choices that leave every other one a choice (of ``CHOICES_PER_WIDTH`` times as many looked at) are tried in the order of
    the room that they leave; ``width`` 1 is a plain random draw.

    Args:
      rng: decides everything.
      domains: the allowed corners of each square.
      tables: by (first, second), indices of ``domains``, each unordered pair at most once.
      width: choices tried for each square.
      budget: dead ends after which the search gives up.
      elsewhere: pairs of ``tables`` that are to be in two ninths of the grid, and the ninths of both.
    """
    neighbours: list[dict[int, _Link]] = [{} for _ in domains]
    for (first, second), table in tables.items():
        here, there = elsewhere.get((first, second), (None, None))
        neighbours[first][second] = _Link(table, here, there)
        neighbours[second][first] = _Link(table[::-1, ::-1], there, here)
    corners = _search(rng, neighbours, dict(enumerate(domains)), width, [budget])
    return None if corners is None else [corners[i] for i in range(len(domains))]


def _search(
    rng: np.random.Generator,
    neighbours: Sequence[Mapping[int, _Link]],
    waiting: Mapping[int, Domain],
    width: int,
    budget: list[int],
) -> dict[int, tuple[int, int]] | None:
    # `budget` holds one number, shared by the whole recursion.
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
                narrowed[other] = link.left_over(top, left, rest[other])
                if not narrowed[other].any():
                    break
        else:
            room = sum(math.log(np.count_nonzero(d)) for d in narrowed.values())
            options.append((room, (left, top), rest | narrowed))
            if len(options) == width:
                break
    for _, corner, left_over in sorted(options, key=lambda option: -option[0]):
        found = _search(rng, neighbours, left_over, width, budget)
        if found is not None:
            return found | {index: corner}
        if budget[0] <= 0:
            return None
    budget[0] -= 1
    return None

"""Placements: where objects of shapes world may be, and how large, on the lattice of the VAE tokens or anywhere."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pdgen.shapes.graph import Step
from pdgen.shapes.layout import GRID

SIZES = {"small": (7,), "medium": (10, 11), "large": (14, 15)}  # all widths of shapes
TOKEN = 8  # units of a side of the VAE token: a picture is 4 x 4 tokens


class Attempt(NamedTuple):
    """One search for a layout: empty units between boxes, choices and dead ends of ``solve``.

    ``compact`` takes the smallest sizes and puts them about the middles of the nine places. Things of one entity have
    places of their own, unless they are ``crowded``.
    """

    gap: int
    width: int
    budget: int
    compact: bool = False
    crowded: bool = False


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where objects may be, and how large.

    Attributes:
      spacing: every corner is a multiple of so many units.
      shares: of the words of ``SIZES`` in random scenes.
      widths: of the words.
      attempts: searches for a layout, in order.
    """

    spacing: int
    shares: Mapping[str, float]
    widths: Mapping[str, tuple[int, ...]]
    attempts: tuple[Attempt, ...]

    def resize_corner(self, value: int, before: int, width: int) -> int:
        """Where along an axis an object at ``value`` begins when it becomes ``width`` wide instead of ``before``."""
        if self.spacing == 1:
            return min(max(value + (before - width) // 2, 0), GRID - width)
        return min(value, (GRID - width) // self.spacing * self.spacing)

    def compute_inset(self, extent: int, width: int) -> int:
        """How far from the corner of a reserved square an object in it begins."""
        return (extent - width) // 2 if self.spacing == 1 else 0

    def choose_sizes(self, steps: Sequence[Step]) -> dict[int, str]:
        """The size of every entity where it has none stated, the same in all steps.

        Free objects are medium. On the lattice they are small, but large where a step outlines them (a small one has
        no inside to leave out) or another step calls them small, which must then be seen.
        """
        entities = [entity for step in steps for entity in step.graph.entities]
        if "medium" in self.widths:
            return {entity.id: "medium" for entity in entities}
        unstated = [e for e in entities if "size" not in e.attributes]
        large = {e.id for e in unstated if e.attributes.get("fill") == "outlined"}
        large |= {e.id for e in unstated} & {e.id for e in entities if e.attributes.get("size") == "small"}
        return {entity.id: "large" if entity.id in large else "small" for entity in entities}


# A VAE token sees few crops of a shape: its corners are the token's own.
LATTICE = Placement(
    TOKEN,
    {"small": 0.6, "large": 0.4},
    {"small": (7,), "large": (15,)},
    (Attempt(1, 1, 1), Attempt(1, 3, 4), Attempt(1, 9, 100), Attempt(1, 9, 100, crowded=True)),
)
# Widely spread at first, then ever closer.
FREE = Placement(
    1,
    {"small": 0.3, "medium": 0.4, "large": 0.3},
    SIZES,
    (
        Attempt(2, 1, 1),
        Attempt(2, 1, 1),
        Attempt(2, 3, 4),
        Attempt(1, 9, 100, compact=True),
        Attempt(1, 6, 10, crowded=True),
    ),
)
PLACEMENTS = {"lattice": LATTICE, "free": FREE}

"""Placements: the allowed positions and sizes of objects in shapes world, on the lattice of VAE tokens or free."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pdgen.shapes.graph import Step
from pdgen.shapes.layout import GRID

SIZES = {"small": (7,), "medium": (10, 11), "large": (14, 15)}  # all widths of shapes
TOKEN = 8  # side of a VAE token in grid units: a picture has 4 x 4 tokens


class Attempt(NamedTuple):
    """The settings of one search for a layout.

    Attributes:
      gap: empty units between boxes, at least.
      width, budget: see ``layout.solve``.
      compact: take the smallest sizes and centre objects in the nine places.
      crowded: allow several things of one entity at one place, and relations that the places do not imply.
    """

    gap: int
    width: int
    budget: int
    compact: bool = False
    crowded: bool = False


@dataclasses.dataclass(frozen=True)
class Placement:
    """The allowed positions and sizes of objects.

    Attributes:
      spacing: every corner is a multiple of this many units.
      shares: probability of each word of ``SIZES`` in random scenes.
      widths: widths in units for each of these words.
      attempts: searches for a layout, in order.
    """

    spacing: int
    shares: Mapping[str, float]
    widths: Mapping[str, tuple[int, ...]]
    attempts: tuple[Attempt, ...]

    def resize_corner(self, value: int, before: int, width: int) -> int:
        """Return the corner, along one axis, of an object at ``value`` whose width changes from ``before``."""
        if self.spacing == 1:
            return min(max(value + (before - width) // 2, 0), GRID - width)
        return min(value, (GRID - width) // self.spacing * self.spacing)

    def compute_inset(self, extent: int, width: int) -> int:
        """Return the distance of an object's corner from that of its reserved square."""
        return (extent - width) // 2 if self.spacing == 1 else 0

    def choose_sizes(self, steps: Sequence[Step]) -> dict[int, str]:
        """Return the size of each entity for the steps that state none.

        Free objects are medium. On the lattice they are small, with two exceptions: they are large if a step outlines
        them, since small shapes cannot be outlined, or if another step calls them small, so that the change is visible.
        """
        entities = [entity for step in steps for entity in step.graph.entities]
        if "medium" in self.widths:
            return {entity.id: "medium" for entity in entities}
        unstated = [e for e in entities if "size" not in e.attributes]
        large = {e.id for e in unstated if e.attributes.get("fill") == "outlined"}
        large |= {e.id for e in unstated} & {e.id for e in entities if e.attributes.get("size") == "small"}
        return {entity.id: "large" if entity.id in large else "small" for entity in entities}


# Corners of objects are corners of tokens, so that a token sees few different crops of a shape.
LATTICE = Placement(
    TOKEN,
    {"small": 0.6, "large": 0.4},
    {"small": (7,), "large": (15,)},
    (Attempt(1, 1, 1), Attempt(1, 3, 4), Attempt(1, 9, 100), Attempt(1, 9, 100, crowded=True)),
)
# Attempts go from widely spread to closely packed.
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

"""Published scores for comparison, from "Think in Strokes, Not Pixels" (arXiv 2604.04746).

The authors measured them on the original benchmarks. Scores on shapes world are comparable with them only in the
direction of a difference.
"""

import dataclasses
from collections.abc import Mapping

from pdgen.evaluate.geneval.rule import TASKS

SOURCE = "arXiv 2604.04746"


@dataclasses.dataclass(frozen=True)
class PublishedTable:
    """A table of the paper: by row a score for each column, None if the paper gives none."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]


GENEVAL = PublishedTable(
    "Table 2: GenEval",
    ("overall", *TASKS),
    {
        "BAGEL-7B": (0.77, 0.99, 0.95, 0.76, 0.87, 0.51, 0.56),
        "BAGEL-7B, process-driven": (0.83, 0.99, 0.95, 0.75, 0.87, 0.72, 0.69),
        "FLUX.1-dev": (0.82, None, None, None, None, None, None),
        "Janus-Pro-7B": (0.80, None, None, None, None, None, None),
    },
)
WISE = PublishedTable(
    "Table 3: WISE, plain mean of the six categories",
    ("overall",),
    {"BAGEL-7B": (0.70,), "BAGEL-7B, process-driven": (0.76,)},
)
STRATEGIES = PublishedTable(
    "Table 4: strategies on GenEval",
    ("training samples", "sampling steps", "overall"),
    {
        "BAGEL and a GPT planner": (None, 50, 0.60),
        "BAGEL and a GPT inspector, one round": (None, 50, 0.80),
        "PARM, best of 20": (400_000, 1000, 0.67),
        "PARM, RL and best of 20": (688_000, 1000, 0.77),
        "process-driven": (62_000, 131, 0.83),
    },
)
REWRITING = PublishedTable(
    "Table 5: rewriting and critique",
    ("colors", "position", "color_attr"),
    {
        "without rewriting": (0.81, 0.58, 0.50),
        "without rewriting, with critique": (0.84, 0.61, 0.53),
        "with rewriting": (0.82, 0.67, 0.62),
        "with rewriting and critique": (0.87, 0.72, 0.69),
    },
)
CRITIQUES = PublishedTable(
    "Table 6: where critiques come from",
    ("colors", "position", "color_attr"),
    {"scene graph": (0.83, 0.70, 0.67), "self-sampled": (0.87, 0.72, 0.69)},
)
SUBSETS = PublishedTable(
    "Table 7: the two critique subsets",
    ("counting", "colors", "position", "color_attr"),
    {
        "neither": (0.61, 0.84, 0.66, 0.62),
        "conflict": (0.62, 0.85, 0.71, 0.65),
        "alignment": (0.73, 0.86, 0.69, 0.65),
        "both": (0.75, 0.87, 0.72, 0.69),
    },
)

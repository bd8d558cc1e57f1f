"""The paper's Tables 5, 6 and 7 in shapes world: rewriting, the source of critiques, and the subsets.

python launch/ablate.py --config=configs/ablation_shapes.py --output=out/ablation

Each cell is a data set, a training run per seed, and an evaluation of each run. Runs of the first round start from the
shipped base and see multi-turn samples alone. Those of the second round continue them. A sweep that was killed resumes.
Its 27 runs take many hours on two cores; --config.scale, --config.seeds and --config.train_keys.num_steps make it
smaller, --tables selects tables. The shipped process model is the cell rewritten_critique with the first seed
(launch/assets.py ship).
"""

from typing import Any

import ml_collections

_NO_CONFLICT = {"conflict": {"positive": 0, "negative": 0}}
_NO_ALIGNMENT = {"alignment": {"positive": 0, "negative": 0}}
_NONE = _NO_CONFLICT | _NO_ALIGNMENT


def _continue(cell: str) -> dict[str, Any]:
    return {"init_from": cell, "train": {"optimizer": {"learning_rate": 1.5e-3}}}


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.evaluate.ablation.Sweep``."""
    config = ml_collections.ConfigDict()
    config.data = "configs/data_shapes.py"
    config.train = "configs/shapes_process.py"
    config.scale = 0.3
    config.seeds = (0, 1, 2)
    config.train_keys = ml_collections.ConfigDict(
        {
            "num_steps": 4000,
            "optimizer": {"warmup_steps": 100},
            "held_out": 0,  # the benchmark scores the runs
            "pictures_every": 0,
        }
    )
    config.evaluate_flags = ("--samples=4",)
    # Self-sampled plans come from the model that is trained on the same multi-turn samples alone. All cells but the two
    # of the first round continue such a model: otherwise the other samples would take the place of multi-turn ones.
    config.cells = {
        "plain": {"data": {"rewritten": 0.0} | _NONE},
        "plain_longer": {"data": {"rewritten": 0.0} | _NONE} | _continue("plain"),
        "plain_critique": {"data": {"rewritten": 0.0}, "plans_from": "plain"} | _continue("plain"),
        "rewritten": {"data": _NONE},
        "rewritten_longer": {"data": _NONE} | _continue("rewritten"),
        "rewritten_conflict": {"data": _NO_ALIGNMENT, "plans_from": "rewritten"} | _continue("rewritten"),
        "rewritten_alignment": {"data": _NO_CONFLICT} | _continue("rewritten"),
        "rewritten_critique": {"data": {}, "plans_from": "rewritten"} | _continue("rewritten"),
        "rewritten_symbolic": {"data": {}} | _continue("rewritten"),
    }
    config.tables = {
        "rewriting": {
            "without rewriting": "plain_longer",
            "without rewriting, with critique": "plain_critique",
            "with rewriting": "rewritten_longer",
            "with rewriting and critique": "rewritten_critique",
        },
        "critiques": {
            "none": "rewritten_longer",
            "scene graph": "rewritten_symbolic",
            "self-sampled": "rewritten_critique",
        },
        "subsets": {
            "neither": "rewritten_longer",
            "conflict": "rewritten_conflict",
            "alignment": "rewritten_alignment",
            "both": "rewritten_critique",
        },
    }
    return config

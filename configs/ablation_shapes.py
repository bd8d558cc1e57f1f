"""The paper's Tables 5, 6 and 7 in shapes world: rewriting, the source of critiques, and the subsets.

python launch/ablate.py --config=configs/ablation_shapes.py --output=out/ablation

Each cell is a data set, a training run per seed, and an evaluation of each run. Runs of the first round start from the
shipped base and see multi-turn samples alone. Those of the second round continue them. A sweep that was killed resumes.
Its 27 runs take many hours on two cores; --config.scale, --config.seeds and --config.train_keys.num_steps make it
smaller, --tables selects tables. The shipped process model is the cell rewritten_critique with the first seed, trained
for as many steps as configs/shapes_process.py has (launch/assets.py ship).
"""

from typing import Any

import ml_collections

# Self-sampled plans take a model's time, so all cells have fewer conflicts than the paper, at the paper's shares.
_CONFLICT = {"conflict": {"positive": 2072, "negative": 2489}}
_NONE = {subset: {"positive": 0, "negative": 0} for subset in ("conflict", "alignment")}
_PLAIN = {"rewritten": 0.0}
_ALONE = {"multi_turn": 1.0}
_ALL = {"multi_turn": 0.42, "conflict": 0.2, "alignment": 0.38}


def _continue(cell: str, mixture: dict[str, float]) -> dict[str, Any]:
    """Return the keys of a cell of the second round; ``mixture`` has weights by subset."""
    # One flag for the whole mixture: the training config's is empty, so that no single weight can be set.
    return {"init_from": cell, "train": {"optimizer": {"learning_rate": 1.5e-3}, "mixture": str(mixture)}}


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.evaluate.ablation.Sweep``."""
    config = ml_collections.ConfigDict()
    config.data = "configs/data_shapes.py"
    config.train = "configs/shapes_process.py"
    config.scale = 1.0
    config.seeds = (0, 1, 2)
    config.train_keys = ml_collections.ConfigDict(
        {
            "num_steps": 2000,
            "optimizer": {"warmup_steps": 100},
            "held_out": 0,  # the benchmark scores the runs
            "pictures_every": 0,
        }
    )
    config.evaluate_flags = ("--count=30", "--samples=1")
    # Self-sampled plans come from the model that is trained on the same multi-turn samples alone. All cells but the two
    # of the first round continue such a model: otherwise the other samples would take the place of multi-turn ones.
    config.cells = {
        "plain": {"data": _PLAIN | _NONE},
        "plain_longer": {"data_from": "plain"} | _continue("plain", _ALONE),
        "plain_critique": {"data": _PLAIN | _CONFLICT, "plans_from": "plain"} | _continue("plain", _ALL),
        "rewritten": {"data": _NONE},
        "rewritten_longer": {"data_from": "rewritten"} | _continue("rewritten", _ALONE),
        "rewritten_symbolic": {"data": _CONFLICT} | _continue("rewritten", _ALL),
        "rewritten_critique": {"data": _CONFLICT, "plans_from": "rewritten"} | _continue("rewritten", _ALL),
        "rewritten_conflict": {"data_from": "rewritten_critique"} | _continue("rewritten", _ALL | {"alignment": 0.0}),
        "rewritten_alignment": {"data_from": "rewritten_symbolic"} | _continue("rewritten", _ALL | {"conflict": 0.0}),
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

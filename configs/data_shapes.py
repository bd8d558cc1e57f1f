"""The three subsets in shapes world: multi-turn, conflict and alignment, with latents.

python launch/build_data.py --config=configs/data_shapes.py --output=out/data --scale=0.1

The page is out/data/index.html. Counts are the paper's, except for 25,000 faulty drafts instead of 10,000: with 10,000
a model of this size noticed 9 % of its own faults. More prompts than in the paper's data are short ones of GenEval's
six tasks, so a prompt has about 74 characters on average instead of 153 (Table 1). A small model that rarely sees short
prompts does not learn to draw them, and six of the seven tasks of shapes world's benchmark use them.

Conflict plans come from the scene graph, which needs no checkpoint. For self-sampled plans train on the multi-turn
subset first, then build the others:

python launch/build_data.py --config=configs/data_shapes.py --output=out/data --stages=multi_turn
python launch/build_data.py --config=configs/data_shapes.py --output=out/data --stages=conflict,alignment \
    --config.conflict.variant=self --config.conflict.checkpoint=out/multi_turn
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.synthesis.settings.DatasetSettings``."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = 64
    config.shard_size = 250
    config.latents = True
    config.tasks = ml_collections.ConfigDict(
        {
            "single_object": 0.06,
            "two_object": 0.12,
            "counting": 0.14,
            "colors": 0.06,
            "position": 0.16,
            "color_attr": 0.1,
            "composition": 0.36,
        }
    )
    config.entities = ()
    config.rewritten = 0.2
    config.places = 0.9
    config.max_images = 5
    config.allow_leaks = False
    config.multi_turn = ml_collections.ConfigDict({"count": 32012, "fault_rate": 0.1})
    config.conflict = ml_collections.ConfigDict(
        {"positive": 6905, "negative": 8296, "variant": "graph", "checkpoint": "", "temperature": 1.0}
    )
    config.alignment = ml_collections.ConfigDict({"positive": 5000, "negative": 25000, "archive": ""})
    config.teachers = ml_collections.ConfigDict(
        {"painter": "shapes", "judge": "exact", "writer": "rules", "prompts": "", "redraws": 0}
    )
    return config

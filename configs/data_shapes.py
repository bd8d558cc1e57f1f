"""The three subsets in shapes world: multi-turn, conflict and alignment, with latents.

python launch/build_data.py --config=configs/data_shapes.py --output=out/data --scale=0.1

Look at out/data/index.html. Counts are the paper's, but for faulty drafts: there are 25,000 in place of 10,000, since
with 10,000 a model of this size saw 0.09 of its own faults. More prompts are short ones of GenEval's six tasks than in
the paper's data, so that a prompt has about 86 characters on average and not 153 as in its Table 1. A small model
that hardly sees short prompts does not learn to draw them, and the benchmark of shapes world asks for them in six of
its seven tasks.

Conflict plans come from the scene graph, which needs no checkpoint. For self-sampling train on the multi-turn subset
first, then build the others:

python launch/build_data.py --config=configs/data_shapes.py --output=out/data --stages=multi_turn
python launch/build_data.py --config=configs/data_shapes.py --output=out/data --stages=conflict,alignment \
    --config.conflict.variant=self --config.conflict.checkpoint=out/multi_turn
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The keys are those of ``pdgen.synthesis.settings.DatasetSettings``."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = 64
    config.shard_size = 250
    config.latents = True
    config.tasks = ml_collections.ConfigDict(
        {
            "single_object": 0.09,
            "two_object": 0.09,
            "counting": 0.09,
            "colors": 0.09,
            "position": 0.09,
            "color_attr": 0.09,
            "composition": 0.46,
        }
    )
    config.entities = ()
    config.rewritten = 0.2
    config.places = 0.9
    config.max_images = 5
    config.allow_leaks = False
    config.multi_turn = ml_collections.ConfigDict({"count": 32012, "fault_rate": 0.03})
    config.conflict = ml_collections.ConfigDict(
        {"positive": 6905, "negative": 8296, "variant": "graph", "checkpoint": "", "temperature": 1.0}
    )
    config.alignment = ml_collections.ConfigDict({"positive": 5000, "negative": 25000, "archive": ""})
    config.teachers = ml_collections.ConfigDict(
        {"painter": "shapes", "judge": "exact", "writer": "rules", "prompts": "", "redraws": 0}
    )
    return config

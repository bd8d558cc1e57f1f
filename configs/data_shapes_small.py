"""Shapes-world trajectories of one thing, or of two, one draft in ten faulty, with latents.

python launch/build_data.py --config=configs/data_shapes_small.py --output=out/shapes

Small enough that the smallest model learns from it within half an hour: 45 MB, two or three minutes on two cores.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The keys are those of ``pdgen.scenes.settings.Settings``."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = 64
    config.shard_size = 250
    config.tasks = ml_collections.ConfigDict({"composition": 1.0})
    config.entities = (0.8, 0.2)
    config.rewritten = 0.0
    config.multi_turn = ml_collections.ConfigDict({"count": 8000, "fault_rate": 0.1})
    config.conflict = ml_collections.ConfigDict({"positive": 0, "negative": 0})
    config.alignment = ml_collections.ConfigDict({"positive": 0, "negative": 0})
    return config

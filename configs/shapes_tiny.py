"""Shapes world for one GPU and one hour: 30 million parameters, 64 pixels, 16 VAE tokens per image.

python launch/build_data.py --config=configs/data_shapes.py --output=out/shapes
python launch/train.py --config=configs/shapes_tiny.py --workdir=out/tiny

10,000 steps of 65,536 slots are 16 epochs of the 62,213 trajectories. They take an hour at 2.8 steps per second, 2 % of
an H100's peak. The config also runs on 2, 4, 8 or 16 devices without a change.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/shapes"
    config.init = ""
    config.model = "shapes_tiny"
    config.num_steps = 10_000
    config.rows = 16
    config.budgets = ml_collections.ConfigDict({"text": 2624, "vit": 480, "vae": 992})
    config.seed = 0
    config.mesh = (1, -1, 1)
    config.accumulate = 1
    config.ce_weight = 0.5
    config.save_every = 500
    config.keep = 2
    config.log_every = 20
    config.held_out = 500
    config.pictures_every = 1000
    config.prompts = (
        "a red circle",
        "a blue square left of a green triangle",
        "two yellow stars",
        "a large orange circle above a purple star",
    )
    config.workers = 8
    config.optimizer = ml_collections.ConfigDict(
        {"learning_rate": 6e-4, "warmup_steps": 300, "schedule": "cosine", "ema_decay": 0.999}
    )
    config.compute = ml_collections.ConfigDict({"dtype": "bfloat16", "loss_chunk": 1024})
    config.dropout = ml_collections.ConfigDict({"text": 0.05, "vae": 0.05, "vit": 0.05})
    config.mixture = ml_collections.ConfigDict()  # empty: in proportion to the documents
    config.turns = "whole"
    config.too_long = "refuse"
    config.broken = "stop"
    return config

"""Shapes world, sized for one GPU and an hour: 30 million parameters, 64 pixels, 16 VAE tokens an image.

python launch/build_data.py --config=configs/data_shapes.py --output=out/shapes
python launch/train.py --config=configs/shapes_tiny.py --workdir=out/tiny

10,000 steps of 65,536 slots go 16 times through the 62,213 trajectories; within an hour if the GPU does 2.8 steps a
second, 2 % of an H100's peak. On 2, 4, 8 or 16 devices the same config runs as it is.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The keys are those of ``pdgen.train.run_config.RunConfig``."""
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
    config.mixture = ml_collections.ConfigDict()  # weights of subsets; none: in proportion of their documents
    config.turns = "whole"
    config.too_long = "refuse"
    config.broken = "stop"
    return config

"""The smallest shapes-world model: 32 pixels, 64 VAE tokens an image.

python launch/build_data.py --config=configs/data_shapes.py --output=out/shapes
python launch/train.py --config=configs/shapes_nano.py --workdir=out/nano
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The keys are those of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/shapes"
    config.init = ""
    config.model = "nano"
    config.num_steps = 6000
    config.rows = 1
    config.budgets = ml_collections.ConfigDict({"text": 512, "vit": 128, "vae": 896})
    config.seed = 0
    config.mesh = (1, -1, 1)
    config.ce_weight = 0.5
    config.save_every = 500
    config.keep = 2
    config.log_every = 20
    config.workers = 0
    config.optimizer = ml_collections.ConfigDict({"learning_rate": 1.5e-3, "warmup_steps": 50, "schedule": "cosine"})
    config.compute = ml_collections.ConfigDict({"block_q": 64, "block_k": 64, "loss_chunk": 512})
    config.dropout = ml_collections.ConfigDict({"text": 0.05, "vae": 0.05, "vit": 0.05})
    config.mixture = ml_collections.ConfigDict()  # weights of subsets; none: in proportion of their documents
    config.turns = "whole"
    config.too_long = "refuse"
    config.broken = "stop"
    return config

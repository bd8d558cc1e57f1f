"""The base's last stage: more questions and edits and fewer pictures, at a lower learning rate.

python launch/train.py --config=configs/shapes_reading.py --workdir=out/reading --config.init=out/base

Starts from the result of configs/shapes_base.py, on the same data. docs/learning.md measures the benefit.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/base_data"
    config.init = ""
    config.model = "shapes_nano"
    config.num_steps = 8000
    config.rows = 2
    config.budgets = ml_collections.ConfigDict({"text": 896, "vit": 256, "vae": 768})
    config.draws = 2
    config.seed = 0
    config.mesh = (1, -1, 1)
    config.ce_weight = 0.25
    config.save_every = 500
    config.keep = 2
    config.log_every = 50
    config.held_out = 600
    config.held_out_every = 1000
    config.workers = 0
    config.optimizer = ml_collections.ConfigDict(
        {"name": "muon", "learning_rate": 3e-3, "warmup_steps": 200, "schedule": "cosine", "eps": 1e-8,
         "ema_decay": 0.999}
    )  # fmt: skip
    config.compute = ml_collections.ConfigDict({"block_q": 64, "block_k": 64, "loss_chunk": 4096})
    config.dropout = ml_collections.ConfigDict({"text": 0.1, "vae": 0.1, "vit": 0.05})
    config.mixture = ml_collections.ConfigDict({"text_to_image": 0.42, "understand": 0.33, "edit": 0.25})
    config.turns = "whole"
    config.too_long = "refuse"
    config.broken = "stop"
    return config

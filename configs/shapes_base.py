"""The base model of shapes world: it draws from text, answers questions about pictures, and edits them.

python launch/build_data.py --config=configs/data_shapes_base.py --output=out/base_data
python launch/train.py --config=configs/shapes_base.py --workdir=out/base --config.init=out/places

Starts from the result of configs/shapes_places.py. configs/shapes_reading.py continues from here; launch/assets.py ship
--model=shapes_base trains all three in order.

1.9 million parameters, 64 pixels, 16 VAE and 16 ViT tokens per image, about 90 noised images per step. docs/learning.md
has the results and the training time.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/base_data"
    config.init = ""
    config.model = "shapes_nano"
    config.num_steps = 16_000
    config.rows = 2
    config.budgets = ml_collections.ConfigDict({"text": 896, "vit": 256, "vae": 896})
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
        {
            "name": "muon",
            "learning_rate": 4e-3,
            "warmup_steps": 200,
            "schedule": "cosine",
            "eps": 1e-8,
            "ema_decay": 0.999,
        }
    )
    config.compute = ml_collections.ConfigDict({"block_q": 64, "block_k": 64, "loss_chunk": 4096})
    config.dropout = ml_collections.ConfigDict({"text": 0.1, "vae": 0.1, "vit": 0.05})
    config.mixture = ml_collections.ConfigDict({"text_to_image": 0.5, "understand": 0.3, "edit": 0.2})
    config.turns = "whole"
    config.too_long = "refuse"
    config.broken = "stop"
    return config

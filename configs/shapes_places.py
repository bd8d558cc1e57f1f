"""The first stage of shapes world's base model: pictures of texts that state every position.

python launch/build_data.py --config=configs/data_shapes_places.py --output=out/places_data
python launch/train.py --config=configs/shapes_places.py --workdir=out/places

Such a text determines the picture, so the model quickly learns which colour, size and place belong to which noun.
Without the positions most of the loss is about where the objects are. configs/shapes_base.py starts from the result;
docs/learning.md measures the benefit.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/places_data"
    config.init = ""
    config.model = "shapes_nano"
    config.num_steps = 2500
    config.rows = 2
    config.budgets = ml_collections.ConfigDict({"text": 1280, "vit": 64, "vae": 1216})
    config.draws = 2
    config.seed = 0
    config.mesh = (1, -1, 1)
    config.ce_weight = 0.0  # no text is a target
    config.save_every = 500
    config.keep = 2
    config.log_every = 50
    config.held_out = 600
    config.held_out_every = 500
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
    config.mixture = ml_collections.ConfigDict()
    config.turns = "whole"
    config.too_long = "refuse"
    config.broken = "stop"
    return config

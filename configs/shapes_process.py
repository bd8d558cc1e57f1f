"""The process model of shapes world: the base model learns to plan, sketch, inspect and refine.

python launch/build_data.py --config=configs/data_shapes.py --output=out/process_data
python launch/train.py --config=configs/shapes_process.py --workdir=out/process

Fine-tunes the shipped base on the paper's three subsets. For conflicting plans of the model's own, train on the
multi-turn subset first ("--config.mixture={'multi_turn': 1.0}"), then build the others with
--config.conflict.variant=self --config.conflict.checkpoint=WORKDIR, and continue with --config.init=WORKDIR.
launch/assets.py ship --model=shapes does all of this.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/process_data"
    config.init = "shapes_base"
    config.model = "shapes_nano"
    config.num_steps = 8000
    config.rows = 2
    config.budgets = ml_collections.ConfigDict({"text": 1200, "vit": 240, "vae": 480})
    config.seed = 0
    config.mesh = (1, -1, 1)
    config.ce_weight = 1.0
    config.save_every = 500
    config.keep = 2
    config.log_every = 50
    config.held_out = 300
    config.held_out_every = 1000
    config.pictures_every = 2000
    config.prompts = (
        "a red circle",
        "a green square left of a pink ring",
        "three yellow stars",
        "a large blue heart on a beige background, a black arrow below the heart and two white crosses",
    )
    config.workers = 0
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "muon",
            "learning_rate": 3e-3,
            "warmup_steps": 100,
            "schedule": "cosine",
            "eps": 1e-8,
            "ema_decay": 0.999,
        }
    )
    config.compute = ml_collections.ConfigDict({"block_q": 64, "block_k": 64, "loss_chunk": 4096})
    config.dropout = ml_collections.ConfigDict({"text": 0.1, "vae": 0.1, "vit": 0.05})
    config.mixture = ml_collections.ConfigDict()  # empty: in proportion to the documents, as in the paper
    config.turns = "whole"
    config.too_long = "refuse"
    config.broken = "stop"
    return config

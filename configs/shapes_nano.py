"""The smallest shapes-world model from fresh parameters, on trajectories alone: a quick look at training.

python launch/build_data.py --config=configs/data_shapes_small.py --output=out/shapes
python launch/train.py --config=configs/shapes_nano.py --workdir=out/nano

1.9 million parameters, 64 pixels, 16 VAE and 16 ViT tokens an image. A few minutes teach the grammar and the words.
What draws begins with a base: configs/shapes_base.py, then configs/shapes_process.py.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The keys are those of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/shapes"
    config.init = ""
    config.model = "shapes_nano"
    config.num_steps = 14_000
    config.rows = 1
    config.budgets = ml_collections.ConfigDict({"text": 480, "vit": 96, "vae": 192})
    config.seed = 0
    config.mesh = (1, -1, 1)
    config.ce_weight = 0.5
    config.save_every = 1000
    config.keep = 2
    config.log_every = 20
    config.held_out = 200
    config.held_out_every = 1000
    config.pictures_every = 5000
    config.prompts = (
        "a red circle", "a large blue star on a beige background", "a photo of a yellow heart",
        "a green square left of a pink ring",
    )  # fmt: skip
    config.workers = 0
    config.optimizer = ml_collections.ConfigDict({"learning_rate": 1.2e-3, "warmup_steps": 100, "schedule": "cosine"})
    config.compute = ml_collections.ConfigDict({"block_q": 64, "block_k": 64, "loss_chunk": 512})
    config.dropout = ml_collections.ConfigDict({"text": 0.08, "vae": 0.3, "vit": 0.05})
    config.mixture = ml_collections.ConfigDict()  # weights of subsets; none: in proportion of their documents
    config.turns = "whole"
    config.too_long = "refuse"
    config.broken = "stop"
    return config

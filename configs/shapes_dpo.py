"""Direct preference optimisation of the process model of shapes world, from its own judged trajectories.

python launch/build_data.py --config=configs/data_shapes.py --output=out/shapes --scale=0.02
python launch/sample.py --prompts=out/prompts.txt --samples=4 --output=out/tries
python launch/build_data.py import --format=preferences --source=out/tries --output=out/pairs_raw
python launch/build_data.py encode --data=out/pairs_raw --checkpoint=shapes --output=out/pairs
python launch/train.py --config=configs/shapes_dpo.py --workdir=out/dpo

out/prompts.txt holds one prompt a line. Take prompts of which the model gets some tries right and some wrong: a prompt
whose tries score alike gives no pair. Watch pair_accuracy, text_kl, flow_kl and the two lengths in metrics.jsonl, and
score the result on held-out prompts: launch/evaluate.py --benchmark=shapes --checkpoint=out/dpo.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/pairs"
    config.init = "shapes"  # also the reference
    config.model = "shapes_nano"
    config.num_steps = 300
    config.rows = 2
    config.budgets = ml_collections.ConfigDict({"text": 1600, "vit": 320, "vae": 640})
    config.seed = 0
    config.mesh = (1, -1, 1)
    config.turns = "pairs"
    # A text's log-likelihood counts fully. A picture is 16 tokens of 64 values, whose squared errors are weighted down
    # to a few nats, so that pictures do not drown the texts.
    config.preference = ml_collections.ConfigDict({"beta": 0.1, "flow_weight": 0.1})
    config.ce_weight = 1.0
    config.save_every = 100
    config.keep = 2
    config.log_every = 10
    config.held_out = 40
    config.held_out_every = 50
    config.workers = 0
    # Far smaller steps than in training on records: the margin grows with the number of tokens of a trajectory.
    config.optimizer = ml_collections.ConfigDict(
        {"learning_rate": 1e-5, "warmup_steps": 20, "schedule": "constant", "eps": 1e-8}
    )
    config.compute = ml_collections.ConfigDict({"block_q": 64, "block_k": 64, "loss_chunk": 4096})
    config.dropout = ml_collections.ConfigDict({"text": 0.0, "vae": 0.0, "vit": 0.0})
    return config

"""A learned verifier for PARM: the process model learns to judge its own pictures while they are drawn.

python launch/build_data.py estimates --checkpoint=shapes --prompts=out/prompts.txt --samples=4 --output=out/estimates
python launch/train.py --config=configs/shapes_verifier.py --workdir=out/verifier
python launch/evaluate.py verifier --checkpoint=out/verifier --output=out/verified out/other_estimates
python launch/sample.py --prompt="a red circle" --strategy=parm --option=verifier=out/verifier --output=out/parm

The data ask of estimates after 25, 50, 75 and 100 % of the steps whether the picture shows the prompt. The answer is
the exact judge's on the finished picture. evaluate.py needs other prompts than training: build two sets.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/estimates"
    config.init = "shapes"
    config.model = "shapes_nano"
    config.num_steps = 400
    config.rows = 2
    config.budgets = ml_collections.ConfigDict({"text": 1200, "vit": 480, "vae": 0})
    config.seed = 0
    config.mesh = (1, -1, 1)
    config.ce_weight = 1.0
    config.save_every = 100
    config.keep = 2
    config.log_every = 10
    config.held_out = 100
    config.held_out_every = 100
    config.workers = 0
    config.optimizer = ml_collections.ConfigDict(
        {"learning_rate": 1e-4, "warmup_steps": 40, "schedule": "cosine", "eps": 1e-8}
    )
    config.compute = ml_collections.ConfigDict({"block_q": 64, "block_k": 64, "loss_chunk": 4096})
    # The question and the picture are all there is; without one of them an answer would be a guess.
    config.dropout = ml_collections.ConfigDict({"text": 0.0, "vae": 0.0, "vit": 0.0})
    return config

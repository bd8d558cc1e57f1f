"""The paper's run: BAGEL-7B learns plan, sketch, inspect, refine on 8 H100, all parameters, 10,000 steps.

python launch/convert.py --source=BAGEL-7B-MoT --target=out/bagel
python launch/build_data.py encode --checkpoint=out/bagel --data=out/process --output=out/process_latents
python launch/show.py plan --config=configs/bagel_7b_process.py --topology=h100:8
python launch/train.py --config=configs/bagel_7b_process.py --workdir=out/process_7b

Expect 59 GB a GPU (docs/plan.md) and, at 25 % MFU, 7.5 s a step: 10,000 steps in 21 hours. The paper reports GenEval
0.77 before and 0.83 after. Its resolution and the weight of its cross-entropy are not stated: here 512 px, at which
the three copies of an image are 3,423 tokens (at 1,024 px 13,098: a pack would hold two), and the base trainer's 1.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The keys are those of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/process_latents"
    config.init = "out/bagel"
    config.model = "bagel_7b"  # checked against init; it also lets launch/show.py plan do without the checkpoint
    config.num_steps = 10_000
    config.rows = 8  # a pack for each GPU
    # Of 33,000 tokens at most. The paper's three subsets (62,213 samples, prompts of 152.8 characters, 3.51 images in
    # the multi-turn ones) at 512 px, after condition dropout, are 59 % VAE, 35 % ViT and 6 % text tokens. 19 VAE copies
    # of 1,024 tokens and 8 ViT copies of 1,369 then fill 95 % of a pack; the longest trajectory (5 images drawn) needs
    # 10,240 and 6,845. Texts have an eighth to spare: their lengths are the least certain.
    config.budgets = ml_collections.ConfigDict({"text": 2048, "vit": 11008, "vae": 19456})
    config.seed = 0
    config.mesh = (1, -1, 1)  # FSDP over all: 16 bytes a parameter leave no room for copies
    config.accumulate = 1
    config.ce_weight = 1.0
    config.save_every = 500
    config.keep = 3
    config.log_every = 10
    config.workers = 8  # decoding 512 px pictures takes processes, not threads
    # The base trainer's Adam: (0.9, 0.95), eps 1e-15, no decay, clipped at 1; all are the defaults.
    config.optimizer = ml_collections.ConfigDict(
        {"learning_rate": 2e-5, "schedule": "cosine", "warmup_steps": 200, "ema_decay": 0.9999}
    )
    # "full" recomputes each layer: 22 GB of temporaries on an H100, where "dots" would need 112 and "none" 335.
    config.compute = ml_collections.ConfigDict({"dtype": "bfloat16", "remat": "full"})
    config.dropout = ml_collections.ConfigDict({"text": 0.1, "vae": 0.3, "vit": 0.3})
    config.mixture = ml_collections.ConfigDict()  # subsets in proportion of their documents, as the paper
    config.turns = "whole"
    config.too_long = "cut"
    config.broken = "skip"
    return config

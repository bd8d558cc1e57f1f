"""The paper's run: all parameters of BAGEL-7B learn plan, sketch, inspect and refine on 8 H100 in 10,000 steps.

python launch/convert.py --source=BAGEL-7B-MoT --target=out/bagel
python launch/build_data.py encode --checkpoint=out/bagel --data=out/process --output=out/process_latents
python launch/show.py plan --config=configs/bagel_7b_process.py --topology=h100:8
python launch/train.py --config=configs/bagel_7b_process.py --workdir=out/process_7b

Expect 59 GB per GPU (docs/plan.md) and, at 25 % MFU, 7.5 s per step: 10,000 steps in 21 hours. The paper reports
GenEval 0.77 before and 0.83 after. It states neither its resolution nor the weight of the cross-entropy. This config
uses 512 px, where the three copies of an image are 3,423 tokens (at 1,024 px they are 13,098, and a pack would hold two
images), and the weight of the base trainer, 1.

Variants, as flags of launch/train.py and launch/show.py plan:

--config.lora.rank=16                   low-rank adapters; with --config.compute.param_dtype=bfloat16 the frozen base
                                        takes half the memory
--config.accumulate=2 --config.rows=16  two packs per GPU, one after the other
--config.optimizer.factors='((".*/gen/.*", 1.0), ("(?!.*/gen/).*", 0.0))'
                                        trains only the generation expert
--config.optimizer.mu_dtype=bfloat16    saves 2 bytes per parameter; so does --config.optimizer.ema_dtype=bfloat16
--config.spike_factor=5                 skips updates whose loss or gradient norm is 5 times its running average
--config.keep_every=1000                keeps every 1,000th step's checkpoint besides the newest three
--config.wandb=PROJECT                  sends the curves to wandb as well as to TensorBoard
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/process_latents"
    config.init = "out/bagel"
    config.model = "bagel_7b"  # must match init; with it, launch/show.py plan needs no checkpoint
    config.num_steps = 10_000
    config.rows = 8  # one pack per GPU
    # At most 33,000 tokens. The paper's three subsets (62,213 samples, prompts of 152.8 characters, 3.51 images per
    # multi-turn sample) at 512 px, after condition dropout, are 59 % VAE, 35 % ViT and 6 % text tokens. 19 VAE copies
    # of 1,024 tokens and 8 ViT copies of 1,369 tokens fill 95 % of a pack. The longest trajectory (5 drawn images)
    # needs 10,240 VAE and 6,845 ViT tokens. The text budget has a margin of an eighth, since text lengths are least
    # certain.
    config.budgets = ml_collections.ConfigDict({"text": 2048, "vit": 11008, "vae": 19456})
    config.seed = 0
    config.mesh = (1, -1, 1)  # FSDP over all GPUs: at 16 bytes per parameter copies do not fit
    config.accumulate = 1
    config.ce_weight = 1.0
    config.save_every = 500
    config.keep = 3
    config.log_every = 10
    config.workers = 8  # threads are too slow to decode 512 px pictures
    # Adam as in the base trainer: b1 0.9, b2 0.95, eps 1e-15, no weight decay, clipping at 1. These are the defaults.
    config.optimizer = ml_collections.ConfigDict(
        {"learning_rate": 2e-5, "schedule": "cosine", "warmup_steps": 200, "ema_decay": 0.9999}
    )
    # "full" recomputes each layer: 22 GB of temporaries on an H100, where "dots" would need 112 and "none" 335.
    config.compute = ml_collections.ConfigDict({"dtype": "bfloat16", "remat": "full"})
    config.dropout = ml_collections.ConfigDict({"text": 0.1, "vae": 0.3, "vit": 0.3})
    config.mixture = ml_collections.ConfigDict()  # empty: in proportion to the documents, as in the paper
    config.turns = "whole"
    config.too_long = "cut"
    config.broken = "skip"
    return config

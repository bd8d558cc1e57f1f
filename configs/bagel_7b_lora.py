"""The paper's method on one 80 GB GPU: low-rank adapters of both experts of BAGEL-7B, exported as PEFT and merged.

python launch/convert.py --source=BAGEL-7B-MoT --target=out/bagel --dtype=bfloat16
python launch/build_data.py encode --checkpoint=out/bagel --data=out/process --output=out/process_latents
python launch/show.py plan --config=configs/bagel_7b_lora.py --topology=h100:1
python launch/train.py --config=configs/bagel_7b_lora.py --workdir=out/lora_7b
python launch/convert.py --source=out/lora_7b --target=out/lora_7b_peft --adapters
python launch/convert.py --source=out/lora_7b --target=out/lora_7b_merged --reverse

The last two lines write the adapters as a PEFT folder, and BAGEL's folder with the adapters merged. Sampling takes
the run as it is: launch/sample.py --checkpoint=out/lora_7b.

The base is frozen in bfloat16, 29 GB. Adapters, moments and average are 80.7 million values each, in float32. A pack of
the paper's run is divided into eight steps, so 80,000 steps see the paper's samples.

Variants, as flags of launch/train.py and launch/show.py plan:

--config.lora.init=FOLDER               starts from a PEFT adapter; lora.rank must be its rank
--config.lora.kernels='language/layers/gen/.*'
                                        adapts the generation expert only
--config.accumulate=8 --config.rows=8 --config.num_steps=10000
                                        the paper's batch: eight packs a step, one after the other
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/process_latents"
    config.init = "out/bagel"
    config.model = "bagel_7b"  # must match init; with it, launch/show.py plan needs no checkpoint
    config.num_steps = 10_000
    config.rows = 1
    # See bagel_7b_process.py: the paper's data fill 95 % of these 32,512 slots.
    config.budgets = ml_collections.ConfigDict({"text": 2048, "vit": 11008, "vae": 19456})
    config.seed = 0
    config.mesh = (1, 1, 1)
    config.accumulate = 1
    config.ce_weight = 1.0
    config.save_every = 500
    config.keep = 3
    config.log_every = 10
    config.workers = 8  # threads are too slow to decode 512 px pictures
    # All linear kernels of both experts. Adapters need a larger learning rate than whole kernels (arXiv 2106.09685).
    config.lora = ml_collections.ConfigDict({"rank": 16, "alpha": 32.0, "kernels": "language/layers/.*"})
    config.optimizer = ml_collections.ConfigDict(
        {"learning_rate": 1e-4, "schedule": "cosine", "warmup_steps": 200, "ema_decay": 0.999}
    )
    # The frozen base may be rounded to bfloat16, as it is published; the adapters are float32.
    config.compute = ml_collections.ConfigDict({"dtype": "bfloat16", "param_dtype": "bfloat16", "remat": "full"})
    config.dropout = ml_collections.ConfigDict({"text": 0.1, "vae": 0.3, "vit": 0.3})
    config.mixture = ml_collections.ConfigDict()  # empty: in proportion to the documents, as in the paper
    config.turns = "whole"
    config.too_long = "cut"
    config.broken = "skip"
    return config

"""Direct preference optimisation of a process model of BAGEL's sizes on 8 H100, from its own judged trajectories.

python launch/sample.py --checkpoint=out/process_7b --prompts=prompts.txt --samples=4 --output=out/tries
python launch/build_data.py import --format=preferences --source=out/tries --output=out/pairs_raw
python launch/build_data.py encode --data=out/pairs_raw --checkpoint=out/process_7b --output=out/pairs
python launch/show.py plan --config=configs/bagel_7b_dpo.py --topology=h100:8
python launch/train.py --config=configs/bagel_7b_dpo.py --workdir=out/dpo_7b

Beforehand another judge's scores go into out/tries/scores.jsonl (pdgen/synthesis/importers/preferences.py). The whole
model is trained, beside a frozen copy as the reference, and every pack runs through both.

Expect about 66 GB of 73.6 usable per GPU: 58.4 of configs/bagel_7b_process.py (docs/plan.md), whose packs these are,
and 7.4 of the reference in float32. What the reference's forward pass adds is not known until the plan is compiled.

Variants, as flags of launch/train.py and launch/show.py plan:

--config.lora.rank=16 --config.compute.param_dtype=bfloat16 --config.optimizer.learning_rate=5e-6
                                        adapters; the reference is then the base under them and takes no memory
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/pairs"
    config.init = "out/process_7b"  # also the reference
    config.model = "bagel_7b"  # must match init; with it, launch/show.py plan needs no checkpoint
    config.num_steps = 2000
    config.rows = 8  # one pack per GPU
    # As bagel_7b_process.py: a pair of trajectories with two drawn images each fits. Longer pairs are refused by name.
    config.budgets = ml_collections.ConfigDict({"text": 2048, "vit": 11008, "vae": 19456})
    config.seed = 0
    config.mesh = (1, -1, 1)
    config.turns = "pairs"
    # At 512 px a picture is 1,024 tokens of 64 values, 64 times those of shapes world.
    config.preference = ml_collections.ConfigDict({"beta": 0.1, "flow_weight": 0.002})
    config.ce_weight = 1.0
    config.save_every = 250
    config.keep = 2
    config.log_every = 10
    config.held_out = 64
    config.workers = 8
    config.optimizer = ml_collections.ConfigDict({"learning_rate": 1e-6, "schedule": "constant", "warmup_steps": 100})
    config.compute = ml_collections.ConfigDict({"dtype": "bfloat16", "remat": "full"})
    config.dropout = ml_collections.ConfigDict({"text": 0.0, "vae": 0.0, "vit": 0.0})
    config.broken = "skip"
    return config

"""The paper's recipe on a pod of 64 or more H100, with one pack per GPU.

python launch/show.py plan --config=configs/bagel_7b_pod.py --topology=h100:64
sbatch --nodes=8 launch/slurm/train.sh configs/bagel_7b_pod.py out/pod_7b
kubectl apply -f launch/k8s/train.yaml

Each host holds a copy of the parameters, sharded over its 8 GPUs, which NVLink connects. Only gradients travel between
hosts, once per step. For 128 GPUs set --config.rows=128. Expect 59 GB per GPU (docs/plan.md) and, at 25 % MFU, 7.5 s
per step of 2 million tokens: 2.6 hours.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/process_latents"
    config.init = "out/bagel"
    config.model = "bagel_7b"  # must match init; with it, launch/show.py plan needs no checkpoint
    config.num_steps = 1_250  # as many samples as 10,000 steps of 8 packs
    config.rows = 64  # one pack per GPU
    # See bagel_7b_process.py: the paper's data fill 95 % of these 32,512 slots.
    config.budgets = ml_collections.ConfigDict({"text": 2048, "vit": 11008, "vae": 19456})
    config.seed = 0
    config.mesh = (-1, 8, 1)  # FSDP over the 8 GPUs of a host, data parallelism over hosts
    config.accumulate = 1
    config.ce_weight = 1.0
    config.save_every = 100
    config.keep = 3
    config.log_every = 10
    config.workers = 8  # threads are too slow to decode 512 px pictures
    # Adam as in the base trainer. The batch is 8 times the paper's, so the learning rate is sqrt(8) times the paper's,
    # as is usual for Adam (arXiv 2006.09092), and the average decays as fast per sample: 0.9999 ** 8.
    config.optimizer = ml_collections.ConfigDict(
        {"learning_rate": 5.7e-5, "schedule": "cosine", "warmup_steps": 50, "ema_decay": 0.9992}
    )
    # "full" recomputes each layer: 22 GB of temporaries on an H100, where "dots" would need 112 and "none" 335.
    config.compute = ml_collections.ConfigDict({"dtype": "bfloat16", "remat": "full"})
    config.dropout = ml_collections.ConfigDict({"text": 0.1, "vae": 0.3, "vit": 0.3})
    config.mixture = ml_collections.ConfigDict()  # empty: in proportion to the documents, as in the paper
    config.turns = "whole"
    config.too_long = "cut"
    config.broken = "skip"
    return config

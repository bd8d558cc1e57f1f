"""The paper's recipe on a pod: 64 H100 and more, a pack for each GPU.

python launch/show.py plan --config=configs/bagel_7b_pod.py --topology=h100:64
sbatch --nodes=8 launch/slurm/train.sh configs/bagel_7b_pod.py out/pod_7b
kubectl apply -f launch/k8s/train.yaml

Within a host parameters are split over its 8 GPUs, which NVLink joins, and every host holds a copy of them: between
hosts only gradients travel, once a step. For 128 GPUs set --config.rows=128. Expect 59 GB a GPU (docs/plan.md) and, at
25 % MFU, 7.5 s a step of 2 million tokens: 2.6 hours.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The keys are those of ``pdgen.train.run_config.RunConfig``."""
    config = ml_collections.ConfigDict()
    config.data = "out/process_latents"
    config.init = "out/bagel"
    config.model = "bagel_7b"  # checked against init; it also lets launch/show.py plan do without the checkpoint
    config.num_steps = 1_250  # as many samples as 10,000 steps of 8 packs
    config.rows = 64  # a pack for each GPU
    # See bagel_7b_process.py: the paper's data fill 95 % of these 32,512 slots.
    config.budgets = ml_collections.ConfigDict({"text": 2048, "vit": 11008, "vae": 19456})
    config.seed = 0
    config.mesh = (-1, 8, 1)  # FSDP over a host's 8 GPUs, copies on the other hosts
    config.accumulate = 1
    config.ce_weight = 1.0
    config.save_every = 100
    config.keep = 3
    config.log_every = 10
    config.workers = 8  # decoding 512 px pictures takes processes, not threads
    # Adam as the base trainer's. A batch 8 times the paper's: the learning rate grows by sqrt(8), as is usual for Adam
    # (arXiv 2006.09092); the average forgets as fast per sample, 0.9999 ** 8.
    config.optimizer = ml_collections.ConfigDict(
        {"learning_rate": 5.7e-5, "schedule": "cosine", "warmup_steps": 50, "ema_decay": 0.9992}
    )
    # "full" recomputes each layer: 22 GB of temporaries on an H100, where "dots" would need 112 and "none" 335.
    config.compute = ml_collections.ConfigDict({"dtype": "bfloat16", "remat": "full"})
    config.dropout = ml_collections.ConfigDict({"text": 0.1, "vae": 0.3, "vit": 0.3})
    config.mixture = ml_collections.ConfigDict()  # subsets in proportion of their documents, as the paper
    config.turns = "whole"
    config.too_long = "cut"
    config.broken = "skip"
    return config

"""The three subsets for BAGEL-7B at the paper's counts, painted by FLUX.1-Kontext and judged by a chat model.

export OPENAI_API_KEY=...
python launch/build_data.py --config=configs/data_bagel.py --output=out/bagel --dry_run --scale=0.01
python launch/build_data.py --config=configs/data_bagel.py --output=out/bagel --scale=0.01
python launch/build_data.py encode --data=out/bagel --checkpoint=bagel --output=out/bagel-encoded

The first command prints the calls and their price without sending anything. prompts.txt holds your prompts, one per
line; prompts of GenEval are skipped. genref/ holds GenRef's archives. The chat model needs the extra `endpoint`.
Kontext needs 34 GB of GPU memory and the extra `teachers`; mind its licence (pdgen/teachers/kontext.py). For
self-sampled conflicts build multi_turn and train on it first, then set conflict.variant to "self" and
conflict.checkpoint.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.synthesis.settings.DatasetSettings``."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.shard_size = 10
    config.latents = False
    config.rewritten = 0.2
    config.max_images = 5
    config.allow_leaks = False
    config.multi_turn = ml_collections.ConfigDict({"count": 32012, "fault_rate": 0.0})
    config.conflict = ml_collections.ConfigDict(
        {"positive": 6905, "negative": 8296, "variant": "graph", "checkpoint": "", "temperature": 1.0}
    )
    config.alignment = ml_collections.ConfigDict({"positive": 5000, "negative": 10000, "archive": "genref"})
    config.teachers = ml_collections.ConfigDict(
        {
            "painter": "kontext",
            "judge": "endpoint",
            "writer": "endpoint",
            "prompts": "prompts.txt",
            "redraws": 2,
            "endpoint": {
                "url": "https://api.openai.com/v1",
                "model": "gpt-4o-2024-08-06",
                "cache": "out/answers",
                "key_variable": "OPENAI_API_KEY",
                "concurrency": 8,
                # Dollars per million tokens; check the current prices.
                "input_price": 2.5,
                "output_price": 10.0,
            },
            "kontext": {"size": 1024, "steps": 28},
        }
    )
    return config

"""Seconds to trace and compile the training step. The layers are scanned, so 28 take as long as 4.

    python -m benchmarks.compile_time --layers=4,28 --json

Nothing is computed: state and batch are shapes. ``--model=bagel_7b`` compiles the real sizes, for this machine.
"""

import dataclasses
import os
import sys
from typing import Any

import jax
from absl import app, flags

from benchmarks.result import get_cpu_name, get_versions, write_json
from pdgen.config import ComputeConfig, ModelConfig, get_preset
from pdgen.sequence.layout import Budgets
from pdgen.sharding import make_mesh
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.planning.plan import compile_step
from pdgen.train.state import StepConfig

FLAGS = flags.FLAGS
flags.DEFINE_list("layers", ["4", "28"], "layers of the language model")
flags.DEFINE_enum("model", "nano", ["nano", "tiny", "bagel_7b"], "preset whose widths are compiled")
flags.DEFINE_integer("scale", 1, "times 2,048 tokens of a pack", lower_bound=1)
flags.DEFINE_boolean("json", False, "write the result under benchmarks/results/")

STREAMS = Budgets(text=512, vit=256, vae=1280)  # one seventh ViT and two thirds VAE tokens, as packs have


def measure(model: ModelConfig, layers: int) -> dict[str, Any]:
    """Return the seconds of tracing and compiling for a model of so many layers."""
    model = dataclasses.replace(model, language=dataclasses.replace(model.language, num_layers=layers))
    optimizer = OptimizerConfig(ema_decay=0.9999)
    step = StepConfig(model, ComputeConfig(dtype="bfloat16", remat="full"), optimizer, num_steps=1000)
    budgets = Budgets(*(FLAGS.scale * size for size in dataclasses.astuple(STREAMS)))
    done = compile_step(step, budgets, 1, make_mesh((1, 1, 1), jax.devices()[:1]))
    return {"layers": layers, "trace_s": done.trace_seconds, "compile_s": done.compile_seconds}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    try:
        rows = [measure(get_preset(FLAGS.model), int(layers)) for layers in FLAGS.layers]
    except ValueError as fault:
        print(f"compile_time: {fault}", file=sys.stderr)
        sys.exit(2)
    for row in rows:
        print(
            f"{FLAGS.model}, {row['layers']:>2} layers: traced in {row['trace_s']:.1f} s, "
            f"compiled in {row['compile_s']:.1f} s"
        )
    if FLAGS.json:
        result = {
            "model": FLAGS.model,
            "tokens": FLAGS.scale * STREAMS.total,
            "rows": rows,
            "cpu": get_cpu_name(),
            "device": jax.devices()[0].device_kind,
            "versions": get_versions("jax"),
            "load": os.getloadavg()[0],
        }
        print(f"wrote {write_json(f'compile_time_{FLAGS.model}', result)}")


if __name__ == "__main__":
    app.run(main)

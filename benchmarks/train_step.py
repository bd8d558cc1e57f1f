"""Loss and gradients of one pack on a CPU: pdgen against the PyTorch reference, with the same weights and samples.

    python -m benchmarks.train_step --model=nano --threads=2 --json

Both run float32 in this process, on the same CPUs, alternating; each prints its median. Compilation is timed
separately. The reference is eager PyTorch written for speed: each expert is a dense product on its own tokens,
attention is ``scaled_dot_product_attention`` per sample. With several threads pdgen makes a device of each CPU and
gives each a pack of its share of the samples, as training does. ``--devices=1`` leaves the threads to XLA. Needs the
extra ``test``.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from jax.sharding import NamedSharding

from benchmarks.result import get_cpu_name, get_versions, time_alternately, write_json
from pdgen.config import ComputeConfig, ModelConfig, get_preset
from pdgen.data.loader import make_loader
from pdgen.models import bagel
from pdgen.sequence import layout
from pdgen.sharding import RULES, make_mesh, parameter_shardings
from pdgen.train.objectives.loss import loss_sums, total_loss
from pdgen.train.preflight import preflight
from pdgen.train.run_config import RunConfig, read_run_config
from pdgen.train.state import init_state, state_shardings
from pdgen.train.step import make_run_key, train_step
from tests.torch_reference import cases, packing
from tests.torch_reference.bagel import Bagel

FLAGS = flags.FLAGS
flags.DEFINE_enum("model", "nano", ["nano", "tiny"], "preset to run")
flags.DEFINE_integer("samples", 4, "trajectories, about 425 tokens each; a multiple of the devices", lower_bound=1)
flags.DEFINE_integer("threads", 1, "CPUs to use, the same for both", lower_bound=1)
flags.DEFINE_integer("devices", 0, "devices that pdgen makes of them, a pack each; 0 = as many as threads")
flags.DEFINE_integer("tile", 64, "tile of pdgen's attention, in tokens; small ones fit a CPU's cache", lower_bound=1)
flags.DEFINE_enum("remat", "dots", ["none", "dots", "full"], "activations pdgen keeps (see ComputeConfig)")
flags.DEFINE_integer("rounds", 5, "timed steps of each", lower_bound=1)
flags.DEFINE_string("config", None, "measure this run's steps instead of a single pack against PyTorch")
flags.DEFINE_string("data", None, "data set of that run")
flags.DEFINE_boolean("json", False, "write the result under benchmarks/results/")

PAD_TO = 64  # a stream's budget is a multiple of this, as a real pack's is
CE_WEIGHT = 1.0
ROWS = RULES.spec("batch")

Samples = list[list[packing.Segment]]


def make_samples(config: ModelConfig, count: int) -> Samples:
    """Return shapes-world trajectories: texts and 3 images of 64 x 64 pixels (16 VAE and 16 ViT tokens)."""
    maker = cases.SampleMaker(config, seed=0)
    return [maker.trajectory(45, [(4, 4)] * 3, (4, 4)) for _ in range(count)]


def make_jax_step(config: ModelConfig, model: Bagel, samples: Samples) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return a compiled step that returns the loss when all gradients are ready, with its compile time and tokens."""
    count = FLAGS.devices or FLAGS.threads
    mesh = make_mesh((count, 1, 1))
    params = jax.tree.map(jnp.asarray, cases.to_tree(config, model.state_dict().items()))
    params = jax.device_put(params, parameter_shardings(bagel.abstract_params(config), mesh))
    exact = [cases.to_pack(config, samples[row::count])[0] for row in range(count)]
    used = np.array([(len(p.text_ids), len(p.vit_positions), len(p.vae_positions)) for p in exact])
    budgets = -(-used.max(axis=0) // PAD_TO) * PAD_TO
    rows = [cases.to_pack(config, samples[row::count], budgets - used[row], row) for row in range(count)]
    batch, flow = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *rows), NamedSharding(mesh, ROWS))
    compute = ComputeConfig(block_q=FLAGS.tile, block_k=FLAGS.tile, remat=FLAGS.remat)

    def loss(params: Any, batch: layout.Pack, flow: Any) -> jax.Array:
        return total_loss(loss_sums(config, compute, params, batch, flow), CE_WEIGHT)

    start = time.perf_counter()
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss)).lower(params, batch, flow).compile()
    facts = {"devices": count, "compile_s": time.perf_counter() - start, "tokens": int(used.sum())}
    facts["slots"] = count * int(budgets.sum())
    return lambda: float(jax.block_until_ready(step(params, batch, flow))[0]), facts


def make_torch_step(config: ModelConfig, model: Bagel, samples: Samples) -> Callable[[], float]:
    """Return the reference's step on the same samples, with fresh gradients every time."""
    inputs, targets = packing.pack(samples, cases.random_switches(config))
    targets.ce_weight = CE_WEIGHT

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model.losses(inputs, targets)["loss"]
        loss.backward()
        return float(loss.detach())

    return step


def use_cpus(count: int, devices: int, samples: int) -> None:
    """Bind this process to ``count`` CPUs, from which XLA sizes its thread pool at its first use.

    Raises:
      ValueError: The process may not use so many CPUs, or the samples are not divisible by the devices.
    """
    if samples % devices:
        raise ValueError(f"--samples={samples} do not divide by {devices} devices; give a multiple")
    allowed = sorted(os.sched_getaffinity(0))
    if count > len(allowed):
        raise ValueError(f"--threads={count}, but this process may use {len(allowed)} CPUs; lower --threads")
    os.sched_setaffinity(0, allowed[:count])
    torch.set_num_threads(count)
    jax.config.update("jax_num_cpu_devices", devices)


def measure(config: ModelConfig) -> dict[str, Any]:
    """Run both and return every printed number.

    Raises:
      RuntimeError: The losses differ.
    """
    model, samples = cases.random_model(config, seed=0), make_samples(config, FLAGS.samples)
    ours, facts = make_jax_step(config, model, samples)
    theirs = make_torch_step(config, model, samples)
    losses = {"pdgen": ours(), "torch": theirs()}  # also warms up
    if abs(losses["pdgen"] - losses["torch"]) > 1e-4 * abs(losses["torch"]):
        raise RuntimeError(f"the losses differ: {losses}")
    seconds = time_alternately({"pdgen": ours, "torch": theirs}, FLAGS.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "model": FLAGS.model,
        "samples": FLAGS.samples,
        "threads": FLAGS.threads,
        **facts,
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses": losses,
        "seconds": seconds,
        "median_s": medians,
        "torch_over_pdgen": medians["torch"] / medians["pdgen"],
        "versions": get_versions("jax", "torch"),
        "cpu": get_cpu_name(),
        "load": os.getloadavg()[0],
    }


def measure_product_flops() -> float:
    """Return the float32 FLOP/s of large matrix products on all devices at once."""
    devices, side = jax.devices(), 2048
    mesh = jax.sharding.Mesh(devices, ("d",))
    split = NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    x = jax.device_put(np.ones((len(devices), side, side), np.float32), split)
    product = jax.jit(lambda x: jnp.einsum("dij,djk->dik", x, x), out_shardings=split)
    seconds = time_alternately({"product": lambda: float(jax.block_until_ready(product(x))[0, 0, 0])}, FLAGS.rounds + 1)
    return len(devices) * 2 * side**3 / statistics.median(seconds["product"][1:])


def measure_run(run: RunConfig) -> dict[str, Any]:
    """Run some steps of a run as training does, with its loader, and return every printed number."""
    with tempfile.TemporaryDirectory() as folder:
        base, source, mesh, config = preflight(run, pathlib.Path(folder) / "run", jax.devices())
    loader = make_loader(base.config, source, base.tokenizer, run.loader_config, 0, run.num_steps)
    with contextlib.closing(loader) as batches, jax.set_mesh(mesh):
        place = functools.partial(jax.device_put, device=NamedSharding(mesh, ROWS))
        state = jax.jit(functools.partial(init_state, config), out_shardings=state_shardings(config, mesh))
        state, key = state(jax.random.key(0)), make_run_key(run.seed, mesh)
        step = jax.jit(functools.partial(train_step, config), donate_argnums=0)
        start, seconds, sums = time.perf_counter(), [], []
        for number, batch in enumerate(batches):
            state, metrics = step(state, place(batch), key)
            metrics = jax.device_get(metrics)
            end = time.perf_counter()
            if number > 1:  # the first two compile
                seconds.append(end - start)
                sums.append([float(metrics[name]) for name in ("images", "tokens", "flops")])
            start = end
    images, tokens, flops = np.sum(sums, axis=0) / np.sum(seconds)
    peak = measure_product_flops()
    return {
        "config": FLAGS.config,
        "threads": FLAGS.threads,
        "devices": len(jax.devices()),
        "steps": len(seconds),
        "median_s": statistics.median(seconds),
        "images_per_second": images,
        "tokens_per_second": tokens,
        "flops": flops,
        "product_flops": peak,
        "share_of_products": flops / peak,
        "draws": run.draws,
        "optimizer": run.optimizer.name,
        "versions": get_versions("jax"),
        "cpu": get_cpu_name(),
        "load": os.getloadavg()[0],
    }


def read_run() -> RunConfig:
    """Return the run of ``--config`` on ``--data``, a few steps long. Raises ValueError for an invalid key."""
    spec = importlib.util.spec_from_file_location("config", FLAGS.config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = read_run_config(module.get_config().to_dict())
    warmup = dataclasses.replace(run.optimizer, warmup_steps=1)
    steps = 4 * FLAGS.rounds + 2
    return dataclasses.replace(run, data=FLAGS.data or run.data, num_steps=steps, optimizer=warmup, workers=0)


def report_run() -> None:
    """Measure the run of ``--config`` and print the result."""
    run = read_run()
    use_cpus(FLAGS.threads, FLAGS.devices or FLAGS.threads, run.rows)
    result = measure_run(run)
    print(
        f"{result['config']}: {result['images_per_second']:,.0f} noised images/s, {result['tokens_per_second']:,.0f} "
        f"tokens/s, {result['median_s']:.3f} s a step (median of {result['steps']}), {result['threads']} CPUs"
    )
    print(
        f"the model's operations: {result['flops'] / 1e9:.1f} GFLOP/s, {result['share_of_products']:.0%} of the "
        f"{result['product_flops'] / 1e9:.0f} GFLOP/s of large products"
    )
    if FLAGS.json:
        print(f"wrote {write_json(f'train_step_{pathlib.Path(FLAGS.config).stem}', result)}")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    if FLAGS.config:
        return report_run()
    try:
        use_cpus(FLAGS.threads, FLAGS.devices or FLAGS.threads, FLAGS.samples)
        result = measure(get_preset(FLAGS.model))
    except (ValueError, RuntimeError) as fault:
        print(f"train_step: {fault}", file=sys.stderr)
        sys.exit(2)
    print(
        f"{result['model']}: {result['parameters']:,} parameters, {result['tokens']:,} tokens in "
        f"{result['samples']} samples ({result['slots']:,} slots), float32, {result['threads']} CPUs, "
        f"devices of pdgen: {result['devices']}"
    )
    print(f"pdgen compiles in {result['compile_s']:.1f} s")
    for name, seconds in result["seconds"].items():
        median = result["median_s"][name]
        print(
            f"{name:6} {median:.3f} s a step, {result['tokens'] / median:,.0f} tokens/s "
            f"(median of {len(seconds)}; {min(seconds):.3f} to {max(seconds):.3f})"
        )
    print(f"PyTorch / pdgen: {result['torch_over_pdgen']:.2f}")
    if FLAGS.json:
        path = write_json(f"train_step_{result['model']}_{result['threads']}", result)
        print(f"wrote {path}")


if __name__ == "__main__":
    app.run(main)

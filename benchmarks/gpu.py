"""The speed of the 7B model on one accelerator: training, attention, an image, text.

    python -m benchmarks.gpu --json

Parts (``--parts``), each at the sizes of the flags:
  train      a training step at the model's width with ``--layers`` layers, as many as fit, extrapolated to all layers:
             the time outside the layers counts once. Tokens a second, and MFU as ``pdgen.train.monitor.flops`` counts
             it (None for a device whose peak is unknown).
  attention  one layer's attention, forward and backward, over a pack of ``--tokens``
  image      one picture of ``--side`` pixels with the whole model: all steps with guidance, and the decoder; also with
             steps extrapolated by TaylorSeer
  text       tokens a second, one by one, after a context of ``--context``, and the bytes of weights that are read

Weights are random; no time depends on them. Every part compiles first, then takes the median of ``--rounds``.
"""

import dataclasses
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding

from benchmarks.attention import compile_gradients
from benchmarks.process_pack import make_process_pack
from benchmarks.result import get_cpu_name, get_versions, write_json
from pdgen.config import ComputeConfig, ModelConfig, get_preset
from pdgen.flow.denoise import Contexts, Denoiser, ImageSettings, count_evaluations, generate_latents
from pdgen.models import autoencoder, bagel
from pdgen.models.attention import Intervals, Tile
from pdgen.models.context import add_text, empty_cache
from pdgen.sample.image import ImageGrid, decode, make_grid
from pdgen.sequence.images import position_ids
from pdgen.sequence.layout import Pack, stack
from pdgen.sharding import RULES, make_mesh
from pdgen.train.monitor.flops import model_flops, peak_flops
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.state import StepConfig, init_state, state_shardings
from pdgen.train.step import jit_step, make_run_key

PARTS = ("train", "attention", "image", "text")
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of this benchmark."""
    flags.DEFINE_list("parts", list(PARTS), "what to measure")
    flags.DEFINE_string("model", "bagel_7b", "preset")
    flags.DEFINE_list("layers", ["4", "8"], "layers of the training steps that are timed; two numbers")
    flags.DEFINE_integer("tokens", 33_000, "most tokens of a training pack", lower_bound=1)
    flags.DEFINE_integer("pack_side", 512, "pixels of its pictures", lower_bound=1)
    flags.DEFINE_integer("side", 1024, "pixels of the picture that is drawn", lower_bound=1)
    flags.DEFINE_integer("timesteps", 50, "points of its schedule", lower_bound=2)
    flags.DEFINE_integer("context", 100, "tokens of the prompt", lower_bound=1)
    flags.DEFINE_integer("words", 100, "tokens that are written", lower_bound=1)
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of activations; when sampling, of weights too")
    flags.DEFINE_enum("remat", "full", ["none", "dots", "full"], "see ComputeConfig")
    flags.DEFINE_integer("tile", 256, "of the blockwise attention, in tokens", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "timed runs", lower_bound=1)
    flags.DEFINE_boolean("json", False, "write the result under benchmarks/results/")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the flags.

    Attributes:
      model: The preset.
      compute: Dtypes, remat, tiles.
      layers: Layers of the two timed training steps.
      tokens: The largest number of tokens of the training pack.
      pack_side: Pixels of its pictures.
      side: Pixels of the drawn picture.
      timesteps: Points of its schedule.
      context: Tokens before the generated text.
      words: Tokens of the generated text.
      rounds: Timed runs.
    """

    model: ModelConfig
    compute: ComputeConfig
    layers: tuple[int, int]
    tokens: int
    pack_side: int
    side: int
    timesteps: int
    context: int
    words: int
    rounds: int


def measure_median(call: Callable[[], Any], rounds: int) -> float:
    """Return the median seconds of a call that is compiled and warmed up."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def replace_layers(model: ModelConfig, layers: int) -> ModelConfig:
    """Return the model with another number of layers of the language model."""
    return dataclasses.replace(model, language=dataclasses.replace(model.language, num_layers=layers))


def measure_step(sizes: Sizes, layers: int, pack: Pack) -> dict[str, float]:
    """Measure one training step of a model of so many layers: seconds, and peak bytes."""
    optimizer = OptimizerConfig(schedule="constant")
    step = StepConfig(replace_layers(sizes.model, layers), sizes.compute, optimizer, num_steps=1)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    batch = jax.device_put(stack([pack]), NamedSharding(mesh, RULES.spec("batch")))
    with jax.set_mesh(mesh):
        key = make_run_key(0, mesh)
        state = jax.jit(functools.partial(init_state, step), out_shardings=state_shardings(step, mesh))(key)
        compiled = jit_step(step).lower(state, batch, key).compile()
        stats = compiled.memory_analysis()

        def run() -> Any:
            nonlocal state
            state, metrics = compiled(state, batch, key)
            return metrics

        jax.block_until_ready(run())
        seconds = measure_median(run, sizes.rounds)
    peak_bytes = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    return {"layers": layers, "seconds": seconds, "bytes": peak_bytes}


def measure_train(sizes: Sizes) -> dict[str, Any]:
    """Measure steps of both depths and extrapolate to all layers, each of which adds the same time."""
    pack, lengths = make_process_pack(sizes.model, sizes.pack_side, sizes.tokens)
    few, many = (measure_step(sizes, layers, pack) for layers in sizes.layers)
    each = (many["seconds"] - few["seconds"]) / (many["layers"] - few["layers"])
    whole = sizes.model.language.num_layers
    seconds = few["seconds"] + each * (whole - few["layers"])
    flops, peak = model_flops(sizes.model, sum(lengths), sum(n * n for n in lengths)), get_device_peak()
    return {
        "measured": [few, many],
        "tokens": sum(lengths),
        "slots": len(pack.rotary),
        "samples": len(lengths),
        "layers": whole,
        "seconds_a_layer": each,
        "extrapolated_seconds": seconds,
        "tokens_per_second": sum(lengths) / seconds,
        "flops": flops,
        "mfu": flops / seconds / peak if peak else None,
    }


def get_device_peak() -> float | None:
    """Return the device's peak FLOP/s, None if unknown."""
    return peak_flops(jax.devices()[0].device_kind)


def measure_attention(sizes: Sizes) -> dict[str, Any]:
    """Measure forward and backward of one layer's attention over the training pack."""
    pack, lengths = make_process_pack(sizes.model, sizes.pack_side, sizes.tokens)
    intervals = Intervals(*(jnp.asarray(x)[None] for x in (pack.k_start, pack.k_end, pack.q_start, pack.q_end)))
    language = sizes.model.language
    heads = (language.num_heads, language.num_kv_heads, language.head_dim)
    tile = Tile(sizes.compute.block_q, sizes.compute.block_k)
    run, facts = compile_gradients(intervals, heads, sizes.compute.dtype, tile)
    return {"tokens": sum(lengths), **facts, "seconds": statistics.median(run() for _ in range(sizes.rounds))}


def make_sampling_params(sizes: Sizes) -> dict[str, Any]:
    """Return random weights of model and autoencoder in the dtype of the activations."""
    dtype = jnp.dtype(sizes.compute.dtype)
    config = sizes.model
    return {
        "model": jax.jit(lambda: bagel.init_params(config, jax.random.key(0), dtype))(),
        "autoencoder": jax.jit(lambda: autoencoder.init_params(config.autoencoder, jax.random.key(1), dtype))(),
    }


def draw_picture(denoiser: Denoiser, grid: ImageGrid, context: int, params: dict[str, Any], noise: Any) -> Any:
    """Draw one row, from prompt and noise to pixels."""
    config, compute = denoiser.config, denoiser.compute
    cache = empty_cache(config, 1, context, jnp.dtype(compute.dtype))
    ids = jnp.ones((1, context), jnp.int32)
    cache, _ = add_text(config, compute, params["model"], cache, ids, jnp.array([context]))
    nothing = jnp.zeros(1, jnp.int32)
    contexts = Contexts(cache, nothing, nothing, None, jnp.zeros(1, bool))
    positions = jnp.asarray(position_ids(grid.latents, config.max_latent_size))[None]
    latents = generate_latents(denoiser, params["model"], contexts, noise, positions)
    return decode(config, grid, params, latents)


def measure_image(sizes: Sizes, params: dict[str, Any]) -> dict[str, Any]:
    """Measure the seconds of a picture with every step computed and with TaylorSeer, and the forward passes of each."""
    config, grid = sizes.model, make_grid(sizes.model, sizes.side, sizes.side)
    noise = jax.random.normal(jax.random.key(2), (1, int(np.prod(grid.latents)), config.latent_dim))
    result = {"side": sizes.side, "timesteps": sizes.timesteps}
    for name, taylorseer in (("every_step", False), ("taylorseer", True)):
        settings = ImageSettings(num_timesteps=sizes.timesteps, taylorseer=taylorseer)
        draw = functools.partial(draw_picture, Denoiser(config, sizes.compute, settings, (1, 2)), grid, sizes.context)
        compiled = jax.jit(draw).lower(params, noise).compile()
        jax.block_until_ready(compiled(params, noise))
        seconds = measure_median(functools.partial(compiled, params, noise), sizes.rounds)
        result[name] = {"seconds": seconds, "forward_passes": count_evaluations(settings, False).all}
    return result


def generate_words(sizes: Sizes, params: dict[str, Any], first: jax.Array) -> jax.Array:
    """Generate greedy tokens [words] after a context, one row."""
    config, compute = sizes.model, sizes.compute
    cache = empty_cache(config, 1, sizes.context + sizes.words, jnp.dtype(compute.dtype))
    ids = jnp.ones((1, sizes.context), jnp.int32)
    cache, _ = add_text(config, compute, params, cache, ids, jnp.array([sizes.context]))

    def step(carry: tuple, _: None) -> tuple:
        cache, token = carry
        cache, hidden = add_text(config, compute, params, cache, token[None, None], jnp.ones(1, jnp.int32))
        token = jnp.argmax(bagel.logits(params, hidden)[0, 0]).astype(jnp.int32)
        return (cache, token), token

    return jax.lax.scan(step, (cache, first), length=sizes.words)[1]


def measure_text(sizes: Sizes, params: dict[str, Any]) -> dict[str, float]:
    """Measure tokens a second of one text, and return the bytes of weights that a token reads."""
    tree, first = params["model"], jnp.array(3, jnp.int32)
    compiled = jax.jit(functools.partial(generate_words, sizes)).lower(tree, first).compile()
    jax.block_until_ready(compiled(tree, first))
    seconds = measure_median(functools.partial(compiled, tree, first), sizes.rounds)
    read = (tree["language"]["layers"]["und"], tree["language"]["head"])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(read))
    speed = sizes.words / seconds
    return {"tokens_per_second": speed, "bytes_a_token": size, "bytes_per_second": size * speed}


def measure(sizes: Sizes, parts: list[str]) -> dict[str, Any]:
    """Return every part's numbers by its name."""
    result: dict[str, Any] = {}
    for name, part in (("train", measure_train), ("attention", measure_attention)):
        if name in parts:
            result[name] = part(sizes)
    if {"image", "text"} & set(parts):
        params = make_sampling_params(sizes)
        for name, part in (("image", measure_image), ("text", measure_text)):
            if name in parts:
                result[name] = part(sizes, params)
    return result


def read_flags() -> Sizes:
    """Return the sizes of the flags. Raises ValueError for an unknown part or invalid layers."""
    if unknown := set(FLAGS.parts) - set(PARTS):
        raise ValueError(f"--parts: {', '.join(sorted(unknown))} unknown; choose of {', '.join(PARTS)}")
    layers = tuple(int(n) for n in FLAGS.layers)
    if len(layers) != 2 or not 0 < layers[0] < layers[1]:
        raise ValueError(f"--layers={','.join(FLAGS.layers)}: expected two numbers, the smaller one first")
    compute = ComputeConfig(dtype=FLAGS.dtype, remat=FLAGS.remat, block_q=FLAGS.tile, block_k=FLAGS.tile)
    names = ("tokens", "pack_side", "side", "timesteps", "context", "words", "rounds")
    return Sizes(get_preset(FLAGS.model), compute, layers, **{name: FLAGS[name].value for name in names})


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    try:
        sizes = read_flags()
        result = measure(sizes, FLAGS.parts)
    except (ValueError, jax.errors.JaxRuntimeError) as fault:
        print(f"gpu: {str(fault).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    device = jax.devices()[0].device_kind
    print(f"{FLAGS.model} on {device}")
    for name, part in result.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in part.items()))
    if FLAGS.json:
        result |= {
            "model": FLAGS.model,
            "dtype": FLAGS.dtype,
            "remat": FLAGS.remat,
            "tile": FLAGS.tile,
            "device": device,
            "date": time.strftime("%Y-%m-%d"),
            "cpu": get_cpu_name(),
            "load": os.getloadavg()[0],
            "versions": get_versions("jax", "jaxlib"),
        }
        print(f"wrote {write_json('gpu_' + device.replace(' ', '_'), result)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)

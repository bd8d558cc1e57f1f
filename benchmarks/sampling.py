"""Sampling on a CPU, as ratios within one run: batches, searches, growing contexts, image scans, first images, texts.

    python -m benchmarks.sampling --mode=batch --model=nano --json

Modes, each with its own result:
  batch        trajectories a second, eight in one batch against the same eight one at a time
  search       stepwise best of two for eight prompts at once, against one prompt at a time with equally many rows
  context      a trajectory with a growing context against one that prefills its history again before every segment
  scan         an image's Euler steps against the PyTorch reference: same weights, context and noise
  first_image  seconds until the first picture of a trajectory, with the parts of plan and picture
  text         tokens a second against the limit that the memory's bandwidth sets
  all          all modes, one after the other

Weights are random, so a text runs to its limit and a trajectory runs until all images are drawn. Compared calls
alternate, so that a slow phase of the machine affects both; ratios are medians over the rounds. Compilation is not
timed. Needs the extra ``test``.
"""

import os

# One thread of XLA and one of PyTorch, unless the environment says otherwise: on a busy machine threads that wait for
# each other measure the machine. Read at the first import of numpy and jax.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from benchmarks import image_scan
from benchmarks.result import get_cpu_name, get_versions, time_alternately, write_json
from pdgen.assets import shapes_folder
from pdgen.checkpoints.load import LoadedModel
from pdgen.config import ComputeConfig, ModelConfig, get_preset
from pdgen.flow.denoise import ImageSettings
from pdgen.models import autoencoder, bagel
from pdgen.models.context import empty_cache
from pdgen.sample.model import make_model
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings
from pdgen.sample.strategies import table as strategies
from pdgen.sample.strategies.search import StepwiseBestOfN
from pdgen.sample.strategies.task import Task
from pdgen.sample.text import TextSettings, count_text_slots, write_text
from pdgen.sequence.grammar import SWITCHES
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Mode, Trajectory

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "mode", "all", ["batch", "search", "context", "scan", "first_image", "text", "all"], "what to measure"
)
flags.DEFINE_enum("model", "nano", ["nano", "tiny"], "preset to run")
flags.DEFINE_integer("batch", 8, "rows of the batch", lower_bound=2)
flags.DEFINE_integer("images", 2, "images of a trajectory", lower_bound=1)
flags.DEFINE_integer("timesteps", 20, "points of the image schedule", lower_bound=2)
flags.DEFINE_integer("words", 40, "tokens of a text", lower_bound=1)
flags.DEFINE_integer("tile", 64, "tile of pdgen's attention, in tokens; small ones fit a CPU's cache", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "timed runs of each", lower_bound=1)
flags.DEFINE_boolean("json", False, "write the results under benchmarks/results/")

AIM = 3.0  # times the trajectories a second of batch 1
PROMPT = "A picture of two red circles left of a blue square, and a small green star above the blue square."
SEARCHED = 40  # seeds for each trajectory of the batch, at most
SIDE = 64  # pixels
PRODUCTS = 20  # in a row, to measure the memory
BUSY = 1536  # tokens, about as many as eight images with three branches have

Seconds = dict[str, list[float]]


def make_compute_config() -> ComputeConfig:
    """Return how pdgen's model is computed."""
    return ComputeConfig(block_q=FLAGS.tile, block_k=FLAGS.tile)


def make_sampler(config: ModelConfig) -> Sampler:
    """Return a sampler with random weights whose trajectories end only at the limit of images."""
    params = {
        "model": bagel.init_params(config, jax.random.key(0)),
        "autoencoder": autoencoder.init_params(config.autoencoder, jax.random.key(1)),
    }
    model = make_model(LoadedModel(config, params, load_tokenizer(shapes_folder())), make_compute_config())
    switches = model.automaton.switches.copy()
    switches[switches.sum(1) > 1, SWITCHES.index("end")] = False
    return Sampler(dataclasses.replace(model, automaton=dataclasses.replace(model.automaton, switches=switches)))


def make_settings(mode: Mode = "process") -> SampleSettings:
    """Return the settings of the flags."""
    return SampleSettings(
        mode=mode,
        height=SIDE,
        width=SIDE,
        max_images=FLAGS.images,
        max_prompt_tokens=64,
        text=TextSettings(max_tokens=FLAGS.words, temperature=1.0),
        image=ImageSettings(num_timesteps=FLAGS.timesteps),
    )


def time_compiled(runs: dict[str, Callable[[], Any]]) -> Seconds:
    """Return the seconds of ``--rounds`` calls of each function, alternating, after one that compiles."""
    for run in runs.values():
        run()
    return time_alternately(runs, FLAGS.rounds)


def compute_ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """Return the median over the rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast]))


def measure_batch(config: ModelConfig) -> dict[str, Any]:
    """Measure the same trajectories in one batch and one at a time, and an upper bound of a batch's speedup."""
    sampler, rows = make_sampler(config), FLAGS.batch
    together = dataclasses.replace(make_settings(), batch_size=rows)
    seeds = find_full_length_seeds(sampler, together, rows)
    seconds = time_compiled(
        {
            "together": lambda: sampler([PROMPT] * rows, seeds, together),
            "alone": lambda: [sampler([PROMPT], [seed], make_settings()) for seed in seeds],
        }
    )
    rates = {name: rows / statistics.median(taken) for name, taken in seconds.items()}
    operations, peak = count_products(sampler, sampler([PROMPT] * rows, seeds, together)), measure_peak(config)
    return {
        "rows": rows,
        "seeds": seeds,
        "seconds": seconds,
        "trajectories_per_second": rates,
        "aim": AIM,
        "speedup": compute_ratio(seconds, "alone", "together"),
        "operations": operations,
        "operations_per_second": peak,
        "bound_speedup": statistics.median(seconds["alone"]) * peak / operations,
    }


def find_full_length_seeds(sampler: Sampler, how: SampleSettings, count: int) -> list[int]:
    """Return seeds of trajectories that draw all their images, so that no row of the batch is idle."""
    full: list[int] = []
    for first in range(0, SEARCHED * count, 4 * count):
        seeds = range(first, first + 4 * count)
        full += [one.seed for one in sampler([PROMPT] * len(seeds), seeds, how) if len(one.images) == how.max_images]
        if len(full) >= count:
            return full[:count]
    few = f"only {len(full)} of {SEARCHED * count} trajectories draw {how.max_images} images"
    raise RuntimeError(f"{few}; give more --words")


def count_products(sampler: Sampler, drawn: list[Trajectory]) -> float:
    """Return the floating-point operations of the layers' matrix products, without attention, autoencoder and ViT."""
    layers = sampler.model.params["model"]["language"]["layers"]
    span = (SIDE // sampler.model.config.latent_stride) ** 2 + 2
    gen, und = (sum(leaf.size for leaf in jax.tree.leaves(layers[expert])) for expert in ("gen", "und"))
    costs = [one.costs for one in drawn]
    return 2 * sum(c["network_evaluations"] * span * gen + c["prefilled_tokens"] * und for c in costs)


def measure_peak(config: ModelConfig) -> float:
    """Return the operations a second of the model's largest matrix product on enough tokens to saturate the machine."""
    width, wide = config.language.hidden_size, config.language.intermediate_size
    x, weights = jnp.ones((BUSY, width)), jnp.ones((width, wide))
    product = jax.jit(lambda x, weights: x @ weights)
    return 2 * BUSY * width * wide / time_fastest(lambda: product(x, weights).block_until_ready())


def time_fastest(call: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of ten calls, after one that compiles."""
    best = math.inf
    for number in range(11):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start) if number else best
    return best


def measure_search(config: ModelConfig) -> dict[str, Any]:
    """Measure stepwise best of two, all prompts at once and one at a time, with equal numbers of rows."""
    sampler, how = make_sampler(config), dataclasses.replace(make_settings(), batch_size=FLAGS.batch)
    seeds = list(range(FLAGS.batch))

    def searched(groups: list[list[int]]) -> list[list[str]]:
        drawn = [
            strategies.run_strategy(StepwiseBestOfN(n=2), Task(sampler, [PROMPT] * len(s), s, how)) for s in groups
        ]
        return [[getattr(stage, "text", stage.stage) for stage in one.stages] for group in drawn for one in group]

    groups = {"side_by_side": [seeds], "one_by_one": [[seed] for seed in seeds]}
    if searched(groups["side_by_side"]) != searched(groups["one_by_one"]):
        raise RuntimeError("the trajectories differ, so the two times are not comparable")
    seconds = time_compiled({name: lambda each=each: searched(each) for name, each in groups.items()})
    return {"prompts": len(seeds), "seconds": seconds, "speedup": compute_ratio(seconds, "one_by_one", "side_by_side")}


def measure_context(config: ModelConfig) -> dict[str, Any]:
    """Measure one trajectory with a growing context, and with its history prefilled again before every segment.

    Both draw the same. The history is prefilled for the full context and, for image guidance, for the texts: twice a
    step.
    """
    sampler, how = make_sampler(config), dataclasses.replace(make_settings(), max_images=max(3, FLAGS.images))
    [start] = sampler.make_starts([PROMPT], [0], how)

    def growing() -> list[str]:
        one = sampler.make_batch([start], how)
        while one.list_active():
            one.step()
        return [getattr(stage, "text", stage.stage) for stage in one.make_trajectory(0).stages]

    def prefill_again() -> list[str]:
        now = start
        while now.stop_reason is None:
            one = sampler.make_batch([now], how)
            one.settle()
            if one.list_active():
                one.step()
            now = one.make_trajectory(0)
        return [getattr(stage, "text", stage.stage) for stage in now.stages]

    stages = growing()
    if stages != prefill_again():
        raise RuntimeError("the trajectories differ, so the two times are not comparable")
    seconds = time_compiled({"growing": growing, "anew": prefill_again})
    return {"segments": len(stages), "seconds": seconds, "speedup": compute_ratio(seconds, "anew", "growing")}


def measure_scan(config: ModelConfig) -> dict[str, Any]:
    """Measure the Euler steps of one image. Raises RuntimeError if the two latents differ."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    seconds = time_compiled(
        image_scan.make_draws(config, ImageSettings(num_timesteps=FLAGS.timesteps), make_compute_config())
    )
    return {"seconds": seconds, "speedup": compute_ratio(seconds, "torch", "pdgen")}


def measure_first_image(config: ModelConfig) -> dict[str, Any]:
    """Measure the seconds until a trajectory's first picture, in modes "process" (with a plan) and "single_pass"."""
    sampler, parts = make_sampler(config), {}

    def until_image(mode: Mode) -> None:
        for _, stage, image in sampler.stream([PROMPT], [0], make_settings(mode)):
            parts[mode, stage.stage] = stage.seconds
            if image is not None:
                return

    seconds = time_compiled({mode: lambda mode=mode: until_image(mode) for mode in ("process", "single_pass")})
    medians = {mode: statistics.median(taken) for mode, taken in seconds.items()}
    last = {" ".join(key): taken for key, taken in parts.items()}
    return {"seconds": seconds, "median_s": medians, "parts_of_the_last": last}


def measure_text(config: ModelConfig) -> dict[str, Any]:
    """Measure tokens a second of one row and of a batch, against bandwidth over the bytes that one token reads."""
    sampler, sizes = make_sampler(config), (1, FLAGS.batch)
    calls = {str(rows): make_writer(sampler, rows) for rows in sizes}
    tokens = {rows: int(np.asarray(call()).sum()) for rows, call in calls.items()}
    read = count_text_bytes(sampler.model.params["model"])
    bandwidth = measure_bandwidth(read)
    seconds = time_compiled(calls)
    rates = {rows: tokens[rows] / statistics.median(taken) for rows, taken in seconds.items()}
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": rates,
        "bytes_a_token": read,
        "memory_bytes_per_second": bandwidth,
        "bound_tokens_per_second": bandwidth / read,
        "share_of_bound": rates["1"] * read / bandwidth,
    }


def make_writer(sampler: Sampler, rows: int) -> Callable[[], jax.Array]:
    """Return a call that generates one long text in each of ``rows`` fresh contexts and returns their lengths."""
    model, how = sampler.model, TextSettings(8 * FLAGS.words, 1.0)
    cache = empty_cache(model.config, rows, count_text_slots(how, model.grammar))
    write = jax.jit(write_text, static_argnums=(0, 1, 2))
    start, keys = np.full(rows, model.automaton.starts["plan"], np.int32), jax.random.split(jax.random.key(0), rows)

    def run() -> jax.Array:
        _, written = write(
            model.static,
            how,
            model.text_switches,
            model.params["model"],
            model.grammar,
            cache,
            (start, np.ones(rows, bool), keys),
        )
        return jax.block_until_ready(written.count)

    return run


def count_text_bytes(params: dict[str, Any]) -> int:
    """Return the bytes of all parameters that a text token reads: the understanding expert and the head."""
    language = {name: tree for name, tree in params["language"].items() if name != "embed"}
    leaves = jax.tree_util.tree_leaves_with_path(language)
    return sum(leaf.nbytes for path, leaf in leaves if "gen" not in {key.key for key in path})


def measure_bandwidth(size: int) -> float:
    """Return the bytes a second that a product of a matrix of ``size`` bytes with a vector reads; the best of ten.

    The matrix is as large as what a token reads, so that both are in the same cache or memory.
    """
    side = math.isqrt(size // 4)
    matrix = jax.random.normal(jax.random.key(0), (side, side)) / math.sqrt(side)
    chain = jax.jit(lambda m, v: jax.lax.scan(lambda v, _: (m @ v, None), v, length=PRODUCTS)[0])
    vector = jnp.ones(side)
    return PRODUCTS * 4 * side**2 / time_fastest(lambda: chain(matrix, vector).block_until_ready())


def format_result(mode: str, result: dict[str, Any]) -> str:
    """Return the result as a line."""
    if mode == "batch":
        rates = result["trajectories_per_second"]
        return (
            f"{result['rows']} trajectories together {rates['together']:.3f} a second, one at a time "
            f"{rates['alone']:.3f}: {result['speedup']:.2f} times (aim {AIM:g}); "
            f"matrix products alone, at their peak, would allow {result['bound_speedup']:.2f} times"
        )
    if mode == "first_image":
        return ", ".join(f"{name} {value:.2f} s" for name, value in result["median_s"].items()) + " to the first image"
    if mode == "text":
        return (
            f"{result['tokens_per_second']['1']:,.0f} tokens/s, {result['share_of_bound']:.1%} of the bound of "
            f"{result['bound_tokens_per_second']:,.0f}; {FLAGS.batch} rows "
            f"{result['tokens_per_second'][str(FLAGS.batch)]:,.0f}"
        )
    (a, slow), (b, fast) = ((name, statistics.median(taken)) for name, taken in reversed(result["seconds"].items()))
    return f"{b} {fast:.3f} s, {a} {slow:.3f} s: {result['speedup']:.2f} times"


MODES = {
    "batch": measure_batch,
    "search": measure_search,
    "context": measure_context,
    "scan": measure_scan,
    "first_image": measure_first_image,
    "text": measure_text,
}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    flagged = {name: FLAGS[name].value for name in ("model", "images", "timesteps", "words", "tile", "rounds")}
    for mode in MODES if FLAGS.mode == "all" else [FLAGS.mode]:
        try:
            result = MODES[mode](get_preset(FLAGS.model))
        except (ValueError, RuntimeError) as fault:
            print(f"sampling: {mode}: {fault}", file=sys.stderr)
            sys.exit(2)
        print(f"{mode}, {FLAGS.model}: {format_result(mode, result)}")
        if FLAGS.json:
            about = {
                "threads": os.environ["OMP_NUM_THREADS"],
                "xla_flags": os.environ["XLA_FLAGS"],
                "cpu": get_cpu_name(),
            }
            whole = {"mode": mode, **flagged, **result, **about, "versions": get_versions("jax", "torch")}
            print(f"wrote {write_json(f'sampling_{FLAGS.model}_{mode}', whole)}")


if __name__ == "__main__":
    app.run(main)

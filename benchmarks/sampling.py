"""Sampling on a CPU, as ratios within one run: batches, searches, growing contexts, image scans, first images, texts.

    python -m benchmarks.sampling --mode=batch --model=nano --json

Modes, each a result of its own:
  batch        trajectories a second, eight in one batch beside the same eight one at a time
  search       stepwise best of two for eight prompts side by side, beside one prompt at a time in rows as many
  context      a trajectory with its growing context beside one that reads its history anew before every segment
  scan         an image's Euler steps beside the PyTorch reference: same weights, context and noise
  first_image  seconds until the first picture of a trajectory stands, and of these the plan's and the picture's
  text         tokens a second beside what the memory's bandwidth allows
  all          one after the other

Weights are random, so a text runs to its limit and a trajectory goes on until its images are drawn. What is compared
runs in turns, so that a slow spell of the machine hits both; ratios are medians over the rounds. Compiling is not
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
from tqdm import tqdm

from benchmarks import image_scan
from benchmarks.result import cpu_name, versions, write_json
from pdgen.assets import shapes_folder
from pdgen.checkpoints.load import Loaded
from pdgen.config import ComputeConfig, ModelConfig, preset
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


def compute() -> ComputeConfig:
    """How pdgen's model is evaluated."""
    return ComputeConfig(block_q=FLAGS.tile, block_k=FLAGS.tile)


def make_sampler(config: ModelConfig) -> Sampler:
    """A sampler with random weights whose trajectories end at the limit of images alone."""
    params = {
        "model": bagel.init_params(config, jax.random.key(0)),
        "autoencoder": autoencoder.init_params(config.autoencoder, jax.random.key(1)),
    }
    model = make_model(Loaded(config, params, load_tokenizer(shapes_folder())), compute())
    switches = model.automaton.switches.copy()
    switches[switches.sum(1) > 1, SWITCHES.index("end")] = False
    return Sampler(dataclasses.replace(model, automaton=dataclasses.replace(model.automaton, switches=switches)))


def settings(mode: Mode = "process") -> SampleSettings:
    """Those of the flags."""
    return SampleSettings(
        mode=mode,
        height=SIDE,
        width=SIDE,
        max_images=FLAGS.images,
        max_prompt_tokens=64,
        text=TextSettings(max_tokens=FLAGS.words, temperature=1.0),
        image=ImageSettings(num_timesteps=FLAGS.timesteps),
    )


def in_turns(runs: dict[str, Callable[[], Any]]) -> Seconds:
    """Seconds of every call, ``--rounds`` of each in turns, after one that compiles."""
    for run in runs.values():
        run()
    seconds: Seconds = {name: [] for name in runs}
    for _ in tqdm(range(FLAGS.rounds), unit="round"):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """Median over the rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast]))


def batch(config: ModelConfig) -> dict[str, Any]:
    """The same trajectories in one batch and one at a time, and how much faster a batch could be at all."""
    sampler, rows = make_sampler(config), FLAGS.batch
    together = dataclasses.replace(settings(), batch_size=rows)
    seeds = full_length_seeds(sampler, together, rows)
    seconds = in_turns(
        {
            "together": lambda: sampler([PROMPT] * rows, seeds, together),
            "alone": lambda: [sampler([PROMPT], [seed], settings()) for seed in seeds],
        }
    )
    rates = {name: rows / statistics.median(taken) for name, taken in seconds.items()}
    operations, peak = products(sampler, sampler([PROMPT] * rows, seeds, together)), peak_operations(config)
    return {
        "rows": rows,
        "seeds": seeds,
        "seconds": seconds,
        "trajectories_per_second": rates,
        "aim": AIM,
        "speedup": ratio(seconds, "alone", "together"),
        "operations": operations,
        "operations_per_second": peak,
        "bound_speedup": statistics.median(seconds["alone"]) * peak / operations,
    }


def full_length_seeds(sampler: Sampler, how: SampleSettings, count: int) -> list[int]:
    """Seeds of trajectories that draw all their images, so that no place of the batch stays empty."""
    full: list[int] = []
    for first in range(0, SEARCHED * count, 4 * count):
        seeds = range(first, first + 4 * count)
        full += [one.seed for one in sampler([PROMPT] * len(seeds), seeds, how) if len(one.images) == how.max_images]
        if len(full) >= count:
            return full[:count]
    few = f"only {len(full)} of {SEARCHED * count} trajectories draw {how.max_images} images"
    raise RuntimeError(f"{few}; give more --words")


def products(sampler: Sampler, drawn: list[Trajectory]) -> float:
    """Floating-point operations of the layers' matrix products; attention, autoencoder and ViT left out."""
    layers = sampler.model.params["model"]["language"]["layers"]
    span = (SIDE // sampler.model.config.latent_stride) ** 2 + 2
    gen, und = (sum(leaf.size for leaf in jax.tree.leaves(layers[expert])) for expert in ("gen", "und"))
    costs = [one.costs for one in drawn]
    return 2 * sum(c["network_evaluations"] * span * gen + c["prefilled_tokens"] * und for c in costs)


def peak_operations(config: ModelConfig) -> float:
    """Operations a second of the model's largest matrix product on as many tokens as keep the machine busy."""
    width, wide = config.language.hidden_size, config.language.intermediate_size
    x, weights = jnp.ones((BUSY, width)), jnp.ones((width, wide))
    product = jax.jit(lambda x, weights: x @ weights)
    return 2 * BUSY * width * wide / fastest(lambda: product(x, weights).block_until_ready())


def fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of ten calls, after one that compiles."""
    best = math.inf
    for number in range(11):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start) if number else best
    return best


def search(config: ModelConfig) -> dict[str, Any]:
    """Stepwise best of two, all prompts at once and one after the other; the rows that work together are as many."""
    sampler, how = make_sampler(config), dataclasses.replace(settings(), batch_size=FLAGS.batch)
    seeds = list(range(FLAGS.batch))

    def searched(groups: list[list[int]]) -> list[list[str]]:
        drawn = [
            strategies.run_strategy(StepwiseBestOfN(n=2), Task(sampler, [PROMPT] * len(s), s, how)) for s in groups
        ]
        return [[getattr(stage, "text", stage.stage) for stage in one.stages] for group in drawn for one in group]

    groups = {"side_by_side": [seeds], "one_by_one": [[seed] for seed in seeds]}
    if searched(groups["side_by_side"]) != searched(groups["one_by_one"]):
        raise RuntimeError("the trajectories differ, so the two do not do the same work")
    seconds = in_turns({name: lambda each=each: searched(each) for name, each in groups.items()})
    return {"prompts": len(seeds), "seconds": seconds, "speedup": ratio(seconds, "one_by_one", "side_by_side")}


def context(config: ModelConfig) -> dict[str, Any]:
    """One trajectory with a growing context, and with all that stands in it read again before every segment.

    Both draw the same. What is read anew is the history of the full context and, for image guidance, of the texts:
    twice a step.
    """
    sampler, how = make_sampler(config), dataclasses.replace(settings(), max_images=max(3, FLAGS.images))
    [start] = sampler.make_starts([PROMPT], [0], how)

    def growing() -> list[str]:
        one = sampler.make_batch([start], how)
        while one.list_active():
            one.step()
        return [getattr(stage, "text", stage.stage) for stage in one.make_trajectory(0).stages]

    def anew() -> list[str]:
        now = start
        while now.stop_reason is None:
            one = sampler.make_batch([now], how)
            one.settle()
            if one.list_active():
                one.step()
            now = one.make_trajectory(0)
        return [getattr(stage, "text", stage.stage) for stage in now.stages]

    stages = growing()
    if stages != anew():
        raise RuntimeError("the trajectories differ, so the two do not do the same work")
    seconds = in_turns({"growing": growing, "anew": anew})
    return {"segments": len(stages), "seconds": seconds, "speedup": ratio(seconds, "anew", "growing")}


def scan(config: ModelConfig) -> dict[str, Any]:
    """The Euler steps of one image, checked to lead to the same latents. Raises RuntimeError where they do not."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    seconds = in_turns(image_scan.both(config, ImageSettings(num_timesteps=FLAGS.timesteps), compute()))
    return {"seconds": seconds, "speedup": ratio(seconds, "torch", "pdgen")}


def first_image(config: ModelConfig) -> dict[str, Any]:
    """Seconds until the first picture of one trajectory, in modes "process" (a plan comes first) and "single_pass"."""
    sampler, parts = make_sampler(config), {}

    def until_image(mode: Mode) -> None:
        for _, stage, image in sampler.stream([PROMPT], [0], settings(mode)):
            parts[mode, stage.stage] = stage.seconds
            if image is not None:
                return

    seconds = in_turns({mode: lambda mode=mode: until_image(mode) for mode in ("process", "single_pass")})
    medians = {mode: statistics.median(taken) for mode, taken in seconds.items()}
    last = {" ".join(key): taken for key, taken in parts.items()}
    return {"seconds": seconds, "median_s": medians, "parts_of_the_last": last}


def text(config: ModelConfig) -> dict[str, Any]:
    """Tokens a second of one row and of a batch, beside bandwidth over the bytes that one token reads."""
    sampler, sizes = make_sampler(config), (1, FLAGS.batch)
    calls = {str(rows): writer(sampler, rows) for rows in sizes}
    tokens = {rows: int(np.asarray(call()).sum()) for rows, call in calls.items()}
    read = text_bytes(sampler.model.params["model"])
    bandwidth = memory_bandwidth(read)
    seconds = in_turns(calls)
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


def writer(sampler: Sampler, rows: int) -> Callable[[], jax.Array]:
    """A call that writes one long text in each of ``rows`` fresh contexts and returns the numbers of tokens."""
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


def text_bytes(params: dict[str, Any]) -> int:
    """Bytes of all parameters that a text token reads: the understanding expert and the head."""
    language = {name: tree for name, tree in params["language"].items() if name != "embed"}
    leaves = jax.tree_util.tree_leaves_with_path(language)
    return sum(leaf.nbytes for path, leaf in leaves if "gen" not in {key.key for key in path})


def memory_bandwidth(size: int) -> float:
    """Bytes a second at which a product of a matrix of ``size`` bytes with a vector reads it; the best of ten.

    As large as what a token reads, so that it lies in the same cache or memory.
    """
    side = math.isqrt(size // 4)
    matrix = jax.random.normal(jax.random.key(0), (side, side)) / math.sqrt(side)
    chain = jax.jit(lambda m, v: jax.lax.scan(lambda v, _: (m @ v, None), v, length=PRODUCTS)[0])
    vector = jnp.ones(side)
    return PRODUCTS * 4 * side**2 / fastest(lambda: chain(matrix, vector).block_until_ready())


def told(mode: str, result: dict[str, Any]) -> str:
    """The line for the reader."""
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


MODES = {"batch": batch, "search": search, "context": context, "scan": scan, "first_image": first_image, "text": text}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    flagged = {name: FLAGS[name].value for name in ("model", "images", "timesteps", "words", "tile", "rounds")}
    for mode in MODES if FLAGS.mode == "all" else [FLAGS.mode]:
        try:
            result = MODES[mode](preset(FLAGS.model))
        except (ValueError, RuntimeError) as fault:
            print(f"sampling: {mode}: {fault}", file=sys.stderr)
            sys.exit(2)
        print(f"{mode}, {FLAGS.model}: {told(mode, result)}")
        if FLAGS.json:
            about = {"threads": os.environ["OMP_NUM_THREADS"], "xla_flags": os.environ["XLA_FLAGS"], "cpu": cpu_name()}
            whole = {"mode": mode, **flagged, **result, **about, "versions": versions("jax", "torch")}
            print(f"wrote {write_json(f'sampling_{FLAGS.model}_{mode}', whole)}")


if __name__ == "__main__":
    app.run(main)

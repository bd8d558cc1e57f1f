"""Attention over a pack of trajectories, forward and backward: blockwise against dense, at several lengths.

    python -m benchmarks.attention --tokens=4096,16384 --heads=4 --kv_heads=1 --json

Intervals are those of packs with the paper's proportions. Both are timed alternately in this process, with the memory
that the compiler reserves for each. The dense mask is quadratic: if it needs more than ``--memory`` it is compiled and
not run. The default heads are the 7B model's; use fewer on two cores.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from tqdm import tqdm

from benchmarks.process_pack import make_process_pack
from benchmarks.result import get_cpu_name, get_versions, write_json
from pdgen.config import get_preset
from pdgen.models.attention import Intervals, Part, Tile, allowed_matrix, attend, attend_dense

FLAGS = flags.FLAGS
SIDE = 256  # pixels of a picture: its three copies are 1,881 tokens


def define_flags() -> None:
    """Define the flags of this benchmark."""
    flags.DEFINE_list("tokens", ["4096", "16384"], "sequence lengths")
    flags.DEFINE_integer("heads", 28, "query heads", lower_bound=1)
    flags.DEFINE_integer("kv_heads", 4, "key and value heads", lower_bound=1)
    flags.DEFINE_integer("size", 128, "of a head", lower_bound=1)
    flags.DEFINE_integer("tile", 256, "of the blockwise attention, in tokens", lower_bound=1)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of queries, keys and values")
    flags.DEFINE_float("memory", 8.0, "most that is run, in 10^9 bytes", lower_bound=0.1)
    flags.DEFINE_integer("rounds", 3, "timed calls of each", lower_bound=1)
    flags.DEFINE_boolean("json", False, "write the result under benchmarks/results/")


def make_pack_intervals(tokens: int, side: int, model: str = "bagel_7b") -> Intervals:
    """Return the [1, S] intervals of a pack of at most ``tokens`` with pictures of ``side`` pixels."""
    pack = make_process_pack(get_preset(model), side, tokens)[0]
    return Intervals(*(jnp.asarray(x)[None] for x in (pack.k_start, pack.k_end, pack.q_start, pack.q_end)))


def compile_gradients(
    intervals: Intervals, heads: tuple[int, int, int], dtype: str, tile: Tile | None
) -> tuple[Callable[[], float], dict[str, float]]:
    """Compile attention and its gradients; return a timed call, and compile seconds and bytes reserved.

    Args:
      intervals: The intervals of one pack.
      heads: Query heads, key and value heads, size of a head.
      dtype: The dtype of queries, keys and values.
      tile: The tile; None for the dense mask.
    """
    H, K, size = heads
    length = intervals.k_start.shape[1]
    shapes = [(1, length, n, size) for n in (H, K, K)]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, intervals: Intervals) -> jax.Array:
        parts = [Part(k, v, intervals)]
        out = attend_dense(q, parts) if tile is None else attend(q, parts, tile)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    start = time.perf_counter()
    abstract = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*abstract, intervals).compile()
    stats = compiled.memory_analysis()
    facts = {
        "compile_s": time.perf_counter() - start,
        "bytes": stats.temp_size_in_bytes + stats.output_size_in_bytes,
    }
    keys = jax.random.split(jax.random.key(0), 3)
    tensors: list[jax.Array] = []

    def run() -> float:
        if not tensors:
            tensors.extend(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes))
            jax.block_until_ready(compiled(*tensors, intervals))
        start = time.perf_counter()
        jax.block_until_ready(compiled(*tensors, intervals))
        return time.perf_counter() - start

    return run, facts


def measure(tokens: int) -> dict[str, Any]:
    """Measure both at one length. ``median_s`` of the dense one is None if it needs more than ``--memory``."""
    intervals = make_pack_intervals(tokens, SIDE)
    heads, tiles = (FLAGS.heads, FLAGS.kv_heads, FLAGS.size), {"blockwise": Tile(FLAGS.tile, FLAGS.tile), "dense": None}
    runs, result = {}, {"tokens": tokens, "slots": intervals.k_start.shape[1]}
    for name, tile in tiles.items():
        runs[name], result[name] = compile_gradients(intervals, heads, FLAGS.dtype, tile)
        if result[name]["bytes"] > 1e9 * FLAGS.memory:
            runs.pop(name)
    seconds = {name: [] for name in runs}
    for _ in tqdm(range(FLAGS.rounds), desc=f"{tokens} tokens", unit="round"):
        for name, run in runs.items():
            seconds[name].append(run())
    for name in tiles:
        result[name] |= {
            "seconds": seconds.get(name),
            "median_s": statistics.median(seconds[name]) if name in runs else None,
        }
    if tokens <= 8192:  # the matrix itself is quadratic
        result["density"] = float(allowed_matrix(intervals, result["slots"]).mean())
    return result


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    try:
        lengths = [measure(int(tokens)) for tokens in FLAGS.tokens]
    except ValueError as fault:
        print(f"attention: {fault}", file=sys.stderr)
        sys.exit(2)
    for one in lengths:
        for name in ("blockwise", "dense"):
            median = one[name]["median_s"]
            time_text = f"{median:.2f} s" if median else f"not run: above --memory={FLAGS.memory}"
            print(f"{one['tokens']:>6} tokens, {name:9}: {time_text}, {one[name]['bytes'] / 1e9:.2f} GB")
    result = {
        "heads": FLAGS.heads,
        "kv_heads": FLAGS.kv_heads,
        "size": FLAGS.size,
        "tile": FLAGS.tile,
        "dtype": FLAGS.dtype,
        "side": SIDE,
        "lengths": lengths,
        "device": jax.devices()[0].device_kind,
        "cpu": get_cpu_name(),
        "versions": get_versions("jax"),
        "load": os.getloadavg()[0],
    }
    if FLAGS.json:
        print(f"wrote {write_json('attention', result)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)

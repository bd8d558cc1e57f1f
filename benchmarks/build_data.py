"""Building shapes world's data: trajectories a second on one core, by subset and by part of the work.

    python -m benchmarks.build_data --samples=200 --json

Each subset is built in one process with one thread at the mix of ``configs/data_shapes.py``: graphs, texts, layouts,
pictures, the exact judge, latents, and the files of a shard. Loading and compiling are not timed. The time of the whole
build is estimated for a machine's cores, which make shards independently.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy is loaded
os.environ |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}

import pathlib
import sys
import tempfile
import time
from typing import Any

from absl import app, flags
from tqdm import tqdm

from benchmarks.result import get_cpu_name, get_versions, write_json
from pdgen.synthesis import shards
from pdgen.synthesis.build import REPORT, STATE, Shard, build_shard
from pdgen.synthesis.settings import SUBSETS, DatasetSettings, scale_settings
from pdgen.synthesis.subsets import make_samples

FLAGS = flags.FLAGS
flags.DEFINE_integer("samples", 200, "samples of each subset", lower_bound=1)
flags.DEFINE_boolean("json", False, "write the result under benchmarks/results/")

SCALE, CORES = 0.1, 2  # of the build that is estimated


def time_subset(settings: DatasetSettings, subset: str, count: int, folder: pathlib.Path) -> dict[str, float]:
    """Measure processor seconds of making and judging samples, and of whole shards with latents and files."""
    teachers = shards.make_teachers(settings)
    start = time.process_time()
    samples = make_samples(settings, teachers, subset, range(count))
    made = time.process_time() - start
    start = time.process_time()
    build_shard(folder, shards.make_shard_maker(settings), Shard(subset, 0, 0, count))
    whole = time.process_time() - start
    pictures = sum(segment.stage in ("sketch", "refine") for r in samples.records for segment in r.segments)
    return {
        "samples": count,
        "pictures": pictures,
        "rejected": sum(samples.rejected.values()),
        "making_s": made,
        "whole_s": whole,
        "samples_per_second": count / whole,
    }


def measure(count: int) -> dict[str, Any]:
    """Time every subset and return every printed number."""
    settings = DatasetSettings()
    counts = {subset: scale_settings(settings, SCALE).count_samples(subset)[0] for subset in SUBSETS}
    wanted = {subset: count for subset, count in counts.items() if count}
    shards.make_shard_maker(settings)(Shard("multi_turn", 0, 0, 8))  # loads and compiles
    subsets = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for part in (REPORT, STATE):
            (folder / part).mkdir()
        for subset in tqdm(wanted, unit=" subsets", leave=False):
            subsets[subset] = time_subset(settings, subset, count, folder)
    seconds = sum(wanted[subset] / subsets[subset]["samples_per_second"] for subset in wanted)
    return {
        "subsets": subsets,
        "scale": SCALE,
        "cores": CORES,
        "samples": wanted,
        "minutes": seconds / CORES / 60,
        "versions": get_versions("jax", "numpy", "pillow"),
        "cpu": get_cpu_name(),
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    try:
        result = measure(FLAGS.samples)
    except (ValueError, OSError) as fault:
        print(f"build_data: {fault}", file=sys.stderr)
        sys.exit(2)
    for subset, facts in result["subsets"].items():
        share = 1 - facts["making_s"] / facts["whole_s"]
        print(
            f"{subset:<10} {facts['samples_per_second']:6.1f} samples/s a core, "
            f"{facts['pictures'] / facts['samples']:.2f} pictures each, latents and files {share:.0%} of the time"
        )
    print(
        f"--scale={result['scale']}: {sum(result['samples'].values()):,} samples, about "
        f"{result['minutes']:.1f} minutes on {result['cores']} cores"
    )
    if FLAGS.json:
        print(f"wrote {write_json('build_data', result)}")


if __name__ == "__main__":
    app.run(main)

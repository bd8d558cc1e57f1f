"""Build a small data set without scenes, for tests of building: python -m tests.data.shards FOLDER RUNNER."""

import functools
import io
import pathlib
import sys
import time

import numpy as np
import PIL.Image

from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.synthesis import build, runners

SHARDS = [*build.cut_shards("one", 22, 4), *build.cut_shards("two", 5, 4)]
SETTINGS = {"one": {"count": 22}, "two": {"count": 5}}
RUNNERS = {
    "here": map,
    "processes": functools.partial(runners.run_in_processes, 2),
    "ray": runners.run_on_ray,
}


def png(rng, side=8):
    buffer = io.BytesIO()
    PIL.Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make(shard, seconds=0.0):
    """Make random prompts and pictures; sample 3 of each shard took another attempt."""
    records = []
    for number in range(shard.start, shard.stop):
        rng = np.random.default_rng((shard.subset == "two", number))
        segments = [
            Text(stage="prompt", text=f"prompt {rng.integers(1000)}", target=False),
            Text(stage="plan", text="<ins>Draw.</ins> <des>Noise.</des>", target=True),
            Image(stage="sketch", png=png(rng), target=True),
        ]
        scene = {"task": shard.subset, "steps": [{"operation": "add"}], "positive": number % 2 == 0}
        name = f"{shard.subset}-{number}"
        records.append(Record(id=name, source=shard.subset, complete=True, segments=segments, scene=scene))
        time.sleep(seconds)
    return build.ShardContent(records, {"ugly": 1} if len(records) == 4 else {})


def fail(shard):
    raise build.BuildError(f"{shard.name}: no luck")


def main(folder, runner):
    with build.open_build(folder, {"seed": 0}, SETTINGS, overwrite=False):
        build.build_shards(folder, SHARDS, functools.partial(make, seconds=0.05), RUNNERS[runner])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])

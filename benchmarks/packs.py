"""Records to packs: tokens a second on one core, from ArrayRecord files with latents to finished packs.

    python -m benchmarks.packs --size=512 --json

The records are synthetic with the paper's statistics: prompts of about 152 characters, 3.5 images on average and at
most 5, 3,423 tokens for the three copies of an image at 512 pixels, packs of 33,000 tokens. ``--size=64`` makes records
and packs like those of shapes world. Pictures are smooth fields with grain, whose PNG files are as large as those of
photographs (about 0.4 MB at 512 pixels). Reading, decoding, resizing, sampling of latents and layout are timed, on one
thread. Making the records is not.
"""

import dataclasses
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL
import PIL.Image
from absl import app, flags
from tqdm import tqdm

from benchmarks.result import get_cpu_name, get_versions, write_json
from pdgen.assets import shapes_folder
from pdgen.config import ModelConfig, get_preset
from pdgen.data.budgets import propose_budgets
from pdgen.data.documents import Documents, make_documents
from pdgen.data.lengths import load_length_index
from pdgen.data.loader import Batches, LoaderConfig
from pdgen.data.packing import Packer
from pdgen.data.records import Origin, RecordSource, write_dataset
from pdgen.data.stream import Stream
from pdgen.sequence.images import encode_png
from pdgen.sequence.layout import Budgets
from pdgen.sequence.segments import ConditionDropout
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image, Record, Text, format_plan

FLAGS = flags.FLAGS
flags.DEFINE_enum("size", "512", ["64", "512"], "pixels of a picture's side")
flags.DEFINE_integer("records", 0, "records to make; 0 = 40 at 512 pixels, 1000 at 64", lower_bound=0)
flags.DEFINE_integer("packs", 0, "packs to time; 0 = as many as half of the records fill", lower_bound=0)
flags.DEFINE_boolean("json", False, "write the result under benchmarks/results/")

AIM = 10_000  # tokens/s a core
FAR = 1_000_000  # a pack that a run is resumed at
IMAGE_RATES = (0.07, 0.14, 0.25, 0.29, 0.25)  # of 1 to 5 images, 3.51 on average
WORDS = ("red", "small", "wooden", "old", "bicycle", "harbour", "left", "behind", "under", "three", "cat", "window")
SIZES = {64: ("shapes_nano", 4096, 1000), 512: ("bagel_7b", 33_000, 40)}  # side: model, tokens of a pack, records


def make_picture(rng: np.random.Generator, side: int) -> bytes:
    """Return a PNG of a smooth coloured field with grain."""
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((side, side), PIL.Image.Resampling.BICUBIC), np.int16)
    grain = rng.normal(0, 4, smooth.shape).astype(np.int16)
    return encode_png(PIL.Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)))


def make_image(rng: np.random.Generator, config: ModelConfig, side: int) -> Image:
    """Return a sketch with random latent moments."""
    shape = (side // config.autoencoder.downsample,) * 2 + (config.autoencoder.z_channels,)
    mean, logvar = rng.normal(size=shape), rng.normal(-6, 1, size=shape)
    moments = {"latent_mean": mean, "latent_logvar": logvar}
    return Image(
        stage="sketch",
        png=make_picture(rng, side),
        target=True,
        latent_shape=shape,
        **{name: value.astype(np.float16).tobytes() for name, value in moments.items()},
    )


def make_words(rng: np.random.Generator, characters: int) -> str:
    """Return text of about so many characters."""
    chosen = rng.choice(WORDS, characters // 5 + 1)
    return " ".join(chosen)[:characters].strip()


def make_records(config: ModelConfig, side: int, count: int) -> Iterator[Record]:
    """Yield complete trajectories: a prompt, then plan, image and inspection for each step."""
    long = 1.0 if side > 64 else 0.3  # shapes world says less
    for number in tqdm(range(count), desc="records", unit="record"):
        rng = np.random.default_rng((0, number))
        segments: list[Text | Image] = [Text("prompt", make_words(rng, int(long * 152)), False)]
        for _ in range(1 + rng.choice(len(IMAGE_RATES), p=IMAGE_RATES)):
            plan = format_plan(make_words(rng, int(long * 80)), make_words(rng, int(long * 160)))
            segments += [Text("plan", plan, True), make_image(rng, config, side)]
            segments.append(Text("inspect", make_words(rng, int(long * 120)), True))
        yield Record(id=f"r{number}", source="benchmark", complete=True, segments=segments)


def measure(side: int, count: int, packs: int) -> dict[str, Any]:
    """Make the records in a temporary folder, then time packs. Return every printed number."""
    name, total, default = SIZES[side]
    config, tokenizer = get_preset(name), load_tokenizer(shapes_folder())
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "records"
        write_dataset(data, make_records(config, side, count or default), Origin(seed=0))
        size = sum(file.stat().st_size for file in data.iterdir())
        source, dropout = RecordSource(data), ConditionDropout()
        start = time.process_time()
        documents = make_documents(load_length_index(source, tokenizer, config))
        opened = time.process_time() - start
        stream = Stream(documents, {"": range(len(documents))}, {}, dropout, seed=0)
        proposal = propose_budgets(documents, stream, total)[0]
        batches = Batches(config, source, tokenizer, LoaderConfig(1, proposal.budgets, dropout=dropout))
        packs = packs or max(1, round(len(documents) / 2 / proposal.documents))
        batches.make_pack(0)
        wall, start = time.perf_counter(), time.process_time()
        for number in range(1, 1 + packs):
            batches.make_pack(number)
        seconds, wall = time.process_time() - start, time.perf_counter() - wall
        tokens = int(sum(batches.packer.count_used(number).sum() for number in range(1, 1 + packs)))
        fill = batches.packer.measure_fill(range(1, 1 + packs))
    return {
        "far_pack": FAR,
        "far_pack_s": measure_seek(documents, proposal.budgets, dropout),
        "size": side,
        "model": name,
        "records": len(documents),
        "megabytes": size / 1e6,
        "packs": packs,
        "tokens": tokens,
        "cpu_s": seconds,
        "wall_s": wall,
        "tokens_per_second": tokens / seconds,
        "over_aim": tokens / seconds / AIM,
        "budgets": dataclasses.asdict(proposal.budgets),
        "fill": fill,
        "counting_lengths_s": opened,
        "versions": get_versions("numpy", "pillow"),
        "cpu": get_cpu_name(),
    }


def measure_seek(documents: Documents, budgets: Budgets, dropout: ConditionDropout) -> float:
    """Return the processor seconds until a fresh run finds pack ``FAR`` of about 32,000 such documents."""
    times = -(-32_000 // len(documents))
    counts = np.tile(np.diff(documents.starts), times)
    many = Documents(
        record=np.arange(len(counts), dtype=np.int32),
        first=np.tile(documents.first, times),
        stop=np.tile(documents.stop, times),
        kinds=np.tile(documents.kinds, times),
        tokens=np.tile(documents.tokens, times),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        cut=documents.cut,
    )
    packer = Packer(many, {"": range(len(many))}, budgets, dropout, seed=0)
    start = time.process_time()
    packer.choose_documents(FAR)
    return time.process_time() - start


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    try:
        result = measure(int(FLAGS.size), FLAGS.records, FLAGS.packs)
    except (ValueError, OSError) as fault:
        print(f"packs: {fault}", file=sys.stderr)
        sys.exit(2)
    print(
        f"{result['size']} pixels: {result['records']:,} records ({result['megabytes']:,.0f} MB), "
        f"{result['packs']} packs, {result['tokens']:,} tokens"
    )
    print(f"{result['tokens_per_second']:,.0f} tokens/s a core ({result['cpu_s']:.2f} s of one core)")
    print(f"pack {result['far_pack']:,} found from a fresh start in {result['far_pack_s']:.1f} s of one core")
    print(f"over the aim of {AIM:,} tokens/s: {result['over_aim']:.1f}")
    if FLAGS.json:
        path = write_json(f"packs_{result['size']}", result)
        print(f"wrote {path}")


if __name__ == "__main__":
    app.run(main)

"""Builds a data set of shapes-world trajectories with latents, deterministically from the config's seed.

python launch/build_data.py --config=configs/data_shapes.py --output=out/shapes
"""

import itertools
import math
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

import ml_collections
import msgspec
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from pdgen.assets import shapes_folder
from pdgen.config import SHAPES_AUTOENCODER
from pdgen.convert.torch_checkpoint import read_autoencoder
from pdgen.data.latents import Encode, add_latents, autoencoder_fingerprint, batched_encoder
from pdgen.data.records import Origin, write_dataset
from pdgen.interleave.tokenizer import load_tokenizer
from pdgen.interleave.trajectory import Record
from pdgen.scenes.subsets import Settings, make_trajectories

CONFIG = config_flags.DEFINE_config_file("config", None, "File such as configs/data_shapes.py.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
COUNT = flags.DEFINE_integer("count", None, "Trajectories, in place of the config's count.")
SCALE = flags.DEFINE_float("scale", 1.0, "Factor on the number of trajectories.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing data set.")
flags.mark_flag_as_required("config")

ENCODED_TOGETHER = 256


def read_settings(config: ml_collections.ConfigDict, count: int | None, scale: float) -> Settings:
    """The config's settings, their count replaced by ``count`` if given, then multiplied by ``scale``.

    Raises:
      ValueError: a setting or the scale is out of range, or a key is unknown.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"--scale={scale} is no positive number")
    settings = msgspec.convert(config.to_dict(), Settings)
    wanted = settings.count if count is None else count
    return msgspec.structs.replace(settings, count=round(wanted * scale))


def with_latents(records: Iterator[Record], encode: Encode, total: int) -> Iterator[Record]:
    """The records with latents, ``ENCODED_TOGETHER`` at a time, under a progress bar."""
    with tqdm(total=total, desc="trajectories", unit=" records") as bar:
        while chunk := list(itertools.islice(records, ENCODED_TOGETHER)):
            yield from add_latents(chunk, encode)
            bar.update(len(chunk))


def build(settings: Settings, folder: pathlib.Path, overwrite: bool) -> str:
    """Writes the data set and returns a line that sums it up."""
    assets = shapes_folder()
    weights = read_autoencoder(assets, SHAPES_AUTOENCODER)
    encode = batched_encoder(SHAPES_AUTOENCODER, weights)
    origin = Origin(
        seed=settings.seed,
        tokenizer=load_tokenizer(assets).fingerprint,
        autoencoder=autoencoder_fingerprint(weights),
        settings=msgspec.to_builtins(settings),
    )
    records = with_latents(make_trajectories(settings), encode, settings.count)
    dataset = write_dataset(folder, records, origin, overwrite=overwrite)
    size = sum((folder / file.name).stat().st_size for file in dataset.files)
    return f"{folder}: {dataset.records} records in {len(dataset.files)} files, {size / 1e6:.1f} MB"


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a partial folder is removed
    try:
        settings = read_settings(CONFIG.value, COUNT.value, SCALE.value)
        print(build(settings, pathlib.Path(OUTPUT.value), OVERWRITE.value))
    except (ValueError, OSError) as fault:  # every error class of pdgen and of msgspec is a ValueError
        fail(fault)


def parse(argv: list[str]) -> list[str]:
    """The flags; wrong ones, and a config that cannot be read, end like other faults of input."""
    try:
        return flags.FLAGS(argv)
    except AttributeError as fault:  # ml_collections wraps the KeyError of an override without a key
        (cause,) = fault.args
        fail(f"--config: no key {getattr(cause, 'args', [cause])[0]}")
    except (flags.Error, OSError, ValueError, TypeError) as fault:
        fail(fault)


def fail(fault: object) -> NoReturn:
    """Prints the one line and leaves with status 2."""
    print(f"build_data: {' '.join(str(fault).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

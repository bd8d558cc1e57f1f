"""Trains the autoencoder of shapes world and writes it as ae.safetensors, as a BAGEL folder holds it.

python launch/train_autoencoder.py --config=configs/shapes_autoencoder.py --workdir=out/autoencoder
"""

import pathlib

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tqdm import trange

from pdgen.checkpoints.torch_checkpoint import AUTOENCODER, read_autoencoder
from pdgen.cli import fail, parse
from pdgen.config import AutoencoderConfig, preset
from pdgen.shapes.painter import paint
from pdgen.shapes.placement import FREE, LATTICE
from pdgen.shapes.world import MAX_OBJECTS, random_scene
from pdgen.train.release.autoencoder import DivergedError, Quality, Settings, measure, train, write_autoencoder

CONFIG = config_flags.DEFINE_config_file("config", None, "File such as configs/shapes_autoencoder.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write ae.safetensors into.", required=True)
STEPS = flags.DEFINE_integer("steps", None, "Optimiser steps, in place of the config's.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing ae.safetensors.")

TRAINING, HELD_OUT = 0, 1  # independent streams of scenes under one seed


def scene_pictures(seed: int, stream: int, count: int, size: int, free_share: float) -> np.ndarray:
    """``count`` pictures of random scenes of 1 to MAX_OBJECTS objects, uint8 [count, size, size, 3].

    ``free_share`` of them, in expectation, have their objects anywhere, the others on the lattice.
    """
    pictures = np.empty((count, size, size, 3), np.uint8)
    for index in trange(count, desc="painting", unit="picture"):
        rng = np.random.default_rng((seed, stream, index))
        placement = FREE if rng.random() < free_share else LATTICE
        pictures[index] = paint(random_scene(rng, int(rng.integers(1, MAX_OBJECTS + 1)), placement), size)
    return pictures


def run(config: ConfigDict, settings: Settings, path: pathlib.Path) -> Quality:
    """Trains, writes ``path`` and measures the file's own weights on held-out scenes."""
    sizes: AutoencoderConfig = preset(config.model).autoencoder
    pictures = scene_pictures(settings.seed, TRAINING, config.pictures, config.image_size, config.free_share)
    write_autoencoder(path, sizes, train(sizes, settings, pictures))
    held_out = scene_pictures(settings.seed, HELD_OUT, config.held_out, config.image_size, free_share=0.0)
    return measure(sizes, read_autoencoder(path.parent, sizes), held_out)


def settings_of(config: ConfigDict) -> Settings:
    """The config's ``train``, with ``--steps``. Raises ValueError for an unknown, missing or wrong value."""
    values = config.train.to_dict()
    if STEPS.value is not None:
        values["steps"] = STEPS.value
    try:
        return Settings(**values)
    except TypeError as error:
        raise ValueError(f"config.train: {error}") from None


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    if CONFIG.value is None:
        fail("--config is missing; pass a file such as configs/shapes_autoencoder.py")
    path = pathlib.Path(WORKDIR.value) / AUTOENCODER
    if path.exists() and not OVERWRITE.value:
        fail(f"{path}: exists already; pass --overwrite to replace it")
    try:
        quality = run(CONFIG.value, settings_of(CONFIG.value), path)
    except (ValueError, DivergedError, OSError) as error:
        fail(error)
    print(f"{path}: {path.stat().st_size:,} bytes, PSNR on held-out scenes {quality.psnr:.2f} dB")
    for name in ("mean", "std", "posterior_std"):
        print(f"latent {name} per channel: {np.array2string(getattr(quality, name), precision=3)}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

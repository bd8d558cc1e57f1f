"""Adds autoencoder latents to the pictures of a data set, so that training never runs the encoder.

python launch/encode.py --data=out/drawings --checkpoint=bagel --output=out/drawings-encoded
python launch/encode.py --data=out/drawings --model=bagel_7b --autoencoder=BAGEL-7B-MoT --output=...

Pictures are resized to what the model takes. Killed and started again, it goes on where it was.
"""

import pathlib

import jax
import numpy as np
from absl import app, flags, logging

from pdgen.assets import shapes_folder
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.cli import fail, parse
from pdgen.config import PRESETS, SHAPES_AUTOENCODER, ModelConfig
from pdgen.data.encode import Encoder, encode_dataset
from pdgen.data.latents import BATCH_SIZE
from pdgen.sample.compiled import keep_compiled
from pdgen.sequence.images import image_sizes
from pdgen.train.export import find_checkpoint

DATA = flags.DEFINE_string("data", None, "Data set to read.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; --data itself needs --overwrite.", required=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A pdgen checkpoint or a training run's workdir.")
MODEL = flags.DEFINE_enum("model", None, sorted(PRESETS), "In place of a checkpoint: the sizes of this model.")
AUTOENCODER = flags.DEFINE_string(
    "autoencoder", None, "With --model: folder with its ae.safetensors; nano and tiny have shapes world's own."
)
BATCH = flags.DEFINE_integer("batch_size", BATCH_SIZE, "Pictures at a time; fewer of large ones.", lower_bound=1)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing data set.")


def read_encoder() -> Encoder:
    """The autoencoder that the flags name, and the model's picture sizes.

    Raises:
      ValueError: the flags contradict each other.
      CheckpointError, ConfigError: there is no checkpoint, or it is damaged.
    """
    if (CHECKPOINT.value is None) == (MODEL.value is None):
        raise ValueError("give either --checkpoint or --model")
    if MODEL.value is None:
        assert CHECKPOINT.value is not None
        if AUTOENCODER.value is not None:
            raise ValueError("--checkpoint has an autoencoder; leave --autoencoder out, or give --model instead")
        config, parts = load_checkpoint(find_checkpoint(CHECKPOINT.value), parts=("autoencoder",))
        return made(config, parts["autoencoder"])
    config = PRESETS[MODEL.value]
    if AUTOENCODER.value is None and config.autoencoder != SHAPES_AUTOENCODER:
        raise ValueError(f"--model={MODEL.value} needs --autoencoder, a folder with its ae.safetensors")
    return made(config, read_autoencoder(AUTOENCODER.value or shapes_folder(), config.autoencoder))


def made(config: ModelConfig, params: dict) -> Encoder:
    """The encoder of a model. Parameters become float32, so that a checkpoint's dtype changes little."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    return Encoder(config.autoencoder, params, image_sizes(config).vae, BATCH.value)


def run() -> str:
    """Encodes and returns a line that sums it up."""
    keep_compiled()
    source, target = pathlib.Path(DATA.value), pathlib.Path(OUTPUT.value)
    dataset = encode_dataset(source, target, read_encoder(), overwrite=OVERWRITE.value)
    size = sum((target / file.name).stat().st_size for file in dataset.files)
    return f"{target}: {dataset.records} records in {len(dataset.files)} files, {size / 1e6:.1f} MB"


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    try:
        print(run())
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

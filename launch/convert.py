"""Converts a BAGEL checkpoint to pdgen's format and back, or checks either.

python launch/convert.py --source=BAGEL-7B-MoT --target=bagel            a BAGEL folder to a pdgen checkpoint
python launch/convert.py --source=results/0010000 --base=BAGEL-7B-MoT --target=tuned   the trainer's step folder
python launch/convert.py --source=bagel --target=BAGEL-again --reverse   and back
python launch/convert.py --source=out/run --target=BAGEL-trained --reverse --weights=ema   from a training run
python launch/convert.py --source=bagel --check                          verify, and print the manifest

The source may be a training run's workdir: its newest complete step is used, with adapters merged. --dtype does not
change the autoencoder, since the latents of a data set fit only its exact values. docs/checkpoints.md lists what
converts.
"""

import pathlib
import sys
from typing import cast

import jax.numpy as jnp
from absl import flags

from pdgen.checkpoints.conversion import check, is_unconverted, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.runs.step import Weights
from pdgen.cli import exit_on_sigterm, run_command
from pdgen.files import check_writable
from pdgen.train.export import open_weights

SOURCE = flags.DEFINE_string("source", None, "Folder to read.", required=True)
TARGET = flags.DEFINE_string("target", None, "Folder to write.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Cast the model's values to this dtype.")
REVERSE = flags.DEFINE_bool("reverse", False, "Write a pdgen checkpoint as a BAGEL folder.")
BASE = flags.DEFINE_string(
    "base", None, "BAGEL folder from which modules, json files and the tokenizer are taken that the source lacks."
)
WEIGHTS = flags.DEFINE_enum(
    "weights",
    None,
    ["raw", "ema"],
    "The last weights or their moving average. Default: raw of a training run, ema of a folder that has both.",
)
CHECK = flags.DEFINE_bool("check", False, "Only verify the source and print its manifest.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing target.")


def convert() -> None:
    """Check or convert.

    Raises:
      CheckpointError: The source, the target or the flags are invalid.
      ConfigError: The source's config is invalid.
      FolderError: The target exists or cannot be written.
      OSError: A file cannot be read or written.
      RunError: The workdir is invalid.
    """
    exit_on_sigterm()  # removes the partial target
    check_source() if CHECK.value else write_target()


def check_source() -> None:
    """Verify the source and print its manifest."""
    if TARGET.value is not None or DTYPE.value is not None:
        raise CheckpointError("--check only reads --source; leave --target and --dtype out")
    weights = cast(Weights | None, WEIGHTS.value)
    if is_unconverted(pathlib.Path(SOURCE.value)):
        manifest = check(SOURCE.value, base=BASE.value, weights=weights)
    else:
        refuse_base()
        with open_weights(SOURCE.value, weights) as source:
            manifest = check(source)
    print(manifest.text(), end="")
    print(f"{SOURCE.value}: {manifest.summary()}, verified", file=sys.stderr)


def write_target() -> None:
    """Convert the source in the direction of the flags."""
    if TARGET.value is None:
        raise CheckpointError("--target is missing; name the folder to write")
    check_writable(pathlib.Path(TARGET.value).absolute().parent)
    dtype = None if DTYPE.value is None else jnp.dtype(DTYPE.value)
    weights = cast(Weights | None, WEIGHTS.value)
    if REVERSE.value:
        refuse_base()
        with open_weights(SOURCE.value, weights) as source:
            manifest = to_bagel(source, TARGET.value, dtype=dtype, overwrite=OVERWRITE.value)
    else:
        manifest = to_pdgen(
            SOURCE.value, TARGET.value, base=BASE.value, weights=weights, dtype=dtype, overwrite=OVERWRITE.value
        )
    print(f"{TARGET.value}: {manifest.summary()}", file=sys.stderr)


def refuse_base() -> None:
    """Raise CheckpointError if --base is given, which only a conversion from PyTorch and its check use."""
    if BASE.value is not None:
        raise CheckpointError("--base completes a PyTorch folder, of which there is none to read; leave it out")


if __name__ == "__main__":
    run_command(convert)

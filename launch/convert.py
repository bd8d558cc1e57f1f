"""Converts a BAGEL checkpoint to pdgen's form and back, or checks either.

python launch/convert.py --source=BAGEL-7B-MoT --target=bagel            a BAGEL folder to a pdgen checkpoint
python launch/convert.py --source=bagel --target=BAGEL-again --reverse   and back
python launch/convert.py --source=out/run --target=BAGEL-trained --reverse --weights=ema   of a training run
python launch/convert.py --source=bagel --check                          verify, and print the manifest

A training run's workdir may be the source too: its newest whole step is meant, adapters merged. --dtype leaves the
autoencoder as it is, since the latents of a data set suit its exact values alone.
"""

import sys

import jax.numpy as jnp
from absl import flags

from pdgen.checkpoints.conversion import check, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.cli import exit_on_sigterm, run_command
from pdgen.train.export import open_weights

SOURCE = flags.DEFINE_string("source", None, "Folder to read.", required=True)
TARGET = flags.DEFINE_string("target", None, "Folder to write.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Cast the model's values to this dtype.")
REVERSE = flags.DEFINE_bool("reverse", False, "Write a pdgen checkpoint as a BAGEL folder.")
WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["raw", "ema"], "Of a training run: the last weights (the default) or their moving average."
)
CHECK = flags.DEFINE_bool("check", False, "Only verify the source and print its manifest.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing target.")


def convert() -> None:
    """Does what the flags ask for. Raises CheckpointError, ConfigError, FolderError, RunError."""
    exit_on_sigterm()  # removes the partial target
    try:
        check_source() if CHECK.value else write_target()
    except OSError as fault:
        raise CheckpointError(f"{fault.filename}: {fault.strerror}; choose another folder or mend this one") from None


def check_source() -> None:
    """Verifies the source and prints its manifest."""
    if TARGET.value is not None or DTYPE.value is not None:
        raise CheckpointError("--check only reads --source; leave --target and --dtype out")
    with open_weights(SOURCE.value, WEIGHTS.value) as source:
        manifest = check(source)
    print(manifest.text(), end="")
    print(f"{SOURCE.value}: {manifest.summary()}, as they must be", file=sys.stderr)


def write_target() -> None:
    """Converts the source in the direction that the flags name."""
    if TARGET.value is None:
        raise CheckpointError("--target is missing; name the folder to write")
    dtype = None if DTYPE.value is None else jnp.dtype(DTYPE.value)
    if REVERSE.value:
        with open_weights(SOURCE.value, WEIGHTS.value) as source:
            manifest = to_bagel(source, TARGET.value, dtype=dtype, overwrite=OVERWRITE.value)
    elif WEIGHTS.value is not None:
        raise CheckpointError("--weights chooses what --reverse or --check takes of a training run; leave it out")
    else:
        manifest = to_pdgen(SOURCE.value, TARGET.value, dtype=dtype, overwrite=OVERWRITE.value)
    print(f"{TARGET.value}: {manifest.summary()}", file=sys.stderr)


if __name__ == "__main__":
    run_command(convert)

"""Converts a BAGEL checkpoint to pdgen's format and back, or checks either.

python launch/convert.py --source=BAGEL-7B-MoT --target=bagel            a BAGEL folder to a pdgen checkpoint
python launch/convert.py --source=bagel --target=BAGEL-again --reverse   and back
python launch/convert.py --source=out/run --target=BAGEL-trained --reverse --weights=ema   from a training run
python launch/convert.py --source=bagel --check                          verify, and print the manifest
python launch/convert.py --source=BAGEL-7B-MoT --target=bagel-int8 --quantize=int8   for sampling in half the memory

The source may be a training run's workdir: its newest complete step is used, with adapters merged. --dtype does not
change the autoencoder, since the latents of a data set fit only its exact values. With --quantize the source may also
be a pdgen checkpoint. An int8 checkpoint is for sampling and evaluation: neither training nor --reverse take it.
"""

import sys
from typing import cast

import jax.numpy as jnp
from absl import flags

from pdgen.checkpoints.conversion import check, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.runs.step import Weights
from pdgen.cli import exit_on_sigterm, run_command
from pdgen.train.export import open_weights

SOURCE = flags.DEFINE_string("source", None, "Folder to read.", required=True)
TARGET = flags.DEFINE_string("target", None, "Folder to write.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Cast the model's values to this dtype.")
QUANTIZE = flags.DEFINE_enum(
    "quantize",
    None,
    ["int8"],
    "Round the kernels of experts, embeddings, head and ViT to 8 bits, with a scale for each output channel.",
)
REVERSE = flags.DEFINE_bool("reverse", False, "Write a pdgen checkpoint as a BAGEL folder.")
WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["raw", "ema"], "For a training run: the last weights (the default) or their moving average."
)
CHECK = flags.DEFINE_bool("check", False, "Only verify the source and print its manifest.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing target.")


def convert() -> None:
    """Check or convert.

    Raises:
      CheckpointError: The source, the target or the flags are invalid.
      ConfigError: The source's config is invalid.
      FolderError: The target exists.
      RunError: The workdir is invalid.
    """
    exit_on_sigterm()  # removes the partial target
    try:
        check_source() if CHECK.value else write_target()
    except OSError as fault:
        raise CheckpointError(f"{fault.filename}: {fault.strerror}; choose another folder or repair this one") from None


def check_source() -> None:
    """Verify the source and print its manifest."""
    if any(flag.value is not None for flag in (TARGET, DTYPE, QUANTIZE)):
        raise CheckpointError("--check only reads --source; leave --target, --dtype and --quantize out")
    with open_weights(SOURCE.value, cast(Weights | None, WEIGHTS.value)) as source:
        manifest = check(source)
    print(manifest.text(), end="")
    print(f"{SOURCE.value}: {manifest.summary()}, verified", file=sys.stderr)


def write_target() -> None:
    """Convert the source in the direction of the flags."""
    if TARGET.value is None:
        raise CheckpointError("--target is missing; name the folder to write")
    dtype = None if DTYPE.value is None else jnp.dtype(DTYPE.value)
    if REVERSE.value:
        if QUANTIZE.value is not None:
            raise CheckpointError("--quantize writes a pdgen checkpoint; leave --reverse out")
        with open_weights(SOURCE.value, cast(Weights | None, WEIGHTS.value)) as source:
            manifest = to_bagel(source, TARGET.value, dtype=dtype, overwrite=OVERWRITE.value)
    elif QUANTIZE.value is not None:
        with open_weights(SOURCE.value, cast(Weights | None, WEIGHTS.value)) as source:
            manifest = to_pdgen(source, TARGET.value, dtype=dtype, int8=True, overwrite=OVERWRITE.value)
    elif WEIGHTS.value is not None:
        raise CheckpointError("--weights is for --reverse, --quantize and --check of a training run; leave it out")
    else:
        manifest = to_pdgen(SOURCE.value, TARGET.value, dtype=dtype, overwrite=OVERWRITE.value)
    print(f"{TARGET.value}: {manifest.summary()}", file=sys.stderr)


if __name__ == "__main__":
    run_command(convert)

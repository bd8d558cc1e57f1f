"""Converts a BAGEL checkpoint to pdgen's format and back, or checks either.

python launch/convert.py --source=BAGEL-7B-MoT --target=bagel            a BAGEL folder to a pdgen checkpoint
python launch/convert.py --source=results/0010000 --base=BAGEL-7B-MoT --target=tuned   the trainer's step folder
python launch/convert.py --source=bagel --target=BAGEL-again --reverse   and back
python launch/convert.py --source=out/run --target=BAGEL-trained --reverse --weights=ema   from a training run
python launch/convert.py --source=bagel --check                          verify, and print the manifest
python launch/convert.py --source=adapter --base=bagel --target=merged   a PEFT adapter, merged into a checkpoint
python launch/convert.py --source=out/run --target=adapter --adapters    a LoRA run's adapters as a PEFT folder
python launch/convert.py --source=BAGEL-7B-MoT --target=bagel-int8 --quantize=int8   for sampling in half the memory

The source may be a training run's workdir: its newest complete step is used, with adapters merged. --dtype does not
change the autoencoder, since the latents of a data set fit only its exact values. docs/checkpoints.md lists what
converts.

With --check and --base an adapter is compared with its base, and the line says how much it would change. Training can
also start from an adapter and keep it apart: --config.lora.init=adapter of launch/train.py. With --quantize the source
may also be a pdgen checkpoint. An int8 checkpoint is for sampling and evaluation: neither training nor --reverse takes
it.
"""

import pathlib
import sys
from typing import Any, cast

import jax.numpy as jnp
from absl import flags

from pdgen.checkpoints.adapters.export import export_adapters
from pdgen.checkpoints.adapters.merging import describe_changes, measure_adapter, merge_adapter
from pdgen.checkpoints.adapters.peft import is_adapter
from pdgen.checkpoints.conversion import check, is_unconverted, to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.runs.step import Weights
from pdgen.checkpoints.torch_checkpoint import is_bagel_folder
from pdgen.cli import exit_on_sigterm, run_command
from pdgen.files import check_writable
from pdgen.train.export import export_checkpoint, open_weights

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
BASE = flags.DEFINE_string(
    "base",
    None,
    "For a PyTorch folder: the BAGEL folder that supplies the modules, json files and tokenizer that it lacks. "
    "For a PEFT adapter: the checkpoint that it adapts.",
)
WEIGHTS = flags.DEFINE_enum(
    "weights",
    None,
    ["raw", "ema"],
    "The last weights or their moving average. Default: raw of a training run, ema of a folder that has both.",
)
ADAPTERS = flags.DEFINE_bool("adapters", False, "Write the adapters of a LoRA run as a PEFT folder.")
CHECK = flags.DEFINE_bool("check", False, "Only verify the source and print its manifest.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing target.")


def convert() -> None:
    """Check or convert."""
    exit_on_sigterm()  # removes the partial target
    source = pathlib.Path(SOURCE.value)
    if is_adapter(source) and not is_bagel_folder(source):
        merge_source()
    elif CHECK.value:
        check_source()
    elif ADAPTERS.value:
        write_adapters()
    else:
        write_target()


def reject_flags(*unused: flags.FlagHolder) -> None:
    """Raise CheckpointError if one of these flags is given, which do nothing in this direction."""
    for flag in unused:
        if flag.value not in (None, False):
            raise CheckpointError(f"--{flag.name}: does nothing with this --source and the other flags; leave it out")


def read_target() -> str:
    """Return the folder to write. Raises CheckpointError if none is given, and FolderError if it cannot be written."""
    if TARGET.value is None:
        raise CheckpointError("--target is missing; name the folder to write")
    check_writable(pathlib.Path(TARGET.value).absolute().parent)
    return TARGET.value


def read_options() -> dict[str, Any]:
    """Return the arguments that all conversions take."""
    return {"dtype": None if DTYPE.value is None else jnp.dtype(DTYPE.value), "overwrite": OVERWRITE.value}


def merge_source() -> None:
    """Merge the source, a PEFT adapter, into its base; or with --check only measure what it changes."""
    source = SOURCE.value
    if BASE.value is None:
        raise CheckpointError(f"{source}: is a PEFT adapter; name the checkpoint that it adapts with --base")
    base = pathlib.Path(BASE.value)
    if not is_bagel_folder(base):
        base = export_checkpoint(base)
    if CHECK.value:
        reject_flags(TARGET, DTYPE, QUANTIZE, WEIGHTS, REVERSE, ADAPTERS)
        print(f"{source}: {describe_changes(measure_adapter(source, base))}", file=sys.stderr)
        return
    reject_flags(QUANTIZE, WEIGHTS, REVERSE, ADAPTERS)
    target = read_target()
    manifest, changes = merge_adapter(source, base, target, **read_options())
    print(f"{source}: {describe_changes(changes)}", file=sys.stderr)
    print(f"{target}: {manifest.summary()}", file=sys.stderr)


def write_adapters() -> None:
    """Write the adapters of the source, a LoRA run, as a PEFT folder."""
    reject_flags(BASE, DTYPE, QUANTIZE, REVERSE)
    weights = cast(Weights, WEIGHTS.value or "raw")
    print(export_adapters(SOURCE.value, read_target(), weights, overwrite=OVERWRITE.value), file=sys.stderr)


def check_source() -> None:
    """Verify the source and print its manifest."""
    reject_flags(TARGET, DTYPE, QUANTIZE, ADAPTERS)
    weights = cast(Weights | None, WEIGHTS.value)
    if is_unconverted(pathlib.Path(SOURCE.value)):
        manifest = check(SOURCE.value, base=BASE.value, weights=weights)
    else:
        reject_flags(BASE)
        with open_weights(SOURCE.value, weights) as source:
            manifest = check(source)
    print(manifest.text(), end="")
    print(f"{SOURCE.value}: {manifest.summary()}, verified", file=sys.stderr)


def write_target() -> None:
    """Convert the source in the direction of the flags."""
    target, weights, options = read_target(), cast(Weights | None, WEIGHTS.value), read_options()
    int8 = QUANTIZE.value is not None
    if REVERSE.value:
        reject_flags(BASE, QUANTIZE)
        with open_weights(SOURCE.value, weights) as source:
            manifest = to_bagel(source, target, **options)
    elif int8 and not is_unconverted(pathlib.Path(SOURCE.value)):
        reject_flags(BASE)
        with open_weights(SOURCE.value, weights) as source:
            manifest = to_pdgen(source, target, int8=True, **options)
    else:
        manifest = to_pdgen(SOURCE.value, target, base=BASE.value, weights=weights, int8=int8, **options)
    print(f"{target}: {manifest.summary()}", file=sys.stderr)


if __name__ == "__main__":
    run_command(convert)

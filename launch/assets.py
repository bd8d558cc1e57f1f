"""Rebuilds the shipped assets: the models, the tokenizer and the autoencoder.

python launch/assets.py ship --model=shapes_base --output=out/ship    the base
python launch/assets.py ship --model=shapes --output=out/ship         the process model, from the base that is shipped
python launch/assets.py tokenizer --output=pdgen/assets/shapes/tokenizer.model
python launch/assets.py autoencoder --config=configs/shapes_autoencoder.py --workdir=out/autoencoder

ship builds the data, trains the model, and replaces its files in pdgen/assets. Run it in the checkout's root. It
resumes after a kill. The base trains on texts with the places of all things, on all of its modes, and mostly on
reading. The process model is a cell of configs/ablation_shapes.py: a model trains on multi-turn samples, writes the
plans of the conflict subset, and continues on all three subsets.

tokenizer trains the sentencepiece tokenizer on generated texts. autoencoder trains the autoencoder and writes it as
ae.safetensors, as in a BAGEL folder. For one mode's flags: assets.py MODE --help.
"""

import pathlib
import runpy
import shlex

import msgspec
import numpy as np
from absl import flags
from ml_collections import config_flags

from pdgen.checkpoints.runs.step import Weights
from pdgen.checkpoints.shipped import BASE, SHIPPED
from pdgen.checkpoints.torch_checkpoint import AUTOENCODER, read_autoencoder
from pdgen.cli import Mode, exit_on_sigterm, require, run_modes
from pdgen.config import get_preset
from pdgen.evaluate.ablation import Sweep, make_stages
from pdgen.files import check_writable
from pdgen.train.release import autoencoder
from pdgen.train.release.autoencoder import HELD_OUT, TRAINING, paint_scenes
from pdgen.train.release.shipping import replace_shipped
from pdgen.train.release.stages import Stage, run_stages
from pdgen.train.release.tokenizer import train_tokenizer

MODEL = flags.DEFINE_enum("model", None, SHIPPED, "The model to replace.")
OUTPUT = flags.DEFINE_string("output", None, "ship: folder for data and runs. tokenizer: file ending in .model.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The weights' moving average, or the last weights.")
SCALE = flags.DEFINE_float("scale", None, "Factor on the numbers of samples; by default the recipe's.")
TRAIN_KEYS = flags.DEFINE_multi_string(
    "train_key", [], "KEY=VALUE of the training config, such as num_steps=300 (repeat it)."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands in order, and stop.")

COUNT = flags.DEFINE_integer("count", 4000, "Number of trajectories whose texts to train on.", lower_bound=100)
SEED = flags.DEFINE_integer("seed", 0, "Seed of those trajectories.", lower_bound=0)
CONFIG = config_flags.DEFINE_config_file("config", None, "File such as configs/shapes_autoencoder.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write ae.safetensors into.")
STEPS = flags.DEFINE_integer("steps", None, "Optimizer steps, instead of the config's.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing file.")

LAUNCH = pathlib.Path(__file__).parent
# The ablation whose full cell, with its first seed, is the process model.
ABLATION, FULL = "configs/ablation_shapes.py", "rewritten_critique"


def ship_model() -> None:
    """Run the missing stages and replace the model."""
    exit_on_sigterm()  # also ends the running command, which resumes from its last checkpoint
    recipe = make_recipe()
    if DRY_RUN.value:
        for stage in recipe:
            print(shlex.join(stage.command(LAUNCH)))
        return
    check_writable(require(OUTPUT))
    run_stages(recipe, LAUNCH)
    workdir = recipe[-1].folder / "run"
    weights: Weights = "raw" if WEIGHTS.value == "raw" else "ema"
    folder = replace_shipped(require(MODEL), workdir, weights)
    print(f"{folder}: has the {WEIGHTS.value} weights of {workdir}")


def make_recipe() -> list[Stage]:
    """Return the stages in order. The last one trains the model."""
    if not pathlib.Path(ABLATION).is_file():
        raise ValueError(f"{ABLATION}: no such file here; run this in the root of pdgen's checkout")
    if wrong := [text for text in TRAIN_KEYS.value if "=" not in text]:
        raise ValueError(f"--train_key={wrong[0]}: write KEY=VALUE, such as num_steps=300")
    output, scale = pathlib.Path(require(OUTPUT)), SCALE.value
    base = MODEL.value == BASE
    made = base_stages(output, 1.0 if scale is None else scale) if base else process_stages(output, scale)
    keys = tuple(f"--config.{text}" for text in TRAIN_KEYS.value)
    return [s._replace(arguments=(*s.arguments, *keys)) if s.name == "train" else s for s in made]


def base_stages(output: pathlib.Path, scale: float) -> list[Stage]:
    """Return the commands that train the base: on texts with all places, on all of its modes, and mostly on reading."""
    made: list[Stage] = []
    init = ""
    for name, data in (("places", "places"), ("base", "base"), ("reading", "base")):
        if name == data:
            build = (f"--config=configs/data_shapes_{data}.py", f"--output={output}/{data}/data", f"--scale={scale}")
            made.append(Stage("build_data", output / data, build))
        workdir = f"{output}/{name}/run"
        train = (
            f"--config=configs/shapes_{name}.py",
            f"--workdir={workdir}",
            f"--config.data={output}/{data}/data",
            f"--config.init={init}",
        )
        made.append(Stage("train", output / name, train))
        init = workdir
    return made


def process_stages(output: pathlib.Path, scale: float | None) -> list[Stage]:
    """Return the commands that train the process model: the ablation's full cell with its first seed, not evaluated.

    The number of steps is that of the training config.
    """
    config = runpy.run_path(ABLATION)["get_config"]()
    del config.train_keys["num_steps"]
    sweep = msgspec.convert(config.to_dict(), Sweep)
    sweep = msgspec.structs.replace(sweep, seeds=sweep.seeds[:1], scale=sweep.scale if scale is None else scale)
    return [stage for stage in make_stages(sweep, [FULL], output) if stage.name != "evaluate"]


def make_tokenizer() -> None:
    """Train the tokenizer and print its size."""
    path = pathlib.Path(require(OUTPUT))
    if path.suffix != ".model":
        raise ValueError(f"--output={path}: name a file ending in .model")
    check_overwrite(path)
    check_writable(path.absolute().parent)
    pieces, size = train_tokenizer(path, SEED.value, COUNT.value)
    print(f"{path}: {pieces} pieces, {size} bytes")


def make_autoencoder() -> None:
    """Train the autoencoder and print its quality on held-out scenes."""
    config, path = CONFIG.value, pathlib.Path(require(WORKDIR)) / AUTOENCODER
    check_overwrite(path)
    check_writable(path.parent)
    steps = {} if STEPS.value is None else {"steps": STEPS.value}
    try:
        settings = autoencoder.AutoencoderTrainConfig(**config.train.to_dict() | steps)
    except TypeError as fault:
        raise ValueError(f"config.train: {fault}") from None
    sizes = get_preset(config.model).autoencoder
    pictures = paint_scenes(settings.seed, TRAINING, config.pictures, config.image_size, config.free_share)
    autoencoder.write_autoencoder(path, sizes, autoencoder.train_autoencoder(sizes, settings, pictures))
    held_out = paint_scenes(settings.seed, HELD_OUT, config.held_out, config.image_size, free_share=0.0)
    quality = autoencoder.measure(sizes, read_autoencoder(path.parent, sizes), held_out)
    print(f"{path}: {path.stat().st_size:,} bytes, PSNR on held-out scenes {quality.psnr:.2f} dB")
    for name in ("mean", "std", "posterior_std"):
        print(f"latent {name} per channel: {np.array2string(getattr(quality, name), precision=3)}")


def check_overwrite(path: pathlib.Path) -> None:
    """Raise ValueError if a file exists and ``--overwrite`` is not given."""
    if path.exists() and not OVERWRITE.value:
        raise ValueError(f"{path}: exists already; pass --overwrite to replace it")


MODES = {
    "ship": Mode(
        ship_model, ("model", "output", "weights", "scale", "train_key", "dry_run"), needs=("model", "output")
    ),
    "tokenizer": Mode(make_tokenizer, ("output", "count", "seed", "overwrite"), needs=("output",)),
    "autoencoder": Mode(make_autoencoder, ("config", "workdir", "steps", "overwrite"), needs=("config", "workdir")),
}

if __name__ == "__main__":
    run_modes(MODES)

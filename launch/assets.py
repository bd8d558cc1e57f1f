"""Makes again what the package brings along: its models, its tokenizer and its autoencoder.

python launch/assets.py ship --model=shapes_base --output=out/ship    the base
python launch/assets.py ship --model=shapes --output=out/ship         the process model, from the base shipped by then
python launch/assets.py tokenizer --output=pdgen/assets/shapes/tokenizer.model
python launch/assets.py autoencoder --config=configs/shapes_autoencoder.py --workdir=out/autoencoder

ship builds the data, trains the model, and replaces its files in pdgen/assets. Run it in the checkout's root. Killed
and started again, it resumes. The base learns from texts that say where everything is, then all that it is to do. The
process model is a cell of configs/ablation_shapes.py: a model trained on multi-turn samples writes the plans of the
conflict subset, then the shipped one learns from all three.

tokenizer trains the sentencepiece tokenizer on generated texts. autoencoder trains the autoencoder and writes it as
ae.safetensors, as a BAGEL folder holds it. For one mode's flags: assets.py MODE --help.
"""

import pathlib
import runpy
import shlex

import msgspec
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from pdgen.checkpoints.shipped import BASE, SHIPPED
from pdgen.checkpoints.torch_checkpoint import AUTOENCODER, read_autoencoder
from pdgen.cli import Mode, exit_on_sigterm, run_modes
from pdgen.config import AutoencoderConfig, preset
from pdgen.evaluate.ablation import Sweep, make_stages
from pdgen.train.release import autoencoder
from pdgen.train.release.autoencoder import HELD_OUT, TRAINING, DivergedError, Quality, scene_pictures
from pdgen.train.release.shipping import replace_shipped
from pdgen.train.release.stages import Stage, run
from pdgen.train.release.tokenizer import train_tokenizer

MODEL = flags.DEFINE_enum("model", None, SHIPPED, "The model to replace.")
OUTPUT = flags.DEFINE_string("output", None, "ship: folder for data and runs. tokenizer: file ending in .model.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average of the weights, or the last ones.")
SCALE = flags.DEFINE_float("scale", None, "Factor on the numbers of samples; by default the recipe's.")
TRAIN_KEYS = flags.DEFINE_multi_string(
    "train_key", [], "KEY=VALUE of the training config, such as num_steps=300 (repeat it)."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands in order; make nothing.")

COUNT = flags.DEFINE_integer("count", 4000, "Trajectories whose texts to train on.", lower_bound=100)
SEED = flags.DEFINE_integer("seed", 0, "Seed of those trajectories.", lower_bound=0)
CONFIG = config_flags.DEFINE_config_file("config", None, "File such as configs/shapes_autoencoder.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write ae.safetensors into.")
STEPS = flags.DEFINE_integer("steps", None, "Optimiser steps, in place of the config's.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing file.")

LAUNCH = pathlib.Path(__file__).parent
# The ablation whose full cell, with its first seed, is the process model.
ABLATION, FULL = "configs/ablation_shapes.py", "rewritten_critique"


def ship_model() -> None:
    """Runs the stages that are missing and replaces the model. Raises ValueError, OSError."""
    exit_on_sigterm()  # ends the command that runs; it resumes from its last checkpoint
    made = make_recipe()
    if DRY_RUN.value:
        for stage in made:
            print(shlex.join(stage.command(LAUNCH)))
        return
    for stage in tqdm(made, unit=" stages"):
        run(stage, LAUNCH, tqdm.write)
    workdir = made[-1].folder / "run"
    folder = replace_shipped(MODEL.value, workdir, WEIGHTS.value)
    print(f"{folder}: holds the {WEIGHTS.value} weights of {workdir}")


def make_recipe() -> list[Stage]:
    """The stages that the flags ask for, in order; the last one trains the model. Raises ValueError."""
    if not pathlib.Path(ABLATION).is_file():
        raise ValueError(f"{ABLATION}: no such file here; run this in the root of pdgen's checkout")
    if wrong := [text for text in TRAIN_KEYS.value if "=" not in text]:
        raise ValueError(f"--train_key={wrong[0]}: write KEY=VALUE, such as num_steps=300")
    output, scale = pathlib.Path(OUTPUT.value), SCALE.value
    base = MODEL.value == BASE
    made = base_stages(output, 1.0 if scale is None else scale) if base else process_stages(output, scale)
    keys = tuple(f"--config.{text}" for text in TRAIN_KEYS.value)
    return [s._replace(arguments=(*s.arguments, *keys)) if s.name == "train" else s for s in made]


def base_stages(output: pathlib.Path, scale: float) -> list[Stage]:
    """The commands that train the base: first on texts that say where everything is, then on all that it is to do."""
    made: list[Stage] = []
    for name, init in (("places", ""), ("base", str(output / "places" / "run"))):
        folder = output / name
        config = f"configs/data_shapes_{name}.py"
        made.append(Stage("build_data", folder, (f"--config={config}", f"--output={folder}/data", f"--scale={scale}")))
        train = (
            f"--config=configs/shapes_{name}.py",
            f"--workdir={folder}/run",
            f"--config.data={folder}/data",
            f"--config.init={init}",
        )
        made.append(Stage("train", folder, train))
    return made


def process_stages(output: pathlib.Path, scale: float | None) -> list[Stage]:
    """The commands that train the process model: the ablation's full cell with its first seed, less the evaluations."""
    config = runpy.run_path(ABLATION)["get_config"]()
    sweep = msgspec.convert(config.to_dict(), Sweep)
    sweep = msgspec.structs.replace(sweep, seeds=sweep.seeds[:1], scale=sweep.scale if scale is None else scale)
    return [stage for stage in make_stages(sweep, [FULL], output) if stage.name != "evaluate"]


def make_tokenizer() -> None:
    """Trains the tokenizer and prints its size. Raises ValueError, OSError."""
    path = pathlib.Path(OUTPUT.value)
    if path.suffix != ".model":
        raise ValueError(f"--output={path}: name a file ending in .model")
    refuse_existing(path)
    pieces, size = train_tokenizer(path, SEED.value, COUNT.value)
    print(f"{path}: {pieces} pieces, {size} bytes")


def make_autoencoder() -> None:
    """Trains the autoencoder and prints its quality on held-out scenes. Raises ValueError, OSError."""
    path = pathlib.Path(WORKDIR.value) / AUTOENCODER
    refuse_existing(path)
    try:
        quality = train_and_measure(CONFIG.value, read_settings(CONFIG.value), path)
    except DivergedError as fault:
        raise ValueError(str(fault)) from None
    print(f"{path}: {path.stat().st_size:,} bytes, PSNR on held-out scenes {quality.psnr:.2f} dB")
    for name in ("mean", "std", "posterior_std"):
        print(f"latent {name} per channel: {np.array2string(getattr(quality, name), precision=3)}")


def train_and_measure(config: ConfigDict, settings: autoencoder.Settings, path: pathlib.Path) -> Quality:
    """Trains, writes ``path`` and measures the file's own weights on held-out scenes."""
    sizes: AutoencoderConfig = preset(config.model).autoencoder
    pictures = scene_pictures(settings.seed, TRAINING, config.pictures, config.image_size, config.free_share)
    autoencoder.write_autoencoder(path, sizes, autoencoder.train(sizes, settings, pictures))
    held_out = scene_pictures(settings.seed, HELD_OUT, config.held_out, config.image_size, free_share=0.0)
    return autoencoder.measure(sizes, read_autoencoder(path.parent, sizes), held_out)


def read_settings(config: ConfigDict) -> autoencoder.Settings:
    """The config's ``train``, with ``--steps``. Raises ValueError for an unknown, missing or wrong value."""
    values = config.train.to_dict()
    if STEPS.value is not None:
        values["steps"] = STEPS.value
    try:
        return autoencoder.Settings(**values)
    except TypeError as fault:
        raise ValueError(f"config.train: {fault}") from None


def refuse_existing(path: pathlib.Path) -> None:
    """Raises ValueError where a file exists and ``--overwrite`` is not given."""
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

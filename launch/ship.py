"""Trains a model that the package brings along, and replaces it: data, training, then the files in pdgen/assets.

python launch/ship.py --model=shapes_base --output=out/ship    the base
python launch/ship.py --model=shapes --output=out/ship         the process model, from the base that is shipped then

Run it in the checkout's root. Killed and started again, it continues. The base learns from texts that say where
everything is, then all that it is to do, then mostly to read. The process model is a cell of configs/ablation_shapes.py: a model trained on
multi-turn samples writes the plans of the conflict subset, then the shipped one learns from all three. --dry_run prints
the commands.
"""

import pathlib
import runpy
import shlex
import signal
import sys

import msgspec
from absl import app, flags, logging
from tqdm import tqdm

from pdgen.command import fail, parse
from pdgen.convert.shipped import BASE, SHIPPED
from pdgen.evaluate.ablation import Sweep, stages
from pdgen.stages import Stage, run
from pdgen.train.shipping import replace_shipped

MODEL = flags.DEFINE_enum("model", None, SHIPPED, "The model to replace.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder for data and runs.", required=True)
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average of the weights, or the last ones.")
SCALE = flags.DEFINE_float("scale", None, "Factor on the numbers of samples; by default the recipe's.")
TRAIN_KEYS = flags.DEFINE_multi_string(
    "train_key", [], "KEY=VALUE of the training config, such as num_steps=300 (repeat it)."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands in order; make nothing.")

LAUNCH = pathlib.Path(__file__).parent
# The ablation whose full cell, with its first seed, is the process model.
ABLATION, FULL = "configs/ablation_shapes.py", "rewritten_critique"


def base_stages(output: pathlib.Path, scale: float) -> list[Stage]:
    """The commands that train the base: on texts that say where everything is, on all tasks, and mostly on reading."""
    made: list[Stage] = []
    init = ""
    for name, data in (("places", "places"), ("base", "base"), ("reading", "base")):
        if name == data:
            build = (f"--config=configs/data_shapes_{data}.py", f"--output={output}/{data}/data", f"--scale={scale}")
            made.append(Stage("build_data", output / data, build))
        run_folder = f"{output}/{name}/run"
        train = (f"--config=configs/shapes_{name}.py", f"--workdir={run_folder}", f"--config.data={output}/{data}/data",
                 f"--config.init={init}")  # fmt: skip
        made.append(Stage("train", output / name, train))
        init = run_folder
    return made


def process_stages(output: pathlib.Path, scale: float | None) -> list[Stage]:
    """The commands that train the process model: the ablation's full cell with its first seed, less the evaluations."""
    config = runpy.run_path(ABLATION)["get_config"]()
    sweep = msgspec.convert(config.to_dict(), Sweep)
    sweep = msgspec.structs.replace(sweep, seeds=sweep.seeds[:1], scale=sweep.scale if scale is None else scale)
    return [stage for stage in stages(sweep, [FULL], output) if stage.name != "evaluate"]


def recipe() -> list[Stage]:
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


def ship() -> None:
    """Runs what is missing and replaces the model. Raises ValueError or OSError in one line."""
    made = recipe()
    if DRY_RUN.value:
        for stage in made:
            print(shlex.join(stage.command(LAUNCH)))
        return
    for stage in tqdm(made, unit=" stages"):
        run(stage, LAUNCH, tqdm.write)
    workdir = made[-1].folder / "run"
    folder = replace_shipped(MODEL.value, workdir, WEIGHTS.value)
    print(f"{folder}: holds the {WEIGHTS.value} weights of {workdir}")


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    # An exception ends the command that runs; it resumes from its last checkpoint.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        ship()
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

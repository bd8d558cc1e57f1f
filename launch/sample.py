"""Samples trajectories: for each prompt plans, sketches, inspections and refinements until the model ends.

python launch/sample.py --checkpoint=out/nano --prompt="a red circle left of a blue square" --output=out/circle

One prompt gives trajectory.json, one PNG per image, strip.png and index.html; of several, each has a folder
of its own, 000, 001, ..., under one index.html.
"""

import pathlib
import signal
import sys

from absl import app, flags, logging

from pdgen.command import fail, parse
from pdgen.files import new_folder
from pdgen.flow.denoise import ImageSettings
from pdgen.interleave.trajectory import Trajectory
from pdgen.sample.compiled import keep_compiled
from pdgen.sample.engine import SampleError, Sampler, SampleSettings
from pdgen.sample.output import PAGE, is_output, write_output
from pdgen.sample.text import TextSettings

_IMAGE, _TEXT, _ALL = ImageSettings(), TextSettings(), SampleSettings()

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A pdgen checkpoint or a training run's workdir.", required=True)
PROMPT = flags.DEFINE_multi_string("prompt", None, "What to draw; repeat it for several trajectories.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an earlier output.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the first prompt; each further one has the next.", lower_bound=0)
HEIGHT = flags.DEFINE_integer("height", _ALL.height, "Pixels; 0 = the most the model can.", lower_bound=0)
WIDTH = flags.DEFINE_integer("width", _ALL.width, "Pixels; 0 = the most the model can.", lower_bound=0)
MAX_IMAGES = flags.DEFINE_integer("max_images", _ALL.max_images, "Images of a trajectory, at most.", lower_bound=1)
MAX_TOKENS = flags.DEFINE_integer("max_tokens", _TEXT.max_tokens, "Tokens of one text, at most.", lower_bound=1)
MAX_PROMPT_TOKENS = flags.DEFINE_integer(
    "max_prompt_tokens", _ALL.max_prompt_tokens, "Tokens of a prompt, at most.", lower_bound=1
)
TEMPERATURE = flags.DEFINE_float("temperature", _TEXT.temperature, "Of texts; 0 = greedy.", lower_bound=0.0)
NUM_TIMESTEPS = flags.DEFINE_integer(
    "num_timesteps", _IMAGE.num_timesteps, "Points of an image's schedule; one less steps.", lower_bound=2
)
TEXT_SCALE = flags.DEFINE_float("text_scale", _IMAGE.text_scale, "Text guidance; 1 = none at all.", lower_bound=1.0)
IMAGE_SCALE = flags.DEFINE_float("image_scale", _IMAGE.image_scale, "Image guidance; 1 = none.", lower_bound=1.0)
KEEP_COMPILED = flags.DEFINE_bool("keep_compiled", True, "Keep compiled functions in the user's cache folder.")


def settings() -> SampleSettings:
    """What the flags ask for. Raises ValueError for values out of range."""
    return SampleSettings(
        height=HEIGHT.value,
        width=WIDTH.value,
        max_images=MAX_IMAGES.value,
        max_prompt_tokens=MAX_PROMPT_TOKENS.value,
        text=TextSettings(MAX_TOKENS.value, TEMPERATURE.value),
        image=ImageSettings(
            num_timesteps=NUM_TIMESTEPS.value, text_scale=TEXT_SCALE.value, image_scale=IMAGE_SCALE.value
        ),
    )


def check_output(path: pathlib.Path) -> None:
    """Raises SampleError where ``path`` exists and may not be replaced."""
    if path.exists() and not OVERWRITE.value:
        raise SampleError(f"{path}: exists already; name another folder or pass --overwrite")
    if path.exists() and not is_output(path):
        raise SampleError(f"{path}: holds no sampled trajectories, so --overwrite does not replace it")


def run() -> str:
    """Samples, writes the output and returns a line that sums it up."""
    path, wanted, prompts = pathlib.Path(OUTPUT.value), settings(), PROMPT.value
    check_output(path)
    if KEEP_COMPILED.value:
        keep_compiled()
    sampler = Sampler.from_checkpoint(CHECKPOINT.value)
    seeds = range(SEED.value, SEED.value + len(prompts))
    side = sampler.config.latent_stride * sampler.config.max_latent_size
    pixels = (wanted.height or side) * (wanted.width or side)
    nbytes = len(prompts) * wanted.max_images * pixels * 6  # uncompressed, as a file and in the strip
    with new_folder(
        path, nbytes, kind="sampler's output", replaceable=is_output, overwrite=OVERWRITE.value, say=print
    ) as folder:
        drawn = sampler(prompts, seeds, wanted, progress=lambda line: print(line, flush=True))
        write_output(folder, drawn)
    return summary(path, drawn)


def summary(path: pathlib.Path, drawn: list[Trajectory]) -> str:
    """What was sampled, in how much time, and where to look at it."""
    images, costs = sum(len(one.images) for one in drawn), drawn[0].costs
    return (
        f"{path / PAGE}: trajectories {len(drawn)}, images {images}, sampling {costs['batch_seconds']:.1f} s, "
        f"compiling {costs['compile_seconds']:.1f} s"
    )


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a partial folder is removed
    try:
        print(run())
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

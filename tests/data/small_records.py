"""Small records with pictures and made-up latents, for tests of code that reads records."""

import numpy as np
import PIL.Image

from pdgen.config import SHAPES_NANO
from pdgen.sequence.images import encode_png
from pdgen.sequence.trajectory import Image, Record, Text, format_inspection, format_plan

WORDS = ("red", "green", "circle", "square", "left", "of", "above", "small", "two", "stars")


def words(rng, low, high):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def image(rng, stage, target, config=SHAPES_NANO, side=64):
    """A picture of random blocks and latents of the config's autoencoder."""
    blocks = PIL.Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    shape = (side // config.autoencoder.downsample,) * 2 + (config.autoencoder.z_channels,)
    mean, logvar = rng.normal(size=shape).astype(np.float16), np.full(shape, -4, np.float16)
    return Image(
        stage=stage,
        png=encode_png(blocks.resize((side, side), PIL.Image.Resampling.NEAREST)),
        target=target,
        latent_mean=mean.tobytes(),
        latent_logvar=logvar.tobytes(),
        latent_shape=shape,
    )


def record(number, seed=0, config=SHAPES_NANO, side=64):
    """A whole trajectory of one to three steps; some drafts are faulty and refined, some plans follow no inspection."""
    rng = np.random.default_rng((seed, number))
    segments = [Text("prompt", words(rng, 3, 8), False)]
    for _ in range(rng.integers(1, 4)):
        segments.append(Text("plan", format_plan(words(rng, 3, 6), words(rng, 4, 12)), True))
        if faulty := rng.random() < 0.4:
            segments.append(image(rng, "sketch", False, config, side))
            segments.append(Text("inspect", format_inspection(words(rng, 3, 9), words(rng, 2, 5)), True))
        segments.append(image(rng, "refine" if faulty else "sketch", True, config, side))
        if rng.random() < 0.7:
            segments.append(Text("inspect", format_inspection(words(rng, 3, 9)), True))
    return Record(id=f"r-{seed}-{number:06d}", source="test", complete=True, segments=segments)


def records(count, seed=0, config=SHAPES_NANO, side=64):
    return [record(number, seed, config, side) for number in range(count)]

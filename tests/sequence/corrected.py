"""Small records for tests of segments and turns: a corrected draft, and pictures that are only read."""

import numpy as np
import PIL.Image

from pdgen.assets import shapes_folder
from pdgen.sequence.images import encode_png
from pdgen.sequence.layout import DroppedImage, TextSegment, VitSegment
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image, Record, Text, check_grammar

TOKENIZER = load_tokenizer(shapes_folder())
SEE, OPEN, END = TOKENIZER.vision_start, TOKENIZER.im_start, TOKENIZER.im_end
PLAN = "<ins>Add a red circle.</ins> <des>A red circle.</des>"
FAULT = "The circle is blue. <refine>Make it red.</refine>"
SHAPE = (8, 8, 16)


def text(stage, words="a red circle", target=None):
    return Text(stage=stage, text=words, target=stage != "prompt" if target is None else target)


def image(stage, target=None, seed=0):
    rng = np.random.default_rng(seed)
    png = encode_png(PIL.Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)))
    mean, logvar = rng.normal(size=SHAPE), rng.normal(size=SHAPE) - 2
    moments = {"latent_mean": mean, "latent_logvar": logvar}
    return Image(
        stage=stage,
        png=png,
        target=stage != "given" if target is None else target,
        latent_shape=SHAPE,
        **{name: value.astype(np.float16).tobytes() for name, value in moments.items()},
    )


def record(*parts, complete=True, mode="process"):
    made = Record(id="r1", source="test", complete=complete, segments=list(parts), mode=mode)
    check_grammar(made)
    return made


CORRECTED = record(
    image("given", seed=1),
    text("prompt"),
    text("plan", PLAN),
    image("sketch", target=False, seed=2),
    text("inspect", FAULT),
    image("refine", seed=3),
    text("inspect", "All is right."),
)


# Two pictures to read, and an answer about them.
LOOKED_AT = record(
    image("given", seed=4),
    image("given", seed=5),
    text("prompt", "a star"),
    text("answer", "two stars"),
    mode="understand",
)


def describe(segments):
    """List kind, loss and switch target of each segment."""
    described = []
    for segment in segments:
        if isinstance(segment, DroppedImage):
            described.append("gap")
        elif isinstance(segment, TextSegment):
            described.append(("text", segment.loss, segment.switch_target))
        elif isinstance(segment, VitSegment):
            described.append(("vit", segment.switch_target))
        else:
            described.append(("noised" if segment.noised else "clean", segment.switch_target))
    return described

"""A pack of trajectories with the paper's proportions, for benchmarks that do not depend on values.

A trajectory is a prompt, then for each image a plan, the noised and the clean VAE copy, the ViT copy and an inspection.
"""

import itertools
import types

import numpy as np

from pdgen.config import ModelConfig
from pdgen.sample.image import make_grid
from pdgen.sequence.images import position_ids
from pdgen.sequence.layout import (
    Budgets,
    LatentSegment,
    Layout,
    Pack,
    Segment,
    TextSegment,
    VitSegment,
    assemble,
    lay_out,
)

PROMPT, PLAN, INSPECT = 40, 100, 40  # tokens of the texts, about the paper's
IMAGES = (3, 4)  # of a trajectory, in turns: the paper's have 3.51
ROUND = 128  # a stream's budget is a multiple of this


def make_trajectory(config: ModelConfig, side: int, images: int) -> Layout:
    """Return one trajectory with square pictures of ``side`` pixels; values are zeros and ones.

    Raises:
      ValueError: The model cannot draw pictures of this size.
    """
    grid, last = make_grid(config, side, side), config.language.vocab_size - 1
    switches = types.SimpleNamespace(im_start=last - 3, im_end=last - 2, vision_start=last - 1, vision_end=last)
    latents = position_ids(grid.latents, config.max_latent_size)
    patches = position_ids(grid.patches, config.vision.max_side)
    values = np.ones((len(latents), config.latent_dim), np.float32)
    pixels = np.zeros((len(patches), config.vision.patch_dim), np.float32)
    segments: list[Segment] = [TextSegment([0] * PROMPT)]
    for _ in range(images):
        segments += [
            TextSegment([1] * PLAN, True, switches.vision_start),
            LatentSegment(values, latents, noised=True),
            LatentSegment(values, latents),
            VitSegment(pixels, patches, switches.im_start),
            TextSegment([2] * INSPECT, True, switches.im_end, stage="inspect"),
        ]
    return lay_out(segments, switches, config)


def make_process_pack(config: ModelConfig, side: int, tokens: int) -> tuple[Pack, tuple[int, ...]]:
    """Return a pack of as many trajectories as fit ``tokens``, the last one with fewer images, and their lengths.

    Raises:
      ValueError: Not even one trajectory with one image fits, or the model cannot draw pictures of this size.
    """
    lengths = {n: len(make_trajectory(config, side, n).stream) for n in range(1, 1 + max(IMAGES))}
    chosen, left = [], tokens
    for wanted in itertools.cycle(IMAGES):
        fits = [n for n, length in lengths.items() if n <= wanted and length <= left]
        if not fits:
            break
        chosen.append(max(fits))
        left -= lengths[max(fits)]
    if not chosen:
        raise ValueError(f"a trajectory with one image of {side} pixels is {lengths[1]} tokens, more than {tokens}")
    layouts = [make_trajectory(config, side, n) for n in chosen]
    used = np.sum([layout.lengths for layout in layouts], axis=0)
    budgets = Budgets(*(int(n) for n in -(-used // ROUND) * ROUND))
    return assemble(layouts, budgets, row=0), tuple(lengths[n] for n in chosen)

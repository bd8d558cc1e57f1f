"""Measuring how a run's data lay out images, for the record that goes into its checkpoints."""

import numpy as np

from pdgen.checkpoints.runs.layout import Copy, TrainingLayout
from pdgen.config import ModelConfig
from pdgen.data.records import RecordError, RecordSource
from pdgen.sequence.segments import CLEAN, VIT, ConditionDropout, unit_kinds
from pdgen.sequence.trajectory import Image

_RECORDS = 256  # spread evenly over the data set; reading all of a large one would take minutes


def measure_layout(source: RecordSource, dropout: ConditionDropout, config: ModelConfig) -> TrainingLayout:
    """Measure the layout of images in up to 256 records of a data set; broken records are not counted.

    A copy that ``dropout`` always drops is none.
    """
    copies: dict[int, Copy] = {CLEAN: "vae", VIT: "vit"}
    rates = {CLEAN: dropout.vae, VIT: dropout.vit}
    seen: dict[bool, set[Copy]] = {True: set(), False: set()}  # by whether the image is given
    sides, measured = [], 0
    for number in np.unique(np.linspace(0, len(source) - 1, _RECORDS).round().astype(int)):
        try:
            record = source[number]
        except RecordError:
            continue
        measured += 1
        for segment, kinds in zip(record.segments, unit_kinds(record)):
            if isinstance(segment, Image):
                given = segment.stage == "given"
                seen[given] |= {copies[kind] for kind in kinds if kind in copies and rates[kind] < 1}
                if not given and segment.latent_shape:
                    sides += [side * config.autoencoder.downsample for side in segment.latent_shape[:2]]
    given_copies, drawn_copies = (tuple(sorted(seen[given])) for given in (True, False))
    # The loader draws latents from the posterior, with noise of the run's seed.
    return TrainingLayout(given_copies, drawn_copies, "sample", min(sides, default=0), max(sides, default=0), measured)

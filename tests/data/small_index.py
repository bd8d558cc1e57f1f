"""Indexes of made-up records for tests of packing."""

import numpy as np

from pdgen.data.lengths import CountedRecord, LengthIndex, make_index
from pdgen.sequence.segments import CLEAN, NOISED, TEXT, VIT, Outline, Unit


def index_of(records) -> LengthIndex:
    """Return the index of records r0, r1, ..., each a list of units of a single turn."""
    return make_index(
        CountedRecord(f"r{n}", Outline(list(units), [(0, len(units))])) for n, units in enumerate(records)
    )


def shapes_like(count, seed=0) -> LengthIndex:
    """Return an index like shapes world's: up to three steps, some faulty drafts, 64 VAE and 16 ViT tokens an image."""
    rng = np.random.default_rng(seed)

    def units():
        made = [Unit(TEXT, int(rng.integers(10, 25)))]
        for _ in range(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25])):
            made.append(Unit(TEXT, int(rng.integers(25, 60))))
            for noised in [False, True] if rng.random() < 0.3 else [True]:
                made += [Unit(NOISED, 64)] * noised + [Unit(CLEAN, 64), Unit(VIT, 16)]
                made.append(Unit(TEXT, int(rng.integers(15, 50))))
        return made

    return index_of(units() for _ in range(count))


def paper_like(count, seed=0) -> LengthIndex:
    """The paper's multi-turn subset at 512 pixels: prompts of 152.8 characters (about 4.5 a token), 3.51 images of
    1,024 VAE tokens twice and 1,369 ViT tokens, with their switch tokens 3,423."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        units = [Unit(TEXT, int(np.clip(rng.normal(34, 8), 8, None)))]
        turns = []
        for _ in range(rng.choice([1, 2, 3, 4, 5], p=[0.07, 0.14, 0.25, 0.29, 0.25])):
            first = len(units)
            units.append(Unit(TEXT, int(rng.integers(40, 110))))
            units += [Unit(NOISED, 1024), Unit(CLEAN, 1024), Unit(VIT, 1369)]
            turns.append((first, len(units)))
            units.append(Unit(TEXT, int(rng.integers(15, 60))))
        turns[-1] = (turns[-1][0], len(units))
        records.append(CountedRecord(f"r{number}", Outline(units, turns)))
    return make_index(records)

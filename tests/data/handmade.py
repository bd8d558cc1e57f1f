"""Hand-made trajectories, for tests of data sets that must not depend on the code that builds them."""

import io

import numpy as np
import PIL.Image

from pdgen.sequence.trajectory import Image, Record, Text, format_inspection, format_plan


def png(seed, width=32, height=32):
    """Return PNG bytes of noise, another picture for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(number, size=(32, 32)):
    """Return a record of prompt, plan and sketch; with an odd number the sketch is criticised and refined."""
    segments = [
        Text(stage="prompt", text=f"a picture of {number} dots", target=False),
        Text(stage="plan", text=format_plan(f"Draw {number} dots.", f"{number} dots."), target=True),
        Image(stage="sketch", png=png(2 * number, *size), target=not number % 2),
    ]
    if number % 2:
        segments += [
            Text(stage="inspect", text=format_inspection("One is missing.", "Add a dot."), target=True),
            Image(stage="refine", png=png(2 * number + 1, *size), target=True),
        ]
    segments.append(Text(stage="inspect", text=f"There are {number} dots.", target=True))
    scene = {"dots": number}
    return Record(id=f"dots-{number}", source="dots", complete=bool(number % 3), segments=segments, scene=scene)


def records(count, size=(32, 32)):
    """Return the records of the first numbers."""
    return [record(number, size) for number in range(count)]

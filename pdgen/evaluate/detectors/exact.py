"""Detectors of GenEval's rule: what an image shows, as boxes with classes, scores and colours."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import PIL.Image

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval import Detection, Detections, Thresholds
from pdgen.shapes.detector import detect
from pdgen.shapes.world import GRID, SHAPES


@runtime_checkable
class Detector(Protocol):
    """Finds objects and tells their colours.

    Attributes:
      name: of ``--detector``.
      identity: name, weights and whatever else decides its answers; equal identities give equal answers.
      classes: what it knows.
      thresholds: which of its detections count.
      batch: images that it takes at once at most.
      learned: a network, which a device can break: it is not believed when it sees nothing in any image.
    """

    name: str
    identity: str
    classes: tuple[str, ...]
    thresholds: Thresholds
    batch: int
    learned: bool

    def detect(self, images: Sequence[PIL.Image.Image]) -> list[Detections]:
        """What each RGB image shows. Raises EvaluationError for an image that it cannot take."""

    def colors(self, image: PIL.Image.Image, noun: str, found: Sequence[Detection]) -> list[str]:
        """The colour of each object, which it has found in that image as a ``noun``."""


class ShapesDetector:
    """The exact detector of shapes world. It reports nothing twice and no chance resemblance: all of it counts."""

    name = "shapes"
    identity = "shapes"
    classes = SHAPES
    thresholds = Thresholds(score=0.0, counting=0.0)
    batch = 16
    learned = False

    def detect(self, images: Sequence[PIL.Image.Image]) -> list[Detections]:
        """As ``Detector``; images are squares of 32 pixels or more."""
        return [self._one(image) for image in images]

    def _one(self, image: PIL.Image.Image) -> Detections:
        try:
            found = detect(np.asarray(image))
        except ValueError as fault:
            raise EvaluationError(f"{image.info.get('file', 'image')}: {fault}") from None
        scale = image.width / GRID
        objects: dict[str, list[Detection]] = {}
        for item in found:
            left, top, right, bottom = (side * scale for side in item.box)
            box = (left, top, right, bottom)
            objects.setdefault(item.shape, []).append(Detection(box, item.score, item.color))
        return objects

    def colors(self, image: PIL.Image.Image, noun: str, found: Sequence[Detection]) -> list[str]:
        """As ``Detector``: they were found together with the boxes."""
        return [item.color for item in found]


DETECTORS = ("shapes", "mask2former")


def load_detector(name: str, weights: str = "", device: str = "") -> Detector:
    """The detector of that name.

    Args:
      weights, device: of ``mask2former``, as ``Mask2Former.load`` takes them; "" for its defaults.

    Raises:
      EvaluationError: the name is unknown, or a package or the weights are missing; says how to get them.
    """
    if name == "shapes":
        return ShapesDetector()
    if name != "mask2former":
        raise EvaluationError(f"detector {name!r} is none of {', '.join(DETECTORS)}")
    try:
        from pdgen.evaluate.detectors.mask2former import Mask2Former  # PyTorch comes with an extra only

        return Mask2Former.load(weights, device)
    except ImportError as fault:
        raise EvaluationError(f"detector mask2former: {fault}; install the extra: pip install pdgen[geneval]") from None

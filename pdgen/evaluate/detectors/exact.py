"""Detectors for GenEval's rule: the interface, the exact detector of shapes world, and loading by name."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import PIL.Image

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval.rule import Detection, Detections, Thresholds
from pdgen.shapes.detector import detect
from pdgen.shapes.world import GRID, SHAPES


@runtime_checkable
class Detector(Protocol):
    """Finds objects and determines their colors.

    Attributes:
      name: The name for ``--detector``.
      identity: Name, weights and all else that decides its answers. Equal identities give equal answers.
      batch: The largest number of images in one call.
      learned: Whether it is a network, which may fail on a device. Its result is rejected if it detects nothing in any
        image.
    """

    name: str
    identity: str
    classes: tuple[str, ...]
    thresholds: Thresholds
    batch: int
    learned: bool

    def detect(self, images: Sequence[PIL.Image.Image]) -> list[Detections]:
        """Return the objects in each RGB image.

        Raises:
          EvaluationError: The detector cannot process an image.
        """

    def colors(self, image: PIL.Image.Image, noun: str, found: Sequence[Detection]) -> list[str]:
        """Return the color of each object that it found in the image as a ``noun``."""


class ShapesDetector:
    """The exact detector of shapes world. It reports no duplicates and no false positives, so all detections count."""

    name: str = "shapes"
    identity: str = "shapes"
    classes: tuple[str, ...] = SHAPES
    thresholds: Thresholds = Thresholds(score=0.0, counting=0.0)
    batch: int = 16
    learned: bool = False

    def detect(self, images: Sequence[PIL.Image.Image]) -> list[Detections]:
        """Return the objects in each image, a square of at least 32 pixels. See ``Detector``."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: PIL.Image.Image) -> Detections:
        try:
            found = detect(np.asarray(image))
        except ValueError as fault:
            raise EvaluationError(f"{image.info.get('file', 'image')}: {fault}") from None
        scale = image.width / GRID
        objects: dict[str, list[Detection]] = {}
        for item in found:
            left, top, right, bottom = (side * scale for side in item.box)
            objects.setdefault(item.shape, []).append(Detection((left, top, right, bottom), item.score, item.color))
        return objects

    def colors(self, image: PIL.Image.Image, noun: str, found: Sequence[Detection]) -> list[str]:
        """Return the colors, which were found together with the boxes. See ``Detector``."""
        return [item.color for item in found if item.color is not None]  # ``detect`` gives all a color


DETECTORS = ("shapes", "mask2former")


def load_detector(name: str, weights: str = "", device: str = "") -> Detector:
    """Load a detector by its name.

    Args:
      name: One of ``DETECTORS``.
      weights: The weights of ``mask2former``, see ``Mask2Former.load``; "" for the default.
      device: The device of ``mask2former``; "" for the default.

    Raises:
      EvaluationError: The name is unknown, or a package or the weights are missing. The message says how to get them.
    """
    if name == "shapes":
        return ShapesDetector()
    if name != "mask2former":
        raise EvaluationError(f"detector {name!r} is not one of {', '.join(DETECTORS)}")
    try:
        from pdgen.evaluate.detectors.mask2former import Mask2Former  # needs PyTorch, which only an extra installs

        return Mask2Former.load(weights, device)
    except ImportError as fault:
        raise EvaluationError(f"detector mask2former: {fault}; install the extra: pip install pdgen[geneval]") from None

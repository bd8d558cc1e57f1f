"""Training trajectories of shapes world: prompt, then plan, sketch and inspection for every growing subscene.

With some probability a draft is drawn with a fault. Its inspection then says what is wrong, and the refined
image follows. The faulty draft is context, never a target; its inspection and its correction are targets.
"""

import math
from collections.abc import Iterator

import msgspec
import numpy as np

from pdgen.interleave.trajectory import Image, Record, Text
from pdgen.scenes import first_language as language
from pdgen.scenes.first_world import MAX_OBJECTS, Scene, corrupt, grow, random_scene
from pdgen.scenes.painter import paint, png_bytes

SOURCE = "shapes"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What trajectories are made.

    Attributes:
      seed: record i is a function of (seed, i) and these settings.
      count: trajectories to make.
      image_size: pixels of a picture's side.
      object_rates: probabilities of 1, 2, ... objects; the default favours two, as GenEval's tasks do.
      fault_rate: probability that a step's first draft is faulty.

    Raises:
      ValueError: a value is out of range; the message names the key.
    """

    seed: int = 0
    count: int = 4000
    image_size: int = 32
    object_rates: tuple[float, ...] = (0.3, 0.45, 0.25)
    fault_rate: float = 0.3

    def __post_init__(self) -> None:
        if self.seed < 0 or self.count < 1:
            raise ValueError(f"seed {self.seed} must be at least 0 and count {self.count} at least 1")
        if self.image_size < 16:
            raise ValueError(f"image_size {self.image_size} is below 16 pixels: shapes become unrecognisable")
        rates = self.object_rates
        if not 1 <= len(rates) <= MAX_OBJECTS or min(rates) < 0 or not math.isclose(sum(rates), 1):
            raise ValueError(f"object_rates {rates} must be 1 to {MAX_OBJECTS} probabilities that sum to 1")
        if not 0 <= self.fault_rate <= 1:
            raise ValueError(f"fault_rate {self.fault_rate} is no probability")


DEFAULTS = Settings()


def _image(scene: Scene, stage: str, target: bool, size: int) -> Image:
    return Image(stage=stage, png=png_bytes(paint(scene, size)), target=target)


def make_trajectory(rng: np.random.Generator, record_id: str, settings: Settings = DEFAULTS) -> Record:
    """A complete trajectory about a random scene, without latents; equal generators give equal records.

    The record's ``scene`` is the final scene as plain data (``msgspec.convert`` makes it a Scene again).
    """
    count = 1 + int(rng.choice(len(settings.object_rates), p=settings.object_rates))
    scene = random_scene(rng, count)
    size = settings.image_size
    segments: list[Text | Image] = [Text(stage="prompt", text=language.prompt(rng, scene), target=False)]
    shown = 0
    for step in grow(rng, scene):
        added = step.objects[shown:]
        shown = len(step.objects)
        segments.append(Text(stage="plan", text=language.plan(step, added), target=True))
        stage = "sketch"
        if rng.random() < settings.fault_rate:
            right = added[rng.integers(len(added))]
            draft = corrupt(rng, step, right.id)
            words = language.fault(rng, draft.find(right.id), right)
            segments.append(_image(draft, stage, False, size))
            segments.append(Text(stage="inspect", text=words, target=True))
            stage = "refine"
        segments.append(_image(step, stage, True, size))
        words = language.agreement(rng, step, added, scene.objects[shown:])
        segments.append(Text(stage="inspect", text=words, target=True))
    plain = msgspec.json.decode(msgspec.json.encode(scene))
    return Record(id=record_id, source=SOURCE, complete=True, segments=segments, scene=plain)


def make_trajectories(settings: Settings) -> Iterator[Record]:
    """``settings.count`` records, in order, without latents."""
    for index in range(settings.count):
        rng = np.random.default_rng((settings.seed, index))
        yield make_trajectory(rng, f"{SOURCE}-{settings.seed}-{index:06d}", settings)

"""Training trajectories of shapes world: prompt, then plan, sketch and inspection for every growing subscene.

With some probability a draft is drawn with a fault. Its inspection then says what is wrong, and the refined
image follows. The faulty draft is context, never a target; its inspection and its correction are targets.
"""

import io
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from PIL import Image as PILImage

from pdgen.interleave.trajectory import Image, Record, Text
from pdgen.scenes import language
from pdgen.scenes.graph import Scene, corrupt, grow, random_scene
from pdgen.scenes.painter import paint, png_bytes

SOURCE = "shapes"
# Probabilities of 1, 2 and 3 objects: GenEval's tasks mostly name two.
OBJECT_RATES = (0.3, 0.45, 0.25)
FAULT_RATE = 0.3

Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _image(scene: Scene, stage: str, target: bool, size: int) -> Image:
    return Image(stage=stage, png=png_bytes(paint(scene, size)), target=target)


def make_trajectory(
    rng: np.random.Generator,
    record_id: str,
    *,
    object_rates: Sequence[float] = OBJECT_RATES,
    fault_rate: float = FAULT_RATE,
    size: int = 32,
) -> Record:
    """A complete trajectory about a random scene, without latents.

    Args:
      rng: the only source of chance; equal generators give equal records.
      record_id: the record's id.
      object_rates: probabilities of 1, 2, ... objects; they sum to 1.
      fault_rate: probability that a step's first draft is faulty.
      size: pixels of a picture's side.

    Returns:
      The record; ``scene`` is the final scene as plain data.
    """
    count = 1 + int(rng.choice(len(object_rates), p=object_rates))
    scene = random_scene(rng, count)
    segments: list[Text | Image] = [Text(stage="prompt", text=language.prompt(rng, scene), target=False)]
    shown = 0
    for step in grow(rng, scene):
        added = step.objects[shown:]
        shown = len(step.objects)
        segments.append(Text(stage="plan", text=language.plan(step, added), target=True))
        stage = "sketch"
        if rng.random() < fault_rate:
            right = added[rng.integers(len(added))]
            draft = corrupt(rng, step, right.id)
            words = language.fault(rng, draft.find(right.id), right)
            segments.append(_image(draft, stage, False, size))
            segments.append(Text(stage="inspect", text=words, target=True))
            stage = "refine"
        segments.append(_image(step, stage, True, size))
        words = language.agreement(rng, step, added, scene.objects[shown:])
        segments.append(Text(stage="inspect", text=words, target=True))
    return Record(
        id=record_id, source=SOURCE, complete=True, segments=segments, scene=msgspec.to_builtins(scene)
    )


def add_latents(records: Sequence[Record], encode: Encode) -> list[Record]:
    """The records with every image's latent moments; equal images are encoded once, all in one call.

    Args:
      records: their images must have one common size.
      encode: uint8 RGB [n, height, width, 3] -> mean and log-variance, each [n, h, w, z], of the
        autoencoder's posterior before scale and shift.
    """
    pngs = list(dict.fromkeys(s.png for r in records for s in r.segments if isinstance(s, Image)))
    if not pngs:
        return list(records)
    pictures = np.stack([np.asarray(PILImage.open(io.BytesIO(png)).convert("RGB")) for png in pngs])
    mean, logvar = (np.asarray(moment, np.float16) for moment in encode(pictures))
    moments = {
        png: {"latent_mean": m.tobytes(), "latent_logvar": v.tobytes(), "latent_shape": m.shape}
        for png, m, v in zip(pngs, mean, logvar, strict=True)
    }

    def filled(segment: Text | Image) -> Text | Image:
        return (
            msgspec.structs.replace(segment, **moments[segment.png])
            if isinstance(segment, Image)
            else segment
        )

    return [msgspec.structs.replace(r, segments=[filled(s) for s in r.segments]) for r in records]

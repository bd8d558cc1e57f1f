"""From a training record to the segments of its document: copies of images, targets, condition dropout.

A record's text is one **unit**; an image is up to three, in this order: noised VAE tokens (if it is a flow
target), clean VAE tokens, ViT tokens. ``outline`` lists the units with their token counts, which is all
that packing needs; ``record_segments`` makes the segments themselves.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

from pdgen.config import ModelConfig
from pdgen.interleave import images
from pdgen.interleave.layout import (
    DroppedImage,
    LatentSegment,
    Segment,
    SwitchTokens,
    TextSegment,
    VitSegment,
)
from pdgen.interleave.tokenizer import Tokenizer
from pdgen.interleave.trajectory import Image, Record, Text

TEXT, NOISED, CLEAN, VIT = range(4)  # kinds of unit


class SegmentError(ValueError):
    """A record cannot become a document of this model; the line names the record, the segment, the remedy."""


@dataclasses.dataclass(frozen=True)
class ConditionDropout:
    """Probabilities of dropping conditions, so that guidance has models of what it leaves out.

    Attributes:
      text: all texts between two images, together (sampling's text-guidance context).
      vae: the clean VAE copy of an image.
      vit: the ViT copy of an image.

    Raises:
      ValueError: a value is no probability.
    """

    text: float = 0.1
    vae: float = 0.3
    vit: float = 0.3

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"condition dropout of {name} is {value}, expected a probability")


NO_DROPOUT = ConditionDropout(0.0, 0.0, 0.0)


class Unit(NamedTuple):
    """One unit of a document: its kind and its tokens without switch tokens."""

    kind: int
    tokens: int


def outline(record: Record, tokenizer: Tokenizer, config: ModelConfig) -> list[Unit]:
    """The units of a record in order, nothing dropped.

    Raises:
      SegmentError: see ``record_segments``.
    """
    units = []
    for number, segment in enumerate(record.segments):
        where = f"record {record.id}: segment {number}"
        if isinstance(segment, Text):
            units.append(Unit(TEXT, len(_ids(segment, tokenizer, config, where))))
            continue
        latent, vit = _latent_grid(segment, config, where), _vit_grid(segment, config, where)
        copies = (NOISED, CLEAN) if segment.target else (CLEAN,)
        units += [Unit(kind, latent[0] * latent[1]) for kind in copies] + [Unit(VIT, vit[0] * vit[1])]
    return units


def stream_lengths(kinds: Sequence[int], tokens: Sequence[int]) -> Int32[np.ndarray, "units 3"]:
    """Tokens that each unit puts into the text, vit and vae stream; its two switch tokens are text."""
    kinds, tokens = np.asarray(kinds), np.asarray(tokens)
    text = np.where(kinds == TEXT, tokens + 2, 2)
    vae = np.where((kinds == NOISED) | (kinds == CLEAN), tokens, 0)
    return np.stack([text, np.where(kinds == VIT, tokens, 0), vae], axis=-1).astype(np.int32)


def kept(
    kinds: Sequence[int], dropout: ConditionDropout, rng: np.random.Generator
) -> Bool[np.ndarray, " units"]:
    """Which units condition dropout leaves; takes one uniform number per unit from ``rng``.

    Noised copies stay. The texts before an image go together; texts that no image follows condition
    nothing and stay. Where nothing would be left, everything stays.
    """
    rates = {NOISED: 0.0, CLEAN: dropout.vae, VIT: dropout.vit}
    draws = rng.random(len(kinds))
    last_image = max((n for n, kind in enumerate(kinds) if kind != TEXT), default=-1)
    keep = np.ones(len(kinds), bool)
    for n, kind in enumerate(kinds):
        if kind != TEXT:
            keep[n] = draws[n] >= rates[kind]
        elif n and kinds[n - 1] == TEXT:
            keep[n] = keep[n - 1]
        else:
            keep[n] = draws[n] >= dropout.text or n > last_image
    return keep if keep.any() else np.ones(len(kinds), bool)


def switch_targets(record: Record, switches: SwitchTokens) -> list[int | None]:
    """What the closing token of each of the record's segments must predict, None where it has no target.

    ``<|vision_start|>`` if an image follows, ``<|im_start|>`` for a text, ``<|im_end|>`` at the end of a
    complete record. What is given bears no target (the mode sets the first switch). A switch is taught
    where the segment before it or the one it announces is a target: that a faulty draft (context) is
    followed by an inspection belongs to the inspection, but nothing teaches to draw the draft after a plan
    that was itself wrong.
    """
    labels: list[int | None] = []
    for segment, following in zip(record.segments, [*record.segments[1:], None]):
        if segment.stage in ("prompt", "given"):
            labels.append(None)
        elif following is None:
            labels.append(switches.im_end if record.complete else None)
        elif not (segment.target or following.target):
            labels.append(None)
        else:
            labels.append(switches.vision_start if isinstance(following, Image) else switches.im_start)
    return labels


def record_segments(
    record: Record,
    tokenizer: Tokenizer,
    config: ModelConfig,
    rng: np.random.Generator | None = None,
    dropout: ConditionDropout = NO_DROPOUT,
) -> list[Segment]:
    """The segments of a record's document, with targets.

    Labels come from the whole record; then condition dropout takes units away with their targets. A dropped
    image copy becomes ``DroppedImage``. An inspection whose image lost its ViT copy bears no loss.

    Args:
      record: with latent moments in every image.
      tokenizer: the model's.
      config: the model's sizes.
      rng: decides dropout first, as ``kept`` does from an equal generator, then samples the latents, one
        sample per image for both VAE copies. None: nothing is dropped, latents are the posterior's mean.
      dropout: probabilities.

    Raises:
      SegmentError: an image has no latents, does not fit the model's grids or cannot be read, or a text
        has a token outside the model's vocabulary.
    """
    kinds = [kind for segment in record.segments for kind in _kinds(segment)]
    keep = iter(np.ones(len(kinds), bool) if rng is None else kept(kinds, dropout, rng))
    segments: list[Segment] = []
    seen = True  # the last image's ViT copy is there
    for number, (segment, switch) in enumerate(zip(record.segments, switch_targets(record, tokenizer))):
        where = f"record {record.id}: segment {number}"
        copies = [next(keep) for _ in _kinds(segment)]
        if isinstance(segment, Image):
            made = _image_segments(segment, switch, config, rng, where)
            segments += [s if stays else DroppedImage() for s, stays in zip(made, copies)]
            seen = copies[-1]
        elif copies[0]:
            blind = segment.stage == "inspect" and not seen
            ids = _ids(segment, tokenizer, config, where)
            segments.append(TextSegment(ids, segment.target and not blind, None if blind else switch))
    return segments


def _kinds(segment: Text | Image) -> tuple[int, ...]:
    if isinstance(segment, Text):
        return (TEXT,)
    return (NOISED, CLEAN, VIT) if segment.target else (CLEAN, VIT)


def _ids(text: Text, tokenizer: Tokenizer, config: ModelConfig, where: str) -> list[int]:
    ids = tokenizer.encode(text.text)
    if max(ids, default=0) >= config.language.vocab_size:
        raise SegmentError(f"{where}: token {max(ids)} is outside the model's vocabulary of "
                           f"{config.language.vocab_size}; use the checkpoint's own tokenizer")  # fmt: skip
    return ids


def _latent_grid(image: Image, config: ModelConfig, where: str) -> tuple[int, int]:
    """(h, w) in VAE tokens."""
    if image.latent_shape is None:
        raise SegmentError(f"{where}: has no latents; encode the data set first (launch/encode.py)")
    height, width, channels = image.latent_shape
    patch = config.latent_patch_size
    expected = config.autoencoder.z_channels
    if channels != expected or height % patch or width % patch:
        raise SegmentError(f"{where}: latents {image.latent_shape} are not {expected} channels in patches of "
                           f"{patch}; encode the data set for this model (launch/encode.py)")  # fmt: skip
    return _checked((height // patch, width // patch), config.max_latent_size, "VAE", where)


def _vit_grid(image: Image, config: ModelConfig, where: str) -> tuple[int, int]:
    """(h, w) in ViT tokens, from the picture's header."""
    try:
        size = images.image_size(image.png, where)
    except images.ImageError as fault:
        raise SegmentError(str(fault)) from None
    width, height = images.resize_size(*size, images.image_sizes(config).vit)
    patch = config.vision.patch_size
    return _checked((height // patch, width // patch), config.vision.max_side, "ViT", where)


def _checked(grid: tuple[int, int], side: int, name: str, where: str) -> tuple[int, int]:
    if max(grid) > side:
        raise SegmentError(f"{where}: {grid[0]} x {grid[1]} {name} tokens exceed the model's grid of {side}; "
                           "make the images smaller")  # fmt: skip
    return grid


def _image_segments(
    image: Image, switch: int | None, config: ModelConfig, rng: np.random.Generator | None, where: str
) -> list[LatentSegment | VitSegment]:
    latents = patched_latents(image, config, rng, where)
    grid, interpolate = _latent_grid(image, config, where), config.interpolate_positions
    positions = images.position_ids(grid, config.max_latent_size, interpolate)
    clean = LatentSegment(latents, positions)
    copies = [dataclasses.replace(clean, noised=True), clean] if image.target else [clean]
    grid = _vit_grid(image, config, where)
    try:
        picture = images.resize(images.decode_image(image.png, where), images.image_sizes(config).vit)
    except images.ImageError as fault:
        raise SegmentError(str(fault)) from None
    patches = images.patchify(images.to_pixels(picture), config.vision.patch_size)
    ids = images.position_ids(grid, config.vision.max_side, interpolate)
    return [*copies, VitSegment(patches, ids, switch)]


def patched_latents(
    image: Image, config: ModelConfig, rng: np.random.Generator | None, where: str
) -> Float32[np.ndarray, "n C"]:
    """VAE tokens of scale * (mean + exp(logvar / 2) * noise - shift); without ``rng`` the noise is 0."""
    _latent_grid(image, config, where)
    shape = image.latent_shape

    def moment(data: bytes) -> Float[np.ndarray, "h w z"]:
        return np.frombuffer(data, np.float16).reshape(shape).astype(np.float32)

    latent = moment(image.latent_mean)
    if rng is not None:
        latent = latent + np.exp(moment(image.latent_logvar) / 2) * rng.standard_normal(shape, np.float32)
    scaled = config.autoencoder.scale_factor * (latent - config.autoencoder.shift_factor)
    return images.patchify(scaled.astype(np.float32), config.latent_patch_size)

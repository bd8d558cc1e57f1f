"""From a training record to the segments of its document: copies of images, targets, condition dropout.

A text of a record is one **unit**. An image is up to three, in this order: noised VAE tokens (if it is a flow target;
one unit for each draw of noise), clean VAE tokens, ViT tokens. Copies that no later token sees are left out: those of
a last image that no switch follows, and the VAE tokens of images that the mode only looks at. ``outline`` lists the
units with their token counts, which is all that packing needs. ``record_segments`` makes the segments themselves.

A **turn** is a drawn image with all segments since the drawn image before it. Segments after the last image belong to
the last turn. The targets of a document are those of a whole record, of its first turns only (a cut), or of a single
turn, whose context is everything before it. The switch that announces a segment belongs to that segment's turn. So
the single turns of a record have the same targets as the whole record, each once.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int8, Int32, Int64

from pdgen.config import ModelConfig
from pdgen.sequence import images
from pdgen.sequence.layout import DroppedImage, LatentSegment, Segment, TextSegment, VitSegment
from pdgen.sequence.tokenizer import SwitchTokens, Tokenizer
from pdgen.sequence.trajectory import TAG, Image, Record, Text

TEXT, NOISED, CLEAN, VIT = range(4)  # kinds of unit


class SegmentError(ValueError):
    """A record cannot become a document of this model; the message names the record, the segment and the remedy."""


class ChangedError(SegmentError):
    """A record has other turns or units than were counted."""


@dataclasses.dataclass(frozen=True)
class ConditionDropout:
    """Probabilities of dropping conditions, which trains the models that guidance compares with.

    Attributes:
      text: drops all texts between two images together, as the text branch of guidance does.
      vae: drops the clean VAE copy of an image.
      vit: drops the ViT copy of an image.

    Raises:
      ValueError: a value is not a probability.
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
    """One unit of a document: its kind, and its number of tokens without switch tokens."""

    kind: int
    tokens: int


class Outline(NamedTuple):
    """A record's units in order, before dropout, and the position of its turns among them.

    ``turns`` has (first, end) of each turn. Its own units begin at ``first``. A document with the targets of this turn
    only consists of the units before ``end``, without the noised copies before ``first``. ``end`` is 0 if the turn has
    no target.
    """

    units: list[Unit]
    turns: list[tuple[int, int]]


def outline(record: Record, tokenizer: Tokenizer, config: ModelConfig, draws: int = 1) -> Outline:
    """Count a record's units and turns, for packing. Arguments and errors are those of ``record_segments``."""
    units: list[Unit] = []
    bounds = [0]  # segment n has the units [bounds[n], bounds[n + 1])
    for number, (segment, kinds) in enumerate(zip(record.segments, unit_kinds(record, draws))):
        where = f"record {record.id}: segment {number}"
        if isinstance(segment, Text):
            units.append(Unit(TEXT, len(_encode_text(segment, tokenizer, config, where))))
        else:
            grids = {VIT: _vit_grid(segment, config, where)}
            if set(kinds) != {VIT}:
                grids[NOISED] = grids[CLEAN] = _latent_grid(segment, config, where)
            units += [Unit(kind, math.prod(grids[kind])) for kind in kinds]
        bounds.append(len(units))
    ends = [bounds[len(loss_targets(record, tokenizer, n, n + 1)[0])] for n in range(len(list_turns(record)))]
    return Outline(units, [(bounds[turn.first], end) for turn, end in zip(list_turns(record), ends)])


def stream_lengths(
    kinds: Sequence[int] | Int8[np.ndarray, " units"], tokens: Sequence[int] | Int[np.ndarray, " units"]
) -> Int32[np.ndarray, "units 3"]:
    """Count the tokens of each unit in the text, vit and vae stream; its two switch tokens are text."""
    kind, count = np.asarray(kinds), np.asarray(tokens)
    text = np.where(kind == TEXT, count + 2, 2)
    vae = np.where((kind == NOISED) | (kind == CLEAN), count, 0)
    return np.stack([text, np.where(kind == VIT, count, 0), vae], axis=-1).astype(np.int32)


def dropout_mask(
    kinds: Int8[np.ndarray, " units"],
    starts: Int64[np.ndarray, " bounds"],
    dropout: ConditionDropout,
    draws: Float[np.ndarray, " units"],
) -> Bool[np.ndarray, " units"]:
    """Return which units of many documents condition dropout keeps: those whose draw is at least their rate.

    Noised copies are always kept. Consecutive texts before an image are dropped together, by the draw of the first of
    them. Texts after the last image condition no image and are kept. A document that would lose all units keeps all.

    Args:
      kinds: kinds of the documents' units, one document after the other.
      starts: document i has units [starts[i], starts[i + 1]), at least one; one bound more than documents.
      dropout: the rates.
      draws: uniform in [0, 1), one for each unit.
    """
    numbers, counts = np.arange(len(kinds)), np.diff(starts)
    text = kinds == TEXT
    opens = ~text | ~np.roll(text, 1)  # the first of consecutive texts, and every other unit
    opens[starts[:-1]] = True
    decider = np.maximum.accumulate(np.where(opens, numbers, 0))  # the unit whose draw counts
    last_image = np.maximum.reduceat(np.where(text, -1, numbers), starts[:-1])
    rates = np.array([dropout.text, 0.0, dropout.vae, dropout.vit])[kinds]
    rates[text & (numbers > np.repeat(last_image, counts))] = 0
    keep = draws[decider] >= rates
    return keep | ~np.repeat(np.logical_or.reduceat(keep, starts[:-1]), counts)


class Turn(NamedTuple):
    """The segments [first, end) of one turn of a record; the first turn begins with the record."""

    first: int
    end: int


def list_turns(record: Record) -> list[Turn]:
    """Return the record's turns in order; a record without a drawn image is one turn."""
    drawn = [n for n, s in enumerate(record.segments) if isinstance(s, Image) and s.stage != "given"]
    ends = [n + 1 for n in drawn[:-1]] + [len(record.segments)]
    return [Turn(first, end) for first, end in zip([0, *ends], ends)]


def loss_targets(record: Record, switches: SwitchTokens, first: int, stop: int) -> tuple[list[bool], list[int | None]]:
    """Return the targets of a document of the turns [first, stop).

    Returns:
      For each segment from the record's first one on: whether it is a target, and its switch target. For all turns
      the lists have the whole record. Otherwise they end with the last target, and are empty if there is none.
    """
    bounds = list_turns(record)
    labels = switch_targets(record, switches)
    begin, end = bounds[first].first, bounds[stop - 1].end
    # The switch of segment n announces segment n + 1, the last one's the end of the record.
    own_labels = [
        label if begin <= n + 1 < end or n + 1 == end == len(labels) else None for n, label in enumerate(labels[:end])
    ]
    targets = [s.target and n >= begin for n, s in enumerate(record.segments[:end])]
    if (first, stop) != (0, len(bounds)):
        needed = (n + 1 for n, (target, label) in enumerate(zip(targets, own_labels)) if target or label is not None)
        end = max(needed, default=0)
    return targets[:end], own_labels[:end]


def switch_targets(record: Record, switches: SwitchTokens) -> list[int | None]:
    """Return the target of each closing token of the record: a switch token, or None for no target.

    The target is ``<|vision_start|>`` before an image, ``<|im_start|>`` before a text, and ``<|im_end|>`` at the end of
    a complete record, unless its mode always ends there. Given segments have none, since the mode sets the first
    switch. Other segments have one if they or the following segment are targets. So the switch from a faulty image to
    its inspection is a target, but the switch from a wrong plan to the faulty image is not.
    """
    labels: list[int | None] = []
    for segment, following in zip(record.segments, [*record.segments[1:], None]):
        if segment.stage in ("prompt", "given"):
            labels.append(None)
        elif following is None:
            labels.append(switches.im_end if _predicts_end(record) else None)
        elif not (segment.target or following.target):
            labels.append(None)
        else:
            labels.append(switches.vision_start if isinstance(following, Image) else switches.im_start)
    return labels


def _predicts_end(record: Record) -> bool:
    return record.complete and record.mode in ("process", "understand")


def unit_kinds(record: Record, draws: int = 1, targets: Sequence[bool] | None = None) -> list[tuple[int, ...]]:
    """Return the kinds of each segment's units, before dropout; in mode "understand" images have a ViT copy only.

    ``draws`` is as in ``record_segments``. ``targets`` are whether each segment of a document is a target, see
    ``loss_targets``; None: the whole record's.
    """
    targets = [segment.target for segment in record.segments] if targets is None else targets
    found: list[tuple[int, ...]] = []
    for number, (segment, target) in enumerate(zip(record.segments, targets)):
        if isinstance(segment, Text):
            found.append((TEXT,))
        elif record.mode == "understand":
            found.append((VIT,))
        else:
            unseen = target and number == len(record.segments) - 1 and not _predicts_end(record)
            found.append((NOISED,) * draws * target + (() if unseen else (CLEAN, VIT)))
    return found


def document_units(
    record: Record, switches: SwitchTokens, only: tuple[int, int] | None = None, draws: int = 1
) -> list[tuple[int, int]]:
    """Return (segment number, kind) of each unit of a document before dropout; arguments as ``record_segments``."""
    targets, _ = loss_targets(record, switches, *(only or (0, len(list_turns(record)))))
    kinds = unit_kinds(record, draws, targets)
    return [(number, kind) for number, own in enumerate(kinds) for kind in own]


def record_segments(
    record: Record,
    tokenizer: Tokenizer,
    config: ModelConfig,
    rng: np.random.Generator | None = None,
    keep: Sequence[bool] | Bool[np.ndarray, " units"] | None = None,
    only: tuple[int, int] | None = None,
    draws: int = 1,
) -> list[Segment]:
    """Make the segments of a record's document, with targets.

    The targets follow from the whole record. Then condition dropout removes units together with their targets. A
    dropped image copy becomes a ``DroppedImage``. An inspection or answer whose image lost its ViT copy has no loss.

    Args:
      record: the record; every image with a VAE copy needs latent moments.
      tokenizer, config: those of the model.
      rng: samples the latents, one sample per image for all its VAE copies; None takes the posterior's mean.
      keep: which of the document's units are kept, see ``dropout_mask``; None: all.
      only: turns [first, stop) whose targets the document has, see ``loss_targets``; None: all.
      draws: noised copies of every image that is a flow target. They see the same context and not each other.

    Raises:
      SegmentError: an image has no latents, does not fit the model's grids or cannot be read, or a text has a token
        outside the model's vocabulary.
      ChangedError: ``keep`` or ``only`` do not fit the record.
    """
    bounds = list_turns(record)
    first, stop = only or (0, len(bounds))
    if stop > len(bounds):
        raise ChangedError(f"record {record.id}: has {len(bounds)} turns, turn {stop} is asked for")
    targets, labels = loss_targets(record, tokenizer, first, stop)
    kinds = unit_kinds(record, draws, targets)
    units = sum(map(len, kinds))
    if keep is not None and len(keep) != units:
        raise ChangedError(f"record {record.id}: has {units} units, but {len(keep)} are to be kept or dropped")
    remaining = iter([True] * units if keep is None else keep)
    segments: list[Segment] = []
    image_visible = True  # whether the last image still has its ViT copy
    for number, (segment, target, switch) in enumerate(zip(record.segments, targets, labels)):
        where = f"record {record.id}: segment {number}"
        keep_units = [next(remaining) for _ in kinds[number]]
        if isinstance(segment, Image):
            copies = _image_segments(segment, kinds[number], switch, config, rng, where)
            segments += [copy if kept else DroppedImage() for copy, kept in zip(copies, keep_units)]
            image_visible = keep_units[-1]
        elif keep_units[0]:
            # Without its image an inspection would be a guess, so nothing is learned from it.
            blind = segment.stage in ("inspect", "answer") and not image_visible
            ids = _encode_text(segment, tokenizer, config, where)
            stage = "plan" if segment.stage == "prompt" else segment.stage
            refine = _find_correction(segment.text, ids, tokenizer) if stage == "inspect" else (0, 0)
            segments.append(TextSegment(ids, target and not blind, None if blind else switch, stage, refine))
    return segments


def _encode_text(text: Text, tokenizer: Tokenizer, config: ModelConfig, where: str) -> list[int]:
    ids = tokenizer.encode(text.text)
    if max(ids, default=0) >= config.language.vocab_size:
        raise SegmentError(
            f"{where}: token {max(ids)} is outside the model's vocabulary of "
            f"{config.language.vocab_size}; use the checkpoint's own tokenizer"
        )
    return ids


def _find_correction(text: str, ids: list[int], tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the ids [first, end) of an inspection that begin between ``<refine>`` and its closing tag."""
    tags = list(TAG.finditer(text))
    if not tags:
        return 0, 0
    bounds = [len(text[:place].encode()) for place in (tags[0].end(), tags[-1].start())]
    starts = np.cumsum([0, *(len(tokenizer.token_bytes(number)) for number in ids)])[:-1]
    first, end = np.searchsorted(starts, bounds)
    return int(first), int(end)


def _latent_grid(image: Image, config: ModelConfig, where: str) -> tuple[int, int]:
    """Return (h, w) in VAE tokens."""
    if image.latent_shape is None:
        raise SegmentError(f"{where}: has no latents; encode the data set first (launch/build_data.py encode)")
    height, width, channels = image.latent_shape
    patch = config.latent_patch_size
    expected = config.autoencoder.z_channels
    if channels != expected or height % patch or width % patch:
        raise SegmentError(
            f"{where}: latents {image.latent_shape} are not {expected} channels in patches of "
            f"{patch}; encode the data set for this model (launch/build_data.py encode)"
        )
    return _check_grid((height // patch, width // patch), config.max_latent_size, "VAE", where)


def _vit_grid(image: Image, config: ModelConfig, where: str) -> tuple[int, int]:
    """Return (h, w) in ViT tokens, from the image file's header."""
    try:
        size = images.image_size(image.png, where)
    except images.ImageError as fault:
        raise SegmentError(str(fault)) from None
    width, height = images.resize_size(*size, images.image_sizes(config).vit)
    patch = config.vision.patch_size
    return _check_grid((height // patch, width // patch), config.vision.max_side, "ViT", where)


def _check_grid(grid: tuple[int, int], side: int, name: str, where: str) -> tuple[int, int]:
    if max(grid) > side:
        raise SegmentError(
            f"{where}: {grid[0]} x {grid[1]} {name} tokens exceed the model's grid of {side}; make the images smaller"
        )
    return grid


def _image_segments(
    image: Image,
    kinds: Sequence[int],
    switch: int | None,
    config: ModelConfig,
    rng: np.random.Generator | None,
    where: str,
) -> list[LatentSegment | VitSegment]:
    """Make the copies of an image; only the ViT copy, which is the last one, has the switch target."""
    copies: dict[int, LatentSegment | VitSegment] = {}
    if set(kinds) != {VIT}:
        grid = _latent_grid(image, config, where)
        positions = images.position_ids(grid, config.max_latent_size, config.interpolate_positions)
        copies[CLEAN] = clean = LatentSegment(patched_latents(image, config, rng, where), positions)
        copies[NOISED] = dataclasses.replace(clean, noised=True)
    if VIT in kinds:
        copies[VIT] = _vit_segment(image, switch, config, where)
    return [copies[kind] for kind in kinds]


def _vit_segment(image: Image, switch: int | None, config: ModelConfig, where: str) -> VitSegment:
    grid = _vit_grid(image, config, where)
    try:
        picture = images.resize(images.decode_image(image.png, where), images.image_sizes(config).vit)
    except images.ImageError as fault:
        raise SegmentError(str(fault)) from None
    patches = images.patchify(images.to_pixels(picture), config.vision.patch_size)
    ids = images.position_ids(grid, config.vision.max_side, config.interpolate_positions)
    return VitSegment(patches, ids, switch)


def patched_latents(
    image: Image, config: ModelConfig, rng: np.random.Generator | None, where: str
) -> Float32[np.ndarray, "n C"]:
    """Return an image's VAE tokens, scale * (mean + exp(logvar / 2) * noise - shift); None for ``rng``: noise is 0."""
    _latent_grid(image, config, where)
    shape = image.latent_shape

    def moment(data: bytes | None) -> Float[np.ndarray, "h w z"]:
        assert data is not None  # an image with ``latent_shape`` has both moments
        return np.frombuffer(data, np.float16).reshape(shape).astype(np.float32)

    latent = moment(image.latent_mean)
    if rng is not None:
        latent = latent + np.exp(moment(image.latent_logvar) / 2) * rng.standard_normal(shape, np.float32)
    scaled = config.autoencoder.scale_factor * (latent - config.autoencoder.shift_factor)
    return images.patchify(scaled.astype(np.float32), config.latent_patch_size)

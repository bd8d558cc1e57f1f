"""The layout of a document: the stream, rotary position, attention intervals and target of every token.

A document (one trajectory) is a list of segments. ``lay_out`` turns them into numpy arrays in **sequence
order**. ``assemble`` joins several documents to a ``Pack`` of fixed size.

Worked example: text ``a``, then an image of two VAE tokens that the model draws (noised, then clean)::

    slot       0    1    2     3    4    5    6     7    8    9    10
    token      <im> a    </im> <v>  x0   x1   </v>  <v>  x0   x1   </v>
    stream     text text text  text vae  vae  text  text vae  vae  text
    split      causal -------  noise --------------  full --------------
    rotary     0    1    2     3    3    3    3     3    3    3    3     (the clean copy advances to 4)
    k_start    0    0    0     0    0    0    0     0    0    0    0
    k_end      1    2    3     7    7    7    7     11   11   11   11
    q_start    0    1    2     3    3    3    3     7    7    7    7
    q_end      11   11   11    7    7    7    7     11   11   11   11

``allowed(q, k) <=> k_start[q] <= k < k_end[q] and q_start[k] <= q < q_end[k]``: slot 8 sees the text and its own
split. It does not see the noised split, whose keys are visible to queries before 7 only.

Axis legend: S sequence slots = T + V + G, T text tokens, V ViT tokens, G VAE tokens, P values of a ViT patch,
C values of a VAE token, n slots of a document.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, no_type_check

import jax
import numpy as np
from jaxtyping import Float32, Int8, Int32

from pdgen.config import ModelConfig
from pdgen.sequence.tokenizer import SwitchTokens

Mode = Literal["causal", "full", "noise"]  # of a split: text, clean image, image being denoised
TEXT, VIT, VAE = range(3)  # streams, in stream order
STREAMS = ("text", "vit", "vae")
TARGETS = ("plan", "inspect", "refine", "switch", "answer", "thought")  # kinds of text targets, each with its curve


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Number of tokens of each stream in a pack: text T (switch tokens included), vit V, vae G."""

    text: int
    vit: int
    vae: int

    @property
    def total(self) -> int:
        """Sequence slots of a pack, S = T + V + G."""
        return self.text + self.vit + self.vae


@jax.tree_util.register_dataclass
@no_type_check  # a tree's leaves may be anything, such as specs or None
@dataclasses.dataclass(frozen=True)
class Pack:
    """One row of a batch: several documents, padded to the budgets. Batches stack packs on axis 0.

    Leaves are numpy arrays, jax arrays, or their shapes. Stream order is concat(text[T], vit[V], vae[G]). Sequence
    order is that of the documents, padding last. Padding is 0, but -1 in ``vae_image``.

    Attributes:
      text_ids: token ids of texts and switch tokens.
      text_targets: the token id to predict, 0 where there is no target.
      text_weights: weight of the token's cross-entropy, 0 without a target.
      text_kinds: index into ``TARGETS`` of the target's kind, 0 without a target.
      vit_patches: pixels in [-1, 1], ordered (row, column, channel).
      vit_positions, vae_positions: row * max_side + column of the patch.
      vit_start, vit_end: interval of the token's image in the ViT stream.
      vae_latents: clean, scaled latents in patches, ordered (row, column, channel).
      vae_image: number 0, 1, .. in the pack of the token's noised image; -1 if clean.
      vae_weights: 1 where the token is a flow target.
      rotary: rotary position, in stream order.
      to_sequence, to_stream: stream index of each sequence slot, a permutation; and its inverse.
      k_start, k_end: keys [k_start, k_end) that the slot's query may see, in sequence order.
      q_start, q_end: queries [q_start, q_end) that may see the slot's key, in sequence order.
      row: number of the pack in the run; it seeds noise and timesteps.
    """

    text_ids: Int32[Any, "*B T"]
    text_targets: Int32[Any, "*B T"]
    text_weights: Float32[Any, "*B T"]
    text_kinds: Int32[Any, "*B T"]
    vit_patches: Float32[Any, "*B V P"]
    vit_positions: Int32[Any, "*B V"]
    vit_start: Int32[Any, "*B V"]
    vit_end: Int32[Any, "*B V"]
    vae_latents: Float32[Any, "*B G C"]
    vae_positions: Int32[Any, "*B G"]
    vae_image: Int32[Any, "*B G"]
    vae_weights: Float32[Any, "*B G"]
    rotary: Int32[Any, "*B S"]
    to_sequence: Int32[Any, "*B S"]
    to_stream: Int32[Any, "*B S"]
    k_start: Int32[Any, "*B S"]
    k_end: Int32[Any, "*B S"]
    q_start: Int32[Any, "*B S"]
    q_end: Int32[Any, "*B S"]
    row: Int32[Any, "*B"]


@dataclasses.dataclass(frozen=True)
class TextSegment:
    """``<|im_start|> ids <|im_end|>``.

    Attributes:
      ids: token ids of the text.
      loss: whether the text and the closing token are targets.
      switch_target: target of the closing token's own prediction, None for no target.
      stage: kind of the targets: "plan", "inspect", "answer" or "thought".
      refine: interval [first, end) of an inspection's ids with the correction, (0, 0) for none.
    """

    ids: Sequence[int]
    loss: bool = False
    switch_target: int | None = None
    stage: Literal["plan", "inspect", "answer", "thought"] = "plan"
    refine: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class LatentSegment:
    """``<|vision_start|> VAE tokens <|vision_end|>``, clean or noised.

    Attributes:
      latents: clean, scaled latents; a noised image gets its noise on the device.
      positions: indices into the latent position table.
      noised: whether the image is a flow target, which only its own tokens see.
      switch_target: target of the closing token's prediction, None for no target.
    """

    latents: Float32[np.ndarray, "n C"]
    positions: Int32[np.ndarray, " n"]
    noised: bool = False
    switch_target: int | None = None


@dataclasses.dataclass(frozen=True)
class VitSegment:
    """``<|vision_start|> ViT tokens <|vision_end|>``; pixels in [-1, 1]."""

    patches: Float32[np.ndarray, "n P"]
    positions: Int32[np.ndarray, " n"]
    switch_target: int | None = None


@dataclasses.dataclass(frozen=True)
class DroppedImage:
    """A clean image copy that condition dropout removed: it still advances the rotary position."""


Segment = TextSegment | LatentSegment | VitSegment | DroppedImage


@dataclasses.dataclass(frozen=True)
class Layout:
    """One document in sequence order.

    ``modes`` are those of the splits, switch tokens included; ``split`` is the number of each slot's split. The other
    fields are as in ``Pack``, counted from the document's start.
    """

    modes: tuple[Mode, ...]
    stream: Int8[np.ndarray, " n"]
    split: Int32[np.ndarray, " n"]
    rotary: Int32[np.ndarray, " n"]
    k_start: Int32[np.ndarray, " n"]
    k_end: Int32[np.ndarray, " n"]
    q_start: Int32[np.ndarray, " n"]
    q_end: Int32[np.ndarray, " n"]
    text_ids: Int32[np.ndarray, " T"]
    text_targets: Int32[np.ndarray, " T"]
    text_weights: Float32[np.ndarray, " T"]
    text_kinds: Int32[np.ndarray, " T"]
    vit_patches: Float32[np.ndarray, "V P"]
    vit_positions: Int32[np.ndarray, " V"]
    vit_start: Int32[np.ndarray, " V"]
    vit_end: Int32[np.ndarray, " V"]
    vae_latents: Float32[np.ndarray, "G C"]
    vae_positions: Int32[np.ndarray, " G"]
    vae_image: Int32[np.ndarray, " G"]
    vae_weights: Float32[np.ndarray, " G"]

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Number of tokens in the text, vit and vae stream."""
        return len(self.text_ids), len(self.vit_patches), len(self.vae_latents)


def advance(rotary: int, mode: Mode, tokens: int) -> int:
    """Return the next rotary position after a segment of ``tokens``, switch tokens included.

    A text advances it by its tokens, a clean image by one. A noised image does not advance it, since its clean copy
    follows at the same position.
    """
    return rotary + {"causal": tokens, "full": 1, "noise": 0}[mode]


def intervals(modes: Sequence[Mode], lengths: Sequence[int]) -> tuple[Int32[np.ndarray, " n"], ...]:
    """Return (k_start, k_end, q_start, q_end) of a document's splits; see the example in the module's docstring."""
    sizes = np.asarray(lengths, np.int32)
    ends = np.repeat(np.cumsum(sizes, dtype=np.int32), sizes)
    starts = ends - np.repeat(sizes, sizes)
    causal = np.repeat([mode == "causal" for mode in modes], sizes)
    noise = np.repeat([mode == "noise" for mode in modes], sizes)
    slots = np.arange(len(ends), dtype=np.int32)
    k_end = np.where(causal, slots + 1, ends)
    q_start = np.where(causal, slots, starts)
    q_end = np.where(noise, ends, np.int32(len(ends)))
    return np.zeros_like(slots), k_end, q_start, q_end


@dataclasses.dataclass(frozen=True)
class _Split:
    """One segment as tokens: the streams of all its tokens, and its text tokens with their targets."""

    mode: Mode
    stream: np.ndarray
    ids: Sequence[int]
    targets: Sequence[int]
    weights: Sequence[float]
    kinds: Sequence[int]


def _make_split(
    segment: TextSegment | LatentSegment | VitSegment, switches: SwitchTokens, balance_texts: bool
) -> _Split:
    has_switch = segment.switch_target is not None
    switch, switch_weight = segment.switch_target or 0, float(has_switch)
    switch_kind = TARGETS.index("switch") if has_switch else 0
    if isinstance(segment, TextSegment):
        # Each token predicts the next one; the closing token predicts the switch.
        count = len(segment.ids) + 1
        weight = (1 / np.sqrt(count) if balance_texts else 1.0) if segment.loss else 0.0
        targets = [*segment.ids, switches.im_end] if segment.loss else [0] * count
        kinds = np.full(count + 1, TARGETS.index(segment.stage) if segment.loss else 0)
        kinds[slice(*segment.refine)] = TARGETS.index("refine") if segment.loss else 0
        kinds[-1] = switch_kind
        return _Split(
            mode="causal",
            stream=np.full(count + 1, TEXT, np.int8),
            ids=[switches.im_start, *segment.ids, switches.im_end],
            targets=[*targets, switch],
            weights=[weight] * count + [switch_weight],
            kinds=kinds.tolist(),
        )
    tokens = len(segment.positions)
    return _Split(
        mode="noise" if isinstance(segment, LatentSegment) and segment.noised else "full",
        stream=np.array([TEXT, *[VAE if isinstance(segment, LatentSegment) else VIT] * tokens, TEXT], np.int8),
        ids=[switches.vision_start, switches.vision_end],
        targets=[0, switch],
        weights=[0.0, switch_weight],
        kinds=[0, switch_kind],
    )


def lay_out(
    segments: Sequence[Segment], switches: SwitchTokens, config: ModelConfig, balance_texts: bool = False
) -> Layout:
    """Turn a document's segments into arrays.

    Args:
      segments: at least one that is not dropped.
      switches, config: give the ids of the switch tokens and the widths of ViT patches and VAE tokens.
      balance_texts: whether each of a text's n targets weighs 1 / sqrt(n), so that long texts do not dominate; a
        switch target then still weighs 1. Otherwise every target weighs 1.

    Raises:
      ValueError: there is no segment, or the shape of an image's values does not fit the config or its positions.
    """
    splits, rotary, next_rotary = [], [], 0
    for segment in segments:
        if isinstance(segment, DroppedImage):
            next_rotary = advance(next_rotary, "full", 0)
            continue
        split = _make_split(segment, switches, balance_texts)
        splits.append(split)
        tokens = len(split.stream)
        # A text's tokens have consecutive positions. All tokens of an image share one position.
        steps = np.arange(tokens) if split.mode == "causal" else np.zeros(tokens)
        rotary.append((next_rotary + steps).astype(np.int32))
        next_rotary = advance(next_rotary, split.mode, tokens)
    if not splits:
        raise ValueError("a document needs at least one segment")
    modes, lengths = tuple(split.mode for split in splits), tuple(len(split.stream) for split in splits)
    k_start, k_end, q_start, q_end = intervals(modes, lengths)
    return Layout(
        modes=modes,
        stream=np.concatenate([split.stream for split in splits]),
        split=np.repeat(np.arange(len(splits), dtype=np.int32), lengths),
        rotary=np.concatenate(rotary),
        k_start=k_start,
        k_end=k_end,
        q_start=q_start,
        q_end=q_end,
        text_ids=np.array([i for split in splits for i in split.ids], np.int32),
        text_targets=np.array([i for split in splits for i in split.targets], np.int32),
        text_weights=np.array([w for split in splits for w in split.weights], np.float32),
        text_kinds=np.array([k for split in splits for k in split.kinds], np.int32),
        **_vit_arrays([s for s in segments if isinstance(s, VitSegment)], config),
        **_vae_arrays([s for s in segments if isinstance(s, LatentSegment)], config),
    )


def _join_rows(arrays: Sequence[np.ndarray], positions: Sequence[np.ndarray], width: int, name: str) -> np.ndarray:
    for array, ids in zip(arrays, positions):
        if array.shape != (len(ids), width):
            raise ValueError(f"{name} of shape {array.shape}, expected {(len(ids), width)}")
    return np.concatenate([np.zeros((0, width), np.float32), *arrays]).astype(np.float32)


def _vit_arrays(images: Sequence[VitSegment], config: ModelConfig) -> dict[str, np.ndarray]:
    positions = [image.positions for image in images]
    sizes = np.array([len(ids) for ids in positions], np.int32)
    ends = np.cumsum(sizes, dtype=np.int32)
    return {
        "vit_patches": _join_rows(
            [image.patches for image in images], positions, config.vision.patch_dim, "ViT patches"
        ),
        "vit_positions": np.concatenate([np.zeros(0, np.int32), *positions]).astype(np.int32),
        "vit_start": np.repeat(ends - sizes, sizes),
        "vit_end": np.repeat(ends, sizes),
    }


def _vae_arrays(images: Sequence[LatentSegment], config: ModelConfig) -> dict[str, np.ndarray]:
    positions = [image.positions for image in images]
    sizes = [len(ids) for ids in positions]
    noised = np.array([image.noised for image in images], bool)
    numbers = np.where(noised, np.cumsum(noised) - 1, -1).astype(np.int32)
    return {
        "vae_latents": _join_rows([image.latents for image in images], positions, config.latent_dim, "VAE tokens"),
        "vae_positions": np.concatenate([np.zeros(0, np.int32), *positions]).astype(np.int32),
        "vae_image": np.repeat(numbers, sizes),
        "vae_weights": np.repeat(noised.astype(np.float32), sizes),
    }


def assemble(layouts: Sequence[Layout], budgets: Budgets, row: int) -> Pack:
    """Join documents to one pack, in the given order, and pad it to the budgets.

    Raises:
      ValueError: there is no document, or they exceed a budget.
    """
    if not layouts:
        raise ValueError("a pack needs at least one document")
    used = np.sum([layout.lengths for layout in layouts], axis=0)
    sizes = text, vit, vae = budgets.text, budgets.vit, budgets.vae
    for name, tokens, budget in zip(STREAMS, used, sizes):
        if tokens > budget:
            raise ValueError(f"{tokens} {name} tokens exceed the pack's budget of {budget}")
    document_starts = np.cumsum([0, *[len(layout.stream) for layout in layouts]])
    vit_starts = np.cumsum([0, *[len(layout.vit_patches) for layout in layouts]])
    noised = np.cumsum([0, *[layout.vae_image.max(initial=-1) + 1 for layout in layouts]])

    def join(field: str, size: int, offsets: np.ndarray | None = None, fill: int = 0) -> np.ndarray:
        """Concatenate the documents' arrays, add each document's offset except to -1, and pad with ``fill``."""
        arrays = [getattr(layout, field) for layout in layouts]
        if offsets is not None:
            arrays = [np.where(a == -1, a, a + o).astype(np.int32) for a, o in zip(arrays, offsets)]
        length = sum(map(len, arrays))
        result = np.empty((size, *arrays[0].shape[1:]), arrays[0].dtype)
        np.concatenate(arrays, out=result[:length])
        result[length:] = fill
        return result

    to_sequence, to_stream = _permutations(np.concatenate([layout.stream for layout in layouts]), sizes)
    return Pack(
        **{name: join(name, text) for name in ("text_ids", "text_targets", "text_weights", "text_kinds")},
        **{name: join(name, vit) for name in ("vit_patches", "vit_positions")},
        **{name: join(name, vit, vit_starts) for name in ("vit_start", "vit_end")},
        **{name: join(name, vae) for name in ("vae_latents", "vae_positions", "vae_weights")},
        vae_image=join("vae_image", vae, noised, fill=-1),
        rotary=join("rotary", budgets.total)[to_stream],
        to_sequence=to_sequence,
        to_stream=to_stream,
        **{k: join(k, budgets.total, document_starts) for k in ("k_start", "k_end", "q_start", "q_end")},
        row=np.array(row, np.int32),
    )


def empty_pack(budgets: Budgets, config: ModelConfig, row: int) -> Pack:
    """Return a pack of padding only, which has no loss."""
    shapes = vars(pack_shapes(budgets, config, rows=1))
    zeros = {name: np.zeros(shape.shape[1:], shape.dtype) for name, shape in shapes.items()}
    to_sequence, to_stream = _permutations(np.zeros(0, np.int8), (budgets.text, budgets.vit, budgets.vae))
    changed = {"vae_image": zeros["vae_image"] - 1, "to_sequence": to_sequence, "to_stream": to_stream}
    return Pack(**zeros | changed | {"row": np.array(row, np.int32)})


def _permutations(stream: np.ndarray, sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return to_sequence and to_stream, given the streams of the slots before the padding."""
    bases = np.cumsum([0, *sizes])
    to_sequence = np.empty(bases[-1], np.int32)
    padding = []
    for number, (base, end) in enumerate(itertools.pairwise(bases)):
        slots = np.flatnonzero(stream == number)
        to_sequence[slots] = base + np.arange(len(slots))
        padding.append(np.arange(base + len(slots), end))
    to_sequence[len(stream) :] = np.concatenate(padding)
    to_stream = np.empty_like(to_sequence)
    to_stream[to_sequence] = np.arange(len(to_sequence), dtype=np.int32)
    return to_sequence, to_stream


def stack(packs: Sequence[Pack]) -> Pack:
    """Stack packs on a new first axis."""
    return jax.tree.map(lambda *rows: np.stack(rows), *packs)


def pack_shapes(budgets: Budgets, config: ModelConfig, rows: int) -> Pack:
    """Return shapes and dtypes of a batch of ``rows`` packs, for ``jax.eval_shape`` and ahead-of-time compilation."""
    widths = {"vit_patches": (config.vision.patch_dim,), "vae_latents": (config.latent_dim,)}
    streams = {"text": budgets.text, "vit": budgets.vit, "vae": budgets.vae}

    def shape(field: str) -> jax.ShapeDtypeStruct:
        size = () if field == "row" else (streams.get(field.split("_")[0], budgets.total),)
        dtype = np.float32 if field in widths or field.endswith("_weights") else np.int32
        return jax.ShapeDtypeStruct((rows, *size, *widths.get(field, ())), dtype)

    return Pack(**{field.name: shape(field.name) for field in dataclasses.fields(Pack)})

"""Where every token of a document stands: streams, rotary positions, attention intervals, targets.

A document (one trajectory) is a list of segments. ``lay_out`` turns them into numpy arrays in **sequence
order**; ``assemble`` joins several documents into a ``Pack`` of fixed size. ``rotary_positions`` and
``advance`` state the position rules once, for whole documents and for a context that grows by segments.

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

``allowed(q, k) <=> k_start[q] <= k < k_end[q] and q_start[k] <= q < q_end[k]``: slot 8 sees the text and
its own split, but not the noised split, whose keys end being visible at 7.

Axes: S sequence slots = T + V + G, T text tokens, V ViT tokens, G VAE tokens, P values of a ViT patch,
C values of a VAE token.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float32, Int8, Int32

from pdgen.config import ModelConfig

Mode = Literal["causal", "full", "noise"]  # of a split: text, clean image, image being denoised
TEXT, VIT, VAE = range(3)  # streams, in stream order
STREAMS = ("text", "vit", "vae")
TARGETS = ("plan", "inspect", "refine", "switch", "answer")  # kinds of text targets, by which losses are told apart


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Tokens of each stream in one pack: text T (switch tokens included), vit V, vae G."""

    text: int
    vit: int
    vae: int

    @property
    def total(self) -> int:
        """Sequence slots of a pack, S = T + V + G."""
        return self.text + self.vit + self.vae


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pack:
    """One row of the device's batch: several documents, padded to the budgets. Batches stack on axis 0.

    Leaves are arrays of numpy or jax, or shapes. Stream order is concat(text[T], vit[V], vae[G]); sequence order is
    the documents' own order, padding last. Padding holds 0 but in ``vae_image`` (-1) and in the two permutations.

    Attributes:
      text_ids: token ids of texts and switch tokens.
      text_targets: the label that the token predicts, 0 where it has none.
      text_weights: weight of the token's cross-entropy, 0 = no loss.
      text_kinds: number in ``TARGETS`` of what the target belongs to; 0 where there is none.
      vit_patches: pixels in [-1, 1], ordered (row, column, channel).
      vit_positions: row * max_side + column of the patch.
      vit_start, vit_end: the ViT stream's interval that is the token's image.
      vae_latents: clean, scaled latents, patchified (row, column, channel).
      vae_positions: row * max_side + column of the latent patch.
      vae_image: number 0, 1, .. in the pack of the noised image the token belongs to; -1 if clean.
      vae_weights: 1 where the token is a flow target.
      rotary: rotary position, in stream order.
      to_sequence: sequence slot -> stream index, a permutation.
      to_stream: stream index -> sequence slot, its inverse.
      k_start, k_end: keys [k_start, k_end) that the slot's query may see, in sequence order.
      q_start, q_end: queries [q_start, q_end) that may see the slot's key, in sequence order.
      row: the pack's number n in the run; noise and timesteps are drawn from it.
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


@runtime_checkable
class SwitchTokens(Protocol):
    """Ids of the tokens that open and close segments; a ``Tokenizer`` has them."""

    @property
    def im_start(self) -> int: ...
    @property
    def im_end(self) -> int: ...
    @property
    def vision_start(self) -> int: ...
    @property
    def vision_end(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class TextSegment:
    """``<|im_start|> ids <|im_end|>``.

    Attributes:
      ids: token ids of the words.
      loss: the words and the closing token are predicted.
      switch_target: what the closing token predicts, if anything.
      stage: "plan", "inspect" or "answer", of which the words and the closing token are targets.
      refine: the ids [first, end) of an inspection that say what to refine.
    """

    ids: Sequence[int]
    loss: bool = False
    switch_target: int | None = None
    stage: Literal["plan", "inspect", "answer"] = "plan"
    refine: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class LatentSegment:
    """``<|vision_start|> VAE tokens <|vision_end|>``, clean or noised.

    Attributes:
      latents: clean, scaled latents, also where the image is noised on the device.
      positions: ids in the latent position table.
      noised: the image is a flow target and visible to itself alone.
      switch_target: what the closing token predicts, if anything.
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
    """A clean image copy that condition dropout took away: it keeps its rotary position and nothing else."""


Segment = TextSegment | LatentSegment | VitSegment | DroppedImage


@dataclasses.dataclass(frozen=True)
class Layout:
    """One document in sequence order (n slots); the streams' own arrays in their order in the document.

    ``modes`` and ``split_lengths`` describe the splits in order, switch tokens included; ``split`` is the
    slot's number among them. All other fields are as in ``Pack``, counted from the document's own start.
    """

    modes: tuple[Mode, ...]
    split_lengths: tuple[int, ...]
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
        """Tokens in the text, vit and vae stream."""
        return len(self.text_ids), len(self.vit_patches), len(self.vae_latents)


def rotary_positions(rotary: Any, mode: Mode, tokens: int) -> Any:
    """Rotary positions of a segment's tokens, switch tokens included, when the next free one is ``rotary``.

    Text counts on, all tokens of an image share one position. ``rotary`` may be an int or any array [..];
    the result is [.., tokens].
    """
    steps = np.arange(tokens, dtype=np.int32) if mode == "causal" else np.zeros(tokens, np.int32)
    return (np.int32(rotary) if isinstance(rotary, int) else rotary[..., None]) + steps


def advance(rotary: Any, mode: Mode, tokens: int) -> Any:
    """The next free rotary position after a segment of ``tokens``, switch tokens included.

    Text advances by its tokens, a clean image by one, an image being denoised not at all.
    """
    return rotary + {"causal": tokens, "full": 1, "noise": 0}[mode]


def intervals(modes: Sequence[Mode], lengths: Sequence[int]) -> tuple[Int32[np.ndarray, " n"], ...]:
    """(k_start, k_end, q_start, q_end) of a document of splits; the worked example stands above."""
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
class _Placed:
    """One segment as tokens: its split, and the text tokens it brings with what they predict."""

    mode: Mode
    stream: np.ndarray
    ids: Sequence[int]
    targets: Sequence[int]
    weights: Sequence[float]
    kinds: Sequence[int]


def _place(segment: TextSegment | LatentSegment | VitSegment, switches: SwitchTokens, balance_texts: bool) -> _Placed:
    switched = segment.switch_target is not None
    switch, switch_weight = segment.switch_target or 0, float(switched)
    switch_kind = TARGETS.index("switch") if switched else 0
    if isinstance(segment, TextSegment):
        words = len(segment.ids)
        weight = (1 / np.sqrt(words + 1) if balance_texts else 1.0) if segment.loss else 0.0
        targets = [*segment.ids, switches.im_end] if segment.loss else [0] * (words + 1)
        kinds = np.full(words + 2, TARGETS.index(segment.stage) if segment.loss else 0)
        kinds[slice(*segment.refine)] = TARGETS.index("refine") if segment.loss else 0
        kinds[-1] = switch_kind
        return _Placed(
            mode="causal",
            stream=np.full(words + 2, TEXT, np.int8),
            ids=[switches.im_start, *segment.ids, switches.im_end],
            targets=[*targets, switch],
            weights=[weight] * (words + 1) + [switch_weight],
            kinds=kinds.tolist(),
        )
    tokens = len(segment.positions)
    return _Placed(
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
    """Turns a document's segments into arrays.

    Args:
      segments: in order; at least one that is not dropped.
      switches: ids of the switch tokens.
      config: gives the widths of ViT patches and VAE tokens.
      balance_texts: words weigh 1 / sqrt(n), n = number of words + 1, so that a long text does not drown a
        short one; switch targets weigh 1. Otherwise every target weighs 1.

    Raises:
      ValueError: there is no segment, or a payload's shape does not suit the config or its positions.
    """
    placed, rotary, next_rotary = [], [], 0
    for segment in segments:
        if isinstance(segment, DroppedImage):
            next_rotary = advance(next_rotary, "full", 0)
            continue
        part = _place(segment, switches, balance_texts)
        placed.append(part)
        rotary.append(rotary_positions(next_rotary, part.mode, len(part.stream)))
        next_rotary = advance(next_rotary, part.mode, len(part.stream))
    if not placed:
        raise ValueError("a document needs at least one segment")
    modes = tuple(part.mode for part in placed)
    lengths = tuple(len(part.stream) for part in placed)
    k_start, k_end, q_start, q_end = intervals(modes, lengths)
    return Layout(
        modes=modes,
        split_lengths=lengths,
        stream=np.concatenate([part.stream for part in placed]),
        split=np.repeat(np.arange(len(placed), dtype=np.int32), lengths),
        rotary=np.concatenate(rotary),
        k_start=k_start,
        k_end=k_end,
        q_start=q_start,
        q_end=q_end,
        text_ids=np.array([i for part in placed for i in part.ids], np.int32),
        text_targets=np.array([i for part in placed for i in part.targets], np.int32),
        text_weights=np.array([w for part in placed for w in part.weights], np.float32),
        text_kinds=np.array([k for part in placed for k in part.kinds], np.int32),
        **_vit_arrays([s for s in segments if isinstance(s, VitSegment)], config),
        **_vae_arrays([s for s in segments if isinstance(s, LatentSegment)], config),
    )


def _rows(arrays: Sequence[np.ndarray], positions: Sequence[np.ndarray], width: int, name: str) -> np.ndarray:
    for array, ids in zip(arrays, positions):
        if array.shape != (len(ids), width):
            raise ValueError(f"{name} of shape {array.shape}, expected {(len(ids), width)}")
    return np.concatenate([np.zeros((0, width), np.float32), *arrays]).astype(np.float32)


def _vit_arrays(images: Sequence[VitSegment], config: ModelConfig) -> dict[str, np.ndarray]:
    positions = [image.positions for image in images]
    sizes = np.array([len(ids) for ids in positions], np.int32)
    ends = np.cumsum(sizes, dtype=np.int32)
    patches = [image.patches for image in images]
    return {
        "vit_patches": _rows(patches, positions, config.vision.patch_dim, "ViT patches"),
        "vit_positions": np.concatenate([np.zeros(0, np.int32), *positions]).astype(np.int32),
        "vit_start": np.repeat(ends - sizes, sizes),
        "vit_end": np.repeat(ends, sizes),
    }


def _vae_arrays(images: Sequence[LatentSegment], config: ModelConfig) -> dict[str, np.ndarray]:
    positions = [image.positions for image in images]
    sizes = [len(ids) for ids in positions]
    noised = np.array([image.noised for image in images], bool)
    numbers = np.where(noised, np.cumsum(noised) - 1, -1).astype(np.int32)
    latents = [image.latents for image in images]
    return {
        "vae_latents": _rows(latents, positions, config.latent_dim, "VAE tokens"),
        "vae_positions": np.concatenate([np.zeros(0, np.int32), *positions]).astype(np.int32),
        "vae_image": np.repeat(numbers, sizes),
        "vae_weights": np.repeat(noised.astype(np.float32), sizes),
    }


def assemble(layouts: Sequence[Layout], budgets: Budgets, row: int) -> Pack:
    """Joins documents into one pack, in the given order, and pads it to the budgets.

    Raises:
      ValueError: there is no document, or they exceed a budget.
    """
    if not layouts:
        raise ValueError("a pack needs at least one document")
    used = np.sum([layout.lengths for layout in layouts], axis=0)
    sizes = np.array([budgets.text, budgets.vit, budgets.vae])
    for name, tokens, budget in zip(STREAMS, used, sizes):
        if tokens > budget:
            raise ValueError(f"{tokens} {name} tokens exceed the pack's budget of {budget}")
    document_starts = np.cumsum([0, *[len(layout.stream) for layout in layouts]])
    vit_starts = np.cumsum([0, *[len(layout.vit_patches) for layout in layouts]])
    noised = np.cumsum([0, *[layout.vae_image.max(initial=-1) + 1 for layout in layouts]])

    def joined(field: str, size: int, offsets: np.ndarray | None = None, fill: int = 0) -> np.ndarray:
        """The documents' arrays one after the other, the offset added to all but the fill, then padding."""
        arrays = [getattr(layout, field) for layout in layouts]
        if offsets is not None:
            arrays = [np.where(a == -1, a, a + o).astype(np.int32) for a, o in zip(arrays, offsets)]
        length = sum(map(len, arrays))
        result = np.empty((size, *arrays[0].shape[1:]), arrays[0].dtype)
        np.concatenate(arrays, out=result[:length])
        result[length:] = fill
        return result

    text, vit, vae = sizes
    to_sequence, to_stream = _permutations(np.concatenate([layout.stream for layout in layouts]), sizes)
    return Pack(
        **{name: joined(name, text) for name in ("text_ids", "text_targets", "text_weights", "text_kinds")},
        **{name: joined(name, vit) for name in ("vit_patches", "vit_positions")},
        **{name: joined(name, vit, vit_starts) for name in ("vit_start", "vit_end")},
        **{name: joined(name, vae) for name in ("vae_latents", "vae_positions", "vae_weights")},
        vae_image=joined("vae_image", vae, noised, fill=-1),
        rotary=joined("rotary", budgets.total)[to_stream],
        to_sequence=to_sequence,
        to_stream=to_stream,
        **{k: joined(k, budgets.total, document_starts) for k in ("k_start", "k_end", "q_start", "q_end")},
        row=np.array(row, np.int32),
    )


def empty_pack(budgets: Budgets, config: ModelConfig, row: int) -> Pack:
    """A pack of padding alone: it bears no loss."""
    shapes = vars(pack_shapes(budgets, config, rows=1))
    zeros = {name: np.zeros(shape.shape[1:], shape.dtype) for name, shape in shapes.items()}
    to_sequence, to_stream = _permutations(np.zeros(0, np.int8), np.array([budgets.text, budgets.vit, budgets.vae]))
    changed = {"vae_image": zeros["vae_image"] - 1, "to_sequence": to_sequence, "to_stream": to_stream}
    return Pack(**zeros | changed | {"row": np.array(row, np.int32)})


def _permutations(stream: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """to_sequence and to_stream for the real slots' streams; each stream's padding follows at the end."""
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
    """A batch: the packs stacked on a new first axis."""
    return jax.tree.map(lambda *rows: np.stack(rows), *packs)


def pack_shapes(budgets: Budgets, config: ModelConfig, rows: int) -> Pack:
    """Shapes and dtypes of a batch of ``rows`` packs, for ``jax.eval_shape`` and compiling ahead."""
    widths = {"vit_patches": (config.vision.patch_dim,), "vae_latents": (config.latent_dim,)}
    streams = {"text": budgets.text, "vit": budgets.vit, "vae": budgets.vae}

    def shape(field: str) -> jax.ShapeDtypeStruct:
        size = () if field == "row" else (streams.get(field.split("_")[0], budgets.total),)
        floating = field in widths or field.endswith("_weights")
        dtype = np.float32 if floating else np.int32
        return jax.ShapeDtypeStruct((rows, *size, *widths.get(field, ())), dtype)

    return Pack(**{field.name: shape(field.name) for field in dataclasses.fields(Pack)})

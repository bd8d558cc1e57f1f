"""Layout and assembly of documents; the golden pack is compared in tests/golden/test_layout.py."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.config import NANO
from pdgen.sequence import layout
from pdgen.sequence.layout import Budgets, DroppedImage, LatentSegment, Pack, TextSegment, VitSegment

SWITCHES = types.SimpleNamespace(im_start=1, im_end=2, vision_start=3, vision_end=4)
OPEN, CLOSE, SEE, SEEN = 1, 2, 3, 4


def latents(tokens, noised=False, switch_target=None, first=0.0):
    payload = first + np.arange(tokens * NANO.latent_dim, dtype=np.float32).reshape(tokens, NANO.latent_dim)
    return LatentSegment(payload, np.arange(tokens, dtype=np.int32) * 3, noised, switch_target)


def vit(tokens, switch_target=None):
    payload = np.arange(tokens * NANO.vision.patch_dim, dtype=np.float32).reshape(tokens, -1)
    return VitSegment(payload, np.arange(tokens, dtype=np.int32) * 5, switch_target)


def lay_out(*segments, balance_texts=False):
    return layout.lay_out(segments, SWITCHES, NANO, balance_texts)


segment_strategy = st.one_of(
    st.builds(TextSegment, st.lists(st.integers(5, 99), max_size=30), st.booleans(), st.none() | st.just(SEE)),
    st.builds(latents, st.integers(1, 20), st.booleans(), st.none() | st.just(CLOSE)),
    st.builds(vit, st.integers(1, 20), st.none() | st.just(OPEN)),
    st.builds(DroppedImage),
)
document_strategy = st.lists(segment_strategy, min_size=1, max_size=12).filter(
    lambda segments: not all(isinstance(s, DroppedImage) for s in segments)
)


def interval_mask(pack: Pack) -> np.ndarray:
    """Return allowed[q, k] as the attention reads the four arrays."""
    slots = np.arange(len(pack.k_start))
    queries = (pack.k_start[:, None] <= slots) & (slots < pack.k_end[:, None])
    keys = (pack.q_start <= slots[:, None]) & (slots[:, None] < pack.q_end)
    return queries & keys


def defined_mask(layouts, slots: int) -> np.ndarray:
    """Return allowed[q, k]: same sample, k <= q or same full/noise split, and never another split's noise."""
    allowed = np.zeros((slots, slots), bool)
    start = 0
    for document in layouts:
        modes = [document.modes[s] for s in document.split]
        for q, q_split in enumerate(document.split):
            for k, k_split in enumerate(document.split):
                same = q_split == k_split and modes[q] != "causal"
                hidden = q_split != k_split and modes[k] == "noise"
                allowed[start + q, start + k] = (k <= q or same) and not hidden
        start += len(document.split)
    return allowed


def test_worked_example():
    """The example in the module's docstring."""
    document = lay_out(TextSegment([9]), latents(2, noised=True), latents(2))
    np.testing.assert_array_equal(document.stream, [0, 0, 0, 0, 2, 2, 0, 0, 2, 2, 0])
    np.testing.assert_array_equal(document.rotary, [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3])
    np.testing.assert_array_equal(document.k_start, [0] * 11)
    np.testing.assert_array_equal(document.k_end, [1, 2, 3, 7, 7, 7, 7, 11, 11, 11, 11])
    np.testing.assert_array_equal(document.q_start, [0, 1, 2, 3, 3, 3, 3, 7, 7, 7, 7])
    np.testing.assert_array_equal(document.q_end, [11, 11, 11, 7, 7, 7, 7, 11, 11, 11, 11])
    pack = layout.assemble([document], Budgets(7, 0, 4), row=5)
    expected = [
        "x..........",
        "xx.........",
        "xxx........",
        "xxxxxxx....",
        "xxxxxxx....",
        "xxxxxxx....",
        "xxxxxxx....",
        "xxx....xxxx",
        "xxx....xxxx",
        "xxx....xxxx",
        "xxx....xxxx",
    ]
    assert ["".join(".x"[int(a)] for a in row) for row in interval_mask(pack)] == expected
    np.testing.assert_array_equal(pack.text_ids, [OPEN, 9, CLOSE, SEE, SEEN, SEE, SEEN])
    np.testing.assert_array_equal(pack.to_sequence, [0, 1, 2, 3, 7, 8, 4, 5, 9, 10, 6])
    np.testing.assert_array_equal(pack.vae_image, [0, 0, -1, -1])
    np.testing.assert_array_equal(pack.vae_weights, [1, 1, 0, 0])
    assert pack.row == 5


def test_targets_and_weights():
    segments = (
        TextSegment([7]),
        TextSegment([8, 9, 10], loss=True, switch_target=SEE),
        vit(1, switch_target=OPEN),
        TextSegment([11], loss=True),
    )
    document = lay_out(*segments)
    np.testing.assert_array_equal(document.text_ids, [1, 7, 2, 1, 8, 9, 10, 2, 3, 4, 1, 11, 2])
    np.testing.assert_array_equal(document.text_targets, [0, 0, 0, 8, 9, 10, CLOSE, SEE, 0, OPEN, 11, CLOSE, 0])
    np.testing.assert_array_equal(document.text_weights, [0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0])
    long, short = 4**-0.5, 2**-0.5
    balanced = lay_out(*segments, balance_texts=True).text_weights
    expected = [0, 0, 0, long, long, long, long, 1, 0, 1, short, short, 0]
    np.testing.assert_allclose(balanced, expected, rtol=1e-6)


def test_kinds_of_targets():
    """A target has the kind of the word that a token predicts, not of the token itself."""
    document = lay_out(
        TextSegment([7], stage="inspect"),
        TextSegment([8, 9], loss=True, switch_target=SEE),
        vit(1, switch_target=OPEN),
        TextSegment([11, 12, 13, 14], loss=True, stage="inspect", refine=(1, 3)),
    )
    kinds = [layout.TARGETS[kind] if weight else "" for kind, weight in zip(document.text_kinds, document.text_weights)]
    assert kinds == [
        "",
        "",
        "",
        "plan",
        "plan",
        "plan",
        "switch",
        "",
        "switch",
        "inspect",
        "refine",
        "refine",
        "inspect",
        "inspect",
        "",
    ]
    assert not document.text_kinds[document.text_weights == 0].any()


def test_rotary_of_dropped_and_noised_copies():
    """A text advances by its tokens, a clean copy by one even if it is dropped, a noised copy not at all."""
    document = lay_out(TextSegment([7, 8]), latents(1, noised=True), latents(1), DroppedImage(), TextSegment([]))
    np.testing.assert_array_equal(document.rotary, [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 6, 7])


@given(document_strategy)
def test_rotary_positions_of_a_growing_context(segments):
    """Positions of the whole document equal those of segments placed one at a time."""
    position, expected = 0, []
    for segment in segments:
        if isinstance(segment, DroppedImage):
            position += 1
        elif isinstance(segment, TextSegment):
            expected += range(position, position + len(segment.ids) + 2)
            position += len(segment.ids) + 2
        else:
            expected += [position] * (len(segment.positions) + 2)
            position += not (isinstance(segment, LatentSegment) and segment.noised)
    np.testing.assert_array_equal(lay_out(*segments).rotary, expected)


@settings(max_examples=40)
@given(st.lists(document_strategy, min_size=1, max_size=3), st.tuples(*[st.integers(0, 9)] * 3))
def test_intervals_are_the_mask(documents, spare):
    layouts = [lay_out(*segments) for segments in documents]
    sizes = np.sum([document.lengths for document in layouts], axis=0) + spare
    pack = layout.assemble(layouts, Budgets(*map(int, sizes)), row=0)
    np.testing.assert_array_equal(interval_mask(pack), defined_mask(layouts, len(pack.k_start)))


@pytest.mark.parametrize("seed", range(3))
def test_intervals_of_long_documents(seed):
    rng = np.random.default_rng(seed)
    segments = []
    while sum(len(getattr(s, "ids", getattr(s, "positions", ()))) for s in segments) < 600:
        kind = rng.integers(4)
        tokens = int(rng.integers(20, 90))
        segments.append(
            TextSegment([7] * tokens) if kind == 0 else vit(tokens) if kind == 1 else latents(tokens, bool(kind == 2))
        )
    document = lay_out(*segments)
    pack = layout.assemble([document], Budgets(*document.lengths), row=0)
    assert len(pack.k_start) >= 600
    np.testing.assert_array_equal(interval_mask(pack), defined_mask([document], len(pack.k_start)))


@given(st.lists(document_strategy, min_size=1, max_size=4), st.tuples(*[st.integers(0, 9)] * 3))
def test_no_token_is_lost_or_repeated(documents, spare):
    layouts = [lay_out(*segments) for segments in documents]
    used = np.sum([document.lengths for document in layouts], axis=0)
    sizes = used + spare
    pack = layout.assemble(layouts, Budgets(*map(int, sizes)), row=0)
    np.testing.assert_array_equal(np.sort(pack.to_sequence), np.arange(sizes.sum()))
    np.testing.assert_array_equal(pack.to_sequence[pack.to_stream], np.arange(sizes.sum()))
    # Each segment's tokens are in sequence order, with the documents one after the other.
    stream = np.repeat(np.arange(3), sizes)[pack.to_sequence]
    place = pack.to_sequence - np.concatenate([[0], np.cumsum(sizes)])[stream]
    slot = 0
    for segments in documents:
        for segment in (s for s in segments if not isinstance(s, DroppedImage)):
            if isinstance(segment, TextSegment):
                ids = [OPEN, *segment.ids, CLOSE]
                assert not stream[slot : slot + len(ids)].any()
                np.testing.assert_array_equal(pack.text_ids[place[slot : slot + len(ids)]], ids)
                slot += len(ids)
                continue
            inner = slice(slot + 1, slot + 1 + len(segment.positions))
            assert [pack.text_ids[place[s]] for s in (slot, inner.stop)] == [SEE, SEEN]
            latent = isinstance(segment, LatentSegment)
            assert set(stream[inner]) == {layout.VAE if latent else layout.VIT}
            payload = pack.vae_latents if latent else pack.vit_patches
            positions = pack.vae_positions if latent else pack.vit_positions
            np.testing.assert_array_equal(payload[place[inner]], segment.latents if latent else segment.patches)
            np.testing.assert_array_equal(positions[place[inner]], segment.positions)
            slot = inner.stop + 1
    assert slot == used.sum()


def test_padding():
    """Two documents in a pack with room in every stream."""
    first = lay_out(TextSegment([9], loss=True), latents(2, noised=True), vit(3))
    second = lay_out(latents(1, noised=True), vit(2), TextSegment([5]))
    pack = layout.assemble([first, second], Budgets(20, 7, 5), row=3)
    np.testing.assert_array_equal(pack.vit_start, [0, 0, 0, 3, 3, 0, 0])
    np.testing.assert_array_equal(pack.vit_end, [3, 3, 3, 5, 5, 0, 0])
    np.testing.assert_array_equal(pack.vae_image, [0, 0, 1, -1, -1])
    np.testing.assert_array_equal(pack.vae_weights, [1, 1, 1, 0, 0])
    used = len(first.stream) + len(second.stream)
    for name in ("k_start", "k_end", "q_start", "q_end"):
        assert not getattr(pack, name)[used:].any()
    assert not pack.rotary[pack.to_sequence[used:]].any()
    assert not pack.text_weights[14:].any() and not pack.text_ids[14:].any()
    assert pack.k_start[len(first.stream)] == len(first.stream)
    assert pack.rotary[pack.to_sequence[len(first.stream)]] == 0


def test_a_batch_is_a_pytree_of_the_stated_shapes():
    budgets = Budgets(20, 7, 5)
    packs = [layout.assemble([lay_out(TextSegment([9]), vit(3))], budgets, row) for row in (4, 5)]
    batch = layout.stack(packs)
    np.testing.assert_array_equal(batch.row, [4, 5])
    stated = layout.pack_shapes(budgets, NANO, rows=2)
    shapes, expected = ({name: (a.shape, a.dtype) for name, a in vars(pack).items()} for pack in (batch, stated))
    assert shapes == expected
    total = jax.jit(lambda pack: pack.text_ids.sum())(batch)
    assert total == 2 * (OPEN + 9 + CLOSE + SEE + SEEN)


def test_faults_are_named():
    document = lay_out(TextSegment([9]), vit(3))
    with pytest.raises(ValueError, match="3 vit tokens exceed the pack's budget of 2"):
        layout.assemble([document], Budgets(5, 2, 0), row=0)
    with pytest.raises(ValueError, match="at least one document"):
        layout.assemble([], Budgets(5, 2, 0), row=0)
    with pytest.raises(ValueError, match="at least one segment"):
        lay_out(DroppedImage())
    with pytest.raises(ValueError, match=r"VAE tokens of shape \(2, 63\), expected \(2, 64\)"):
        lay_out(dataclasses.replace(latents(2), latents=latents(2).latents[:, 1:]))

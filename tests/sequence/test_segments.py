"""Records to segments: copies, targets, condition dropout, latents."""

import dataclasses
import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.config import SHAPES_NANO
from pdgen.sequence.images import patchify
from pdgen.sequence.layout import TARGETS, LatentSegment, TextSegment, lay_out
from pdgen.sequence.segments import (
    CLEAN,
    NOISED,
    TEXT,
    VIT,
    ConditionDropout,
    SegmentError,
    dropout_mask,
    outline,
    record_segments,
    stream_lengths,
    switch_targets,
)
from tests.sequence.corrected import (
    CORRECTED,
    END,
    FAULT,
    LOOKED_AT,
    OPEN,
    PLAN,
    SEE,
    SHAPE,
    TOKENIZER,
    describe,
    image,
    record,
    text,
)

KINDS = np.array([unit.kind for unit in outline(CORRECTED, TOKENIZER, SHAPES_NANO).units], np.int8)
HALF = ConditionDropout(0.5, 0.5, 0.5)


def keep_all_but(dropped):
    """Return the dropout mask of CORRECTED if the draws of these units are low and all others high."""
    draws = np.where(np.isin(np.arange(len(KINDS)), dropped), 0.0, 0.99)
    return dropout_mask(KINDS, np.array([0, len(KINDS)]), HALF, draws).tolist()


def test_copies_and_targets_of_a_corrected_draft():
    """The draft is context, its inspection and correction are targets; given parts have none."""
    assert describe(record_segments(CORRECTED, TOKENIZER, SHAPES_NANO)) == [
        ("clean", None),
        ("vit", None),
        ("text", False, None),
        ("text", True, SEE),
        ("clean", None),
        ("vit", OPEN),
        ("text", True, SEE),
        ("noised", None),
        ("clean", None),
        ("vit", OPEN),
        ("text", True, END),
    ]


def test_an_incomplete_record_teaches_no_end():
    parts = CORRECTED.segments[:5]
    assert switch_targets(record(*parts, complete=False), TOKENIZER) == [None, None, SEE, OPEN, None]
    parts = CORRECTED.segments[1:3] + CORRECTED.segments[5:6]
    parts[2] = msgspec.structs.replace(parts[2], stage="sketch")
    assert switch_targets(record(*parts), TOKENIZER) == [None, SEE, END]
    assert switch_targets(record(*parts, complete=False), TOKENIZER) == [None, SEE, None]


PASS = [("text", False, None), ("noised", None)]


@pytest.mark.parametrize(
    "mode, parts, expected",
    [
        # Nothing reads the only image, so it has no clean copy; nothing teaches that it is the end.
        ("single_pass", [text("prompt"), image("sketch")], PASS),
        ("edit", [image("given"), text("prompt"), image("sketch")], [("clean", None), ("vit", None), *PASS]),
        (
            "single_pass",
            [text("prompt"), image("sketch", target=False), text("inspect", FAULT, target=False), image("refine")],
            [("text", False, None), ("clean", None), ("vit", None), ("text", False, SEE), ("noised", None)],
        ),
        # An image given for reading has no VAE tokens, as in sampling.
        (
            "understand",
            [image("given"), image("given"), text("prompt"), text("answer")],
            [("vit", None), ("vit", None), ("text", False, None), ("text", True, END)],
        ),
    ],
)
def test_the_base_models_modes_have_the_copies_that_sampling_reads(mode, parts, expected):
    assert describe(record_segments(record(*parts, mode=mode), TOKENIZER, SHAPES_NANO)) == expected


def test_images_that_are_only_read_need_no_latents():
    bare = msgspec.structs.replace(image("given"), latent_mean=None, latent_logvar=None, latent_shape=None)
    made = record(bare, text("prompt"), text("answer"), mode="understand")
    assert [unit.kind for unit in outline(made, TOKENIZER, SHAPES_NANO).units] == [VIT, TEXT, TEXT]
    record_segments(made, TOKENIZER, SHAPES_NANO)
    with pytest.raises(SegmentError, match="segment 0: has no latents"):
        record_segments(record(bare, text("prompt"), image("sketch"), mode="edit"), TOKENIZER, SHAPES_NANO)


def test_an_incomplete_records_last_drawn_image_is_noised_only():
    """An image's clean copies are read only by later segments or by the end of a complete trajectory."""
    parts = [text("prompt"), text("plan", PLAN)]
    noised, copies = [("noised", None)], [("clean", None), ("vit", None)]
    for complete, target, expected in (
        (False, True, noised),
        (False, False, copies),
        (True, True, [*noised, copies[0], ("vit", END)]),
    ):
        made = record(*parts, image("sketch", target=target), complete=complete)
        assert describe(record_segments(made, TOKENIZER, SHAPES_NANO))[2:] == expected
    inspected = record(*parts, image("sketch"), text("inspect", "Right."), complete=False)
    assert describe(record_segments(inspected, TOKENIZER, SHAPES_NANO))[2:5] == [*noised, copies[0], ("vit", OPEN)]


@pytest.mark.parametrize(
    "keep, answer",
    [
        ([True, True, True, True], ("text", True, END)),
        ([True, False, True, True], ("text", False, None)),
        ([False, False, True, True], ("text", False, None)),
        ([True, True, False, True], ("text", True, END)),
    ],
)
def test_an_answer_about_an_unseen_image_is_not_taught(keep, answer):
    segments = record_segments(LOOKED_AT, TOKENIZER, SHAPES_NANO, keep=keep)
    assert describe(segments)[-1] == answer


def test_the_words_of_an_answer_are_a_kind_of_target():
    document = lay_out(record_segments(LOOKED_AT, TOKENIZER, SHAPES_NANO), TOKENIZER, SHAPES_NANO)
    words = len(TOKENIZER.encode("two stars"))
    kinds = [TARGETS[k] for k in document.text_kinds[document.text_weights > 0]]
    assert kinds == ["answer"] * (words + 1) + ["switch"]


def test_several_draws_of_an_image_are_as_many_noised_copies():
    """They have one sample of the latents, and one position with the clean copy; the device draws noise for each."""
    rng = np.random.default_rng(3)
    segments = record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, rng, draws=3)
    once = record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, np.random.default_rng(3))
    assert describe(segments) == describe(once)[:7] + [("noised", None)] * 3 + describe(once)[8:]
    for copy in segments[7:11]:
        np.testing.assert_array_equal(copy.latents, once[8].latents)
        np.testing.assert_array_equal(copy.positions, once[8].positions)
    document, single = (lay_out(made, TOKENIZER, SHAPES_NANO) for made in (segments, once))
    # Clean tokens of the given image and of the draft, three draws, the clean copy; the same of one draw.
    assert document.vae_image.tolist() == [-1] * 32 + [0] * 16 + [1] * 16 + [2] * 16 + [-1] * 16
    assert document.vae_weights.tolist() == [0] * 32 + [1] * 48 + [0] * 16
    assert [{*document.rotary[document.split == n]} for n in (7, 8, 9)] == [{*single.rotary[single.split == 7]}] * 3
    np.testing.assert_array_equal(document.rotary[document.split >= 10], single.rotary[single.split >= 8])


def test_draws_see_their_context_and_nothing_of_each_other():
    document = lay_out(record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, draws=3), TOKENIZER, SHAPES_NANO)
    slots = np.arange(len(document.split))
    seen = (document.k_start[:, None] <= slots) & (slots < document.k_end[:, None])
    seen &= (document.q_start <= slots[:, None]) & (slots[:, None] < document.q_end)
    draws = (7, 8, 9)
    for query, key in itertools.product(range(len(document.modes)), repeat=2):
        block = seen[np.ix_(document.split == query, document.split == key)]
        if key > query or (key in draws and key != query):
            assert not block.any(), (query, key)
        elif key < query or key in draws:
            assert block.all(), (query, key)


def test_a_rewritten_plan_and_its_draft_are_context():
    made = record(
        text("prompt"),
        text("plan", PLAN, target=False),
        image("sketch", target=False),
        text("inspect", FAULT),
        text("plan", PLAN),
        image("refine"),
    )
    assert describe(record_segments(made, TOKENIZER, SHAPES_NANO)) == [
        ("text", False, None),
        ("text", False, None),
        ("clean", None),
        ("vit", OPEN),
        ("text", True, OPEN),
        ("text", True, SEE),
        ("noised", None),
        ("clean", None),
        ("vit", END),
    ]


def test_words_predict_the_next_and_the_closing_token():
    document = lay_out(record_segments(CORRECTED, TOKENIZER, SHAPES_NANO), TOKENIZER, SHAPES_NANO)
    words = TOKENIZER.encode("All is right.")
    np.testing.assert_array_equal(document.text_targets[-len(words) - 2 :], [*words, TOKENIZER.im_end, END])
    assert document.text_weights[-len(words) - 2 :].all()


@pytest.mark.parametrize(
    "words, correction",
    [(FAULT, "Make it red."), ("Die Größe fehlt. <refine>größer, \u6f22<\\refine>", "größer, \u6f22"), ("Right.", "")],
)
def test_what_an_inspection_says_to_refine(words, correction):
    """The ids of the words between the tags, beyond ASCII too."""
    parts = [text("prompt"), text("plan", PLAN), image("sketch", not correction), text("inspect", words)]
    plan, inspection = (
        s
        for s in record_segments(record(*parts, complete=False), TOKENIZER, SHAPES_NANO)
        if isinstance(s, TextSegment) and s.loss
    )
    assert (plan.stage, plan.refine) == ("plan", (0, 0)) and inspection.stage == "inspect"
    assert TOKENIZER.decode(inspection.ids[slice(*inspection.refine)]) == correction


# Units of CORRECTED: 0 clean, 1 vit, 2 prompt, 3 plan, 4 clean, 5 vit, 6 inspect, 7 noised, 8 clean, 9 vit,
# 10 inspect.
@pytest.mark.parametrize(
    "dropped, expected",
    [
        ([0, 1], {0: "gap", 1: "gap"}),
        ([2], {2: None, 3: None}),  # the prompt decides for all texts before the image
        ([3], {}),
        ([4], {4: "gap"}),
        ([5], {5: "gap", 6: ("text", False, None)}),  # the inspection cannot see what it inspects
        ([6], {6: None}),
        ([7], {}),  # a noised copy stays
        ([9], {9: "gap", 10: ("text", False, None)}),
        ([10], {}),  # no image follows
    ],
)
def test_condition_dropout(dropped, expected):
    whole = describe(record_segments(CORRECTED, TOKENIZER, SHAPES_NANO))
    segments = record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, keep=keep_all_but(dropped))
    changed = [expected.get(n, part) for n, part in enumerate(whole)]
    assert describe(segments) == [part for part in changed if part is not None]


def test_dropped_units_and_positions():
    """A dropped image copy still advances by one, a dropped text does not."""
    segments = record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, keep=keep_all_but([0, 2, 4]))
    document = lay_out(segments, TOKENIZER, SHAPES_NANO)
    starts = np.cumsum([0, *np.bincount(document.split)])[:-1]
    fault = len(TOKENIZER.encode(FAULT)) + 2
    # vit after a gap, vit after a gap, inspection, noised, clean, vit, inspection
    expected = [1, 3, 4, 4 + fault, 4 + fault, 5 + fault, 6 + fault]
    np.testing.assert_array_equal(document.rotary[starts], expected)


kinds_strategy = st.lists(
    st.sampled_from(
        [[TEXT], [TEXT, TEXT], [CLEAN, VIT], [NOISED, CLEAN, VIT], [NOISED] * 3 + [CLEAN, VIT], [NOISED, NOISED], [VIT]]
    ),
    min_size=1,
    max_size=8,
).map(lambda parts: [kind for part in parts for kind in part])
rates = st.sampled_from([0.0, 0.5, 1.0])


@given(kinds_strategy, st.builds(ConditionDropout, rates, rates, rates), st.integers(0, 99))
def test_what_dropout_may_drop(kinds, dropout, seed):
    keep = dropout_mask(
        np.array(kinds, np.int8), np.array([0, len(kinds)]), dropout, np.random.default_rng(seed).random(len(kinds))
    )
    assert keep.any()
    certain = {TEXT: dropout.text, CLEAN: dropout.vae, VIT: dropout.vit, NOISED: 0.0}
    images = [n for n, kind in enumerate(kinds) if kind != TEXT]
    for n, kind in enumerate(kinds):
        if certain[kind] == 0 or (kind == TEXT and (not images or n > images[-1])):
            assert keep[n]
        elif certain[kind] == 1 and not keep.all():
            assert not keep[n]
        if n and kind == kinds[n - 1] == TEXT:
            assert keep[n] == keep[n - 1]


@settings(max_examples=30)
@given(st.lists(kinds_strategy, min_size=1, max_size=6), st.integers(0, 99))
def test_dropout_of_many_documents_is_that_of_each(documents, seed):
    draws = [np.random.default_rng((seed, n)).random(len(kinds)) for n, kinds in enumerate(documents)]
    starts = np.cumsum([0, *map(len, documents)])
    documents = [np.array(kinds, np.int8) for kinds in documents]
    together = dropout_mask(np.concatenate(documents), starts, HALF, np.concatenate(draws))
    single = [dropout_mask(k, np.array([0, len(k)]), HALF, d) for k, d in zip(documents, draws)]
    np.testing.assert_array_equal(together, np.concatenate(single))


def test_dropout_rates():
    kinds = np.tile(np.array([TEXT, TEXT, NOISED, CLEAN, VIT], np.int8), 4000)
    keep = dropout_mask(kinds, np.arange(0, 20001, 5), ConditionDropout(), np.random.default_rng(0).random(20000))
    shares = keep.reshape(4000, 5).mean(axis=0)
    np.testing.assert_allclose(shares, [0.9, 0.9, 1, 0.7, 0.7], atol=0.03)  # 4 standard deviations


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_outline_predicts_lengths_after_dropout(seed, draws):
    """Packing relies on the outline before anything is laid out."""
    for made in (CORRECTED, LOOKED_AT, record(text("prompt"), image("sketch"), mode="single_pass")):
        units = outline(made, TOKENIZER, SHAPES_NANO, draws).units
        kinds, tokens = np.array([u.kind for u in units], np.int8), np.array([u.tokens for u in units])
        keep = dropout_mask(kinds, np.array([0, len(kinds)]), HALF, np.random.default_rng(seed).random(len(kinds)))
        segments = record_segments(made, TOKENIZER, SHAPES_NANO, keep=keep, draws=draws)
        lengths = lay_out(segments, TOKENIZER, SHAPES_NANO).lengths
        np.testing.assert_array_equal(stream_lengths(kinds, tokens)[keep].sum(axis=0), lengths)


def test_a_picture_of_64_pixels_is_16_vae_and_16_vit_tokens():
    units = outline(record(text("prompt", "x"), text("plan", PLAN), image("sketch")), TOKENIZER, SHAPES_NANO).units
    assert [(unit.kind, unit.tokens) for unit in units[2:]] == [(NOISED, 16), (CLEAN, 16), (VIT, 16)]


def test_payloads_of_an_image():
    segments = record_segments(CORRECTED, TOKENIZER, SHAPES_NANO)
    given_image = CORRECTED.segments[0]
    mean = np.frombuffer(given_image.latent_mean, np.float16).reshape(SHAPE).astype(np.float32)
    np.testing.assert_allclose(segments[0].latents, patchify(0.3611 * (mean - 0.1159), 2), rtol=1e-6)
    np.testing.assert_array_equal(segments[0].positions, np.arange(16))
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_allclose(segments[1].patches, patchify(picture / 127.5 - 1, 16), atol=1e-6)
    np.testing.assert_array_equal(segments[1].positions, np.arange(16))


def test_latents_are_posterior_samples():
    """(sample - mean) / standard deviation is standard normal; both VAE copies share the sample."""
    drawn = CORRECTED.segments[5]
    mean, logvar = (np.frombuffer(m, np.float16).reshape(SHAPE) for m in (drawn.latent_mean, drawn.latent_logvar))
    noise = []
    for seed in range(20):
        segments = record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, np.random.default_rng(seed))
        noised, clean = (s for s in segments[7:9] if isinstance(s, LatentSegment))
        np.testing.assert_array_equal(noised.latents, clean.latents)
        sample = noised.latents / 0.3611 + 0.1159
        noise.append((sample - patchify(mean, 2)) / np.exp(patchify(logvar, 2).astype(np.float64) / 2))
    noise = np.stack(noise)  # 20,480 values
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert abs(np.mean(noise[0] * noise[1])) < 0.15  # another seed, another sample


def test_equal_generators_give_equal_latents():
    made = [record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, np.random.default_rng((3, 4))) for _ in range(2)]
    one, two = (lay_out(segments, TOKENIZER, SHAPES_NANO) for segments in made)
    np.testing.assert_array_equal(one.vae_latents, two.vae_latents)


def faulty(**changes):
    return record(text("prompt"), text("plan", PLAN), msgspec.structs.replace(image("sketch"), **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"latent_mean": None, "latent_logvar": None, "latent_shape": None},
            "record r1: segment 2: has no latents; encode",
        ),
        ({"latent_shape": (16, 16, 4)}, r"record r1: segment 2: latents \(16, 16, 4\) are not 16 channels"),
        ({"latent_shape": (2, 32, 16)}, "record r1: segment 2: 1 x 16 VAE tokens exceed the model's grid of 4"),
        ({"png": b"\x89PNG\r\n\x1a\n"}, "record r1: segment 2: not a readable PNG"),
    ],
)
def test_unsuitable_images_are_named(changes, message):
    broken = faulty(**changes)
    with pytest.raises(SegmentError, match=message):
        outline(broken, TOKENIZER, SHAPES_NANO)
    with pytest.raises(SegmentError, match=message):
        record_segments(broken, TOKENIZER, SHAPES_NANO)


def test_tokens_outside_the_vocabulary_are_named():
    small = dataclasses.replace(SHAPES_NANO, language=dataclasses.replace(SHAPES_NANO.language, vocab_size=4))
    with pytest.raises(SegmentError, match=r"record r1: segment 1: token \d+ is outside the model's vocabulary of 4"):
        outline(CORRECTED, TOKENIZER, small)


def test_probabilities_are_checked():
    with pytest.raises(ValueError, match=r"condition dropout of vae is 1\.5, expected a probability"):
        ConditionDropout(vae=1.5)


def test_every_unit_kind_has_its_streams():
    lengths = stream_lengths([TEXT, NOISED, CLEAN, VIT], [5, 64, 64, 16])
    np.testing.assert_array_equal(lengths, [[7, 0, 0], [2, 0, 64], [2, 0, 64], [2, 16, 0]])

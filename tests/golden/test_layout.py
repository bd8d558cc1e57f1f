"""Positions, splits, targets and mask of the golden pack, from the sample plans alone."""

import types

import numpy as np
import pytest

from pdgen.sequence import layout
from pdgen.sequence.images import patchify, position_ids
from pdgen.sequence.layout import Budgets, LatentSegment, Layout, TextSegment, VitSegment


def switch_tokens(expected):
    names = {"im_start": "bos", "im_end": "eos", "vision_start": "soi", "vision_end": "eoi"}
    return types.SimpleNamespace(**{ours: expected[theirs] for ours, theirs in names.items()})


def segments_of(samples, golden):
    """Return the sample plans as pdgen's segments, a list per sample; payloads in the order of the packed arrays."""
    config, numbers = golden.config, golden.numbers
    latents = iter(numbers["train.padded_latent"])
    vit_tokens, taken = numbers["train.packed_vit_tokens"], 0
    for sample in samples:
        texts, shapes = iter(sample["text_ids_list"]), iter(sample["image_shapes"])
        segments = []
        for item in sample["sequence_plan"]:
            target = item["special_token_label"] if item["special_token_loss"] else None
            if item["type"] == "text":
                segments.append(TextSegment(next(texts), bool(item["loss"]), target))
                continue
            _, height, width = next(shapes)
            if item["type"] == "vae_image":
                grid = height // config.latent_stride, width // config.latent_stride
                cells = [side * config.latent_patch_size for side in grid]
                latent = next(latents)[:, : cells[0], : cells[1]].transpose(1, 2, 0)
                ids = position_ids(grid, config.max_latent_size, config.interpolate_positions)
                tokens = patchify(latent, config.latent_patch_size)
                segments.append(LatentSegment(tokens, ids, bool(item["loss"]), target))
            else:
                grid = height // config.vision.patch_size, width // config.vision.patch_size
                ids = position_ids(grid, config.vision.max_side, config.interpolate_positions)
                segments.append(VitSegment(vit_tokens[taken : taken + len(ids)], ids, target))
                taken += len(ids)
        yield segments


def layouts_of(golden, balance_texts=False) -> list[Layout]:
    switches = switch_tokens(golden.expected)
    return [
        layout.lay_out(segments, switches, golden.config, balance_texts)
        for segments in segments_of(golden.expected["samples"], golden)
    ]


@pytest.fixture(scope="module")
def pack(golden):
    """The golden samples as one pack with some padding in every stream."""
    layouts = layouts_of(golden)
    text, vit, vae = np.sum([document.lengths for document in layouts], axis=0).tolist()
    return layout.assemble(layouts, Budgets(text + 5, vit + 3, vae + 4), row=0)


def real(values, golden, name):
    """Return the tokens of a padded array without the padding, by the length of a golden array."""
    return values[: len(golden.numbers[name])]


def test_splits_and_sample_lengths(golden):
    layouts = layouts_of(golden)
    assert [len(document.stream) for document in layouts] == golden.expected["sample_lens"]
    splits = [{"split_lens": np.bincount(d.split).tolist(), "attn_modes": list(d.modes)} for d in layouts]
    assert splits == golden.expected["splits"]


def test_rotary_positions(golden, pack):
    golden.check(
        "train.packed_position_ids",
        real(pack.rotary[pack.to_sequence], golden, "train.packed_position_ids"),
    )


@pytest.mark.parametrize("stream, name", enumerate(("text", "vit_token", "vae_token")))
def test_stream_order(golden, pack, stream, name):
    starts = np.cumsum([0, len(pack.text_ids), len(pack.vit_patches)])
    slots = pack.to_stream[starts[stream] :]
    golden.check(f"train.packed_{name}_indexes", real(slots, golden, f"train.packed_{name}_indexes"))


@pytest.mark.parametrize(
    "field, name",
    [
        ("text_ids", "text_ids"),
        ("vit_patches", "vit_tokens"),
        ("vit_positions", "vit_position_ids"),
        ("vae_positions", "latent_position_ids"),
    ],
)
def test_payloads(golden, pack, field, name):
    golden.check(f"train.packed_{name}", real(getattr(pack, field), golden, f"train.packed_{name}"))


def test_text_targets(golden, pack):
    slots = np.flatnonzero(pack.text_weights)
    golden.check("train.ce_loss_indexes", pack.to_stream[slots])
    golden.check("train.packed_label_ids", pack.text_targets[slots])
    assert np.all(pack.text_weights[slots] == 1)


def test_balanced_text_weights(golden):
    weights = np.concatenate([document.text_weights for document in layouts_of(golden, balance_texts=True)])
    golden.check("train.ce_loss_weights", weights[weights > 0])


def test_flow_targets(golden, pack):
    slots = np.flatnonzero(pack.vae_weights)
    golden.check("train.mse_loss_indexes", pack.to_stream[len(pack.text_ids) + len(pack.vit_patches) + slots])


def test_noised_images_share_one_timestep(golden, pack):
    logits = golden.numbers["train.packed_timesteps_logit"]
    images = real(pack.vae_image, golden, "train.packed_timesteps_logit")
    np.testing.assert_array_equal(images < 0, np.isneginf(logits))
    numbers = np.unique(images[images >= 0])
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
    for number in numbers:
        assert len(set(logits[images == number])) == 1


def test_vit_images(golden, pack):
    ends = np.cumsum(golden.numbers["train.vit_token_seqlens"])
    starts = ends - golden.numbers["train.vit_token_seqlens"]
    count = len(golden.numbers["train.packed_vit_tokens"])
    lengths = ends - starts
    np.testing.assert_array_equal(pack.vit_start[:count], np.repeat(starts, lengths))
    np.testing.assert_array_equal(pack.vit_end[:count], np.repeat(ends, lengths))
    assert not pack.vit_end[count:].any()


def test_mask(golden, pack):
    slots = np.arange(len(pack.k_start))
    queries = (pack.k_start[:, None] <= slots) & (slots < pack.k_end[:, None])
    keys = (pack.q_start <= slots[:, None]) & (slots[:, None] < pack.q_end)
    allowed, count = queries & keys, sum(golden.expected["sample_lens"])
    golden.check("train.attention_allowed", allowed[:count, :count].astype(np.uint8))
    assert not allowed[count:].any() and not allowed[:, count:].any()


def test_positions_of_a_growing_context(golden):
    """Segment by segment, as in sampling: text, clean VAE copy, ViT copy, text."""
    infer, config = golden.expected["infer"], golden.config
    texts = {"prompt": infer["prompt_ids"], "plan": infer["plan_ids"]}

    def tokens(name):
        kind, which = name.split(":")
        if kind == "text":
            return "causal", len(texts[which]) + 2
        stride = config.latent_stride if kind == "vae" else config.vision.patch_size
        _, _, height, width = golden.numbers[f"infer.{which}"].shape
        return "full", (height // stride) * (width // stride) + 2

    contexts = (("context_order", ""), ("cfg_text_context", "cfg_text_"), ("cfg_img_context", "cfg_img_"))
    for order, prefix in contexts:
        rotary = length = 0
        for name in infer[order]:
            mode, count = tokens(name)
            rotary, length = layout.advance(rotary, mode, count), length + count
        assert (length, rotary) == (infer[f"{prefix}kv_len"], infer[f"{prefix}rope"])

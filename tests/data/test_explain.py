"""The explanation of a pack, against the layout's worked example and the pack's own arrays."""

import dataclasses

import numpy as np
import pytest

from pdgen.assets import shapes_folder
from pdgen.config import SHAPES_NANO
from pdgen.data.explain import explain_pack
from pdgen.data.loader import Batches, LoaderConfig
from pdgen.data.records import Origin, RecordSource, write_dataset
from pdgen.sequence.explanation import document_runs, readable
from pdgen.sequence.layout import Budgets, LatentSegment, TextSegment, assemble, lay_out
from pdgen.sequence.segments import NO_DROPOUT, ConditionDropout
from pdgen.sequence.tokenizer import load_tokenizer
from tests.data.small_records import records

TOKENIZER = load_tokenizer(shapes_folder())
BUDGETS = Budgets(512, 160, 448)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, records(40), Origin(seed=0))
    return RecordSource(folder)


def batches(source, **changes):
    settings = LoaderConfig(rows=1, budgets=BUDGETS, dropout=NO_DROPOUT)
    return Batches(SHAPES_NANO, source, TOKENIZER, dataclasses.replace(settings, **changes))


def test_the_worked_example_of_the_layout():
    """Text ``a`` and an image of two tokens, noised and clean, as in the docstring of ``layout``."""
    latents, places = np.zeros((2, SHAPES_NANO.latent_dim), np.float32), np.arange(2, dtype=np.int32)
    letter = TOKENIZER.encode("a")[0]
    segments = [
        TextSegment([letter], loss=True, switch_target=TOKENIZER.vision_start),
        LatentSegment(latents, places, noised=True),
        LatentSegment(latents, places),
    ]
    laid_out = lay_out(segments, TOKENIZER, SHAPES_NANO)
    pack = assemble([laid_out], Budgets(8, 0, 5), 0)
    runs = document_runs(pack, TOKENIZER, 0, laid_out.split, ["prompt", "sketch", "sketch"])
    rows = [(r.text, (r.start, r.end), r.expert, r.rotary, r.sees, r.seen_by, r.target) for r in runs]
    assert rows == [
        ("<|im_start|>", (0, 1), "und", 0, (0, 1), (0, 11), "a"),
        ("a", (1, 2), "und", 1, (0, 2), (1, 11), "<|im_end|>"),
        ("<|im_end|>", (2, 3), "und", 2, (0, 3), (2, 11), "<|vision_start|>"),
        ("<|vision_start|>", (3, 4), "und", 3, (0, 7), (3, 7), ""),
        ("2 noised VAE tokens", (4, 6), "gen", 3, (0, 7), (3, 7), "velocity"),
        ("<|vision_end|>", (6, 7), "und", 3, (0, 7), (3, 7), ""),
        ("<|vision_start|>", (7, 8), "und", 3, (0, 11), (7, 11), ""),
        ("2 clean VAE tokens", (8, 10), "gen", 3, (0, 11), (7, 11), ""),
        ("<|vision_end|>", (10, 11), "und", 3, (0, 11), (7, 11), ""),
    ]
    assert [r.stage for r in runs] == ["prompt"] * 3 + ["sketch"] * 6


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("turns", ["whole", "single"])
def test_runs_tile_the_pack_and_agree_with_it(source, turns, draws):
    made = batches(source, turns=turns, draws=draws, dropout=ConditionDropout(0.3, 0.3, 0.3))
    for number in (0, 5):
        pack, explained = made.make_pack(number), explain_pack(made, number)
        runs = [run for document in explained.documents for run in document.runs]
        assert [run.start for run in runs] == [0, *(run.end for run in runs[:-1])]
        assert explained.used == runs[-1].end == made.packer.count_used(number).sum()
        for run in runs:
            slots = np.arange(run.start, run.end)
            assert {*pack.rotary[pack.to_sequence[slots]].tolist()} == {run.rotary}
            for name, stated in zip(("k_start", "k_end", "q_start", "q_end"), (*run.sees, *run.seen_by)):
                assert {*getattr(pack, name)[slots].tolist()} == {stated}
        targets = sum(run.end - run.start for run in runs if run.target)
        assert targets == np.count_nonzero(pack.text_weights) + np.count_nonzero(pack.vae_weights)


@pytest.mark.parametrize("draws", [1, 2])
def test_stages_and_dropped_units_are_the_records(source, draws):
    """Without text dropout the texts of every stage are the record's; runs hold nothing that is dropped."""
    made = batches(source, draws=draws, dropout=ConditionDropout(0, 0.5, 0.5))
    document = next(d for d in explain_pack(made, 0).documents if d.dropped)
    record = next(r for r in records(40) if r.id == document.record)
    for stage in ("plan", "inspect"):
        words = "".join(r.token for r in document.runs if r.stage == stage and not r.token.startswith("<|"))
        assert words.replace("\u2423", " ") == "".join(s.text for s in record.segments if s.stage == stage)
    copies = sum(r.stream != "text" for r in document.runs)
    images = [s for s in record.segments if s.stage in ("sketch", "refine")]
    assert copies == sum(2 + draws if s.target else 2 for s in images) - len(document.dropped)
    assert all(name.split(" of segment ")[0] in ("clean VAE copy", "ViT copy") for name in document.dropped)
    assert document.name.endswith(f"record {int(record.id[-6:])}") and document.turns == "whole"


def test_documents_of_single_turns_are_named(source):
    named = {d.turns for number in range(10) for d in explain_pack(batches(source, turns="single"), number).documents}
    assert {"whole", "turn 1 of 2", "turn 2 of 2", "turn 3 of 3"} <= named


def test_every_token_is_readable():
    assert readable(TOKENIZER, TOKENIZER.im_start) == "<|im_start|>"
    assert readable(TOKENIZER, TOKENIZER.pad) == "<|endoftext|>"
    texts = [readable(TOKENIZER, token) for token in range(TOKENIZER.vocab_size)]
    assert all(text and text.isprintable() for text in texts)
    part = next(i for i, piece in enumerate(TOKENIZER.pieces) if piece == b"\xe2")
    assert readable(TOKENIZER, part) == "<E2>"

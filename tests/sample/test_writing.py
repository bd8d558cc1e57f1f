"""Texts written in parts, or dropped half-way, and rows with settings of their own."""

import dataclasses

import pytest

from pdgen.sample.text import TextSettings
from tests.sample.conftest import PROMPTS, SEEDS, SETTINGS


@pytest.fixture
def batch(sampler):
    return sampler.make_batch(sampler.make_starts(PROMPTS, SEEDS, SETTINGS), SETTINGS)


def test_parts_give_the_texts_of_one_call(batch, recorded):
    writing, seen = batch.begin_texts(batch.list_due("text")), []
    while not writing.is_done:
        batch.advance_texts(writing, writing.steps + 3)
        seen.append(writing.read())
    batch.finish_texts(writing)
    first = {slot: drawn.stages[0].ids for slot, drawn in enumerate(recorded.drawn)}
    assert {slot: batch.rows[slot].stages[0].ids for slot in first} == first
    assert len(seen) > 2
    for tokens in seen:
        assert all(first[slot][: len(ids)] == ids for slot, ids in tokens.items())
    batch.settle()
    batch.draw_images([0])  # the contexts are as after one call
    assert batch.rows[0].images[0].tobytes() == recorded.drawn[0].images[0].tobytes()


def test_dropped_texts_are_not_recorded_and_the_others_are_as_ever(batch, recorded):
    writing = batch.begin_texts([0, 1, 2])
    batch.advance_texts(writing, 2)
    writing.keep([0])
    assert writing.slots == [0]
    batch.advance_texts(writing)
    batch.finish_texts(writing)
    assert batch.rows[0].stages[0].ids == recorded.drawn[0].stages[0].ids
    assert not batch.rows[1].stages and not batch.rows[2].stages
    assert all(not batch.release(slot).stages for slot in (1, 2))


def test_rows_have_settings_of_their_own(sampler):
    starts = sampler.make_starts(PROMPTS[:2], SEEDS[:2], SETTINGS)
    short = dataclasses.replace(SETTINGS, text=TextSettings(max_tokens=5, temperature=1.0), batch_size=7)
    batch = sampler.make_batch(starts[:1], SETTINGS)
    batch.admit({1: (1, starts[1])}, short)
    batch.write_texts([0, 1])
    lone = sampler.make_batch(starts, dataclasses.replace(short, batch_size=2))
    lone.write_texts([1])
    assert batch.rows[1].stages[0].ids == lone.rows[1].stages[0].ids
    assert batch.make_trajectory(1).settings["text.max_tokens"] == 5
    assert batch.make_trajectory(0).settings["text.max_tokens"] == 24
    assert batch.make_trajectory(1).settings["batch_size"] == 2

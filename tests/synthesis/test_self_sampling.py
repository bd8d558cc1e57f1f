"""Self-sampling: a model's plans judged against the raw prompt; here the model is a function."""

import numpy as np
import pytest

from pdgen.sequence.trajectory import Image, check_grammar, encode_record, parse_plan, parse_refine, segment_kind
from pdgen.shapes import language
from pdgen.shapes.graph import Step
from pdgen.shapes.parse import parse
from pdgen.synthesis.self_sampling import PLAN_BATCH_SIZE, make_self_sampled
from pdgen.synthesis.settings import Conflict, DatasetSettings, SettingsError
from pdgen.synthesis.story import Teachers
from pdgen.synthesis.subsets import is_positive
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.exact.painter import ShapesPainter
from pdgen.teachers.exact.writer import RulesWriter

TEACHERS = Teachers(ShapesPainter(64), ExactJudge(), RulesWriter())
CONFLICT = Conflict(positive=6, negative=10, variant="self")
SETTINGS = DatasetSettings(conflict=CONFLICT, tasks={"colors": 1.0, "color_attr": 1.0})
OTHER = {"red": "blue", "blue": "red"}


def model(prompts, seeds):
    """A model that plans the whole prompt; even seeds write wrong colours, multiples of 5 no plan at all."""
    plans = []
    for prompt, seed in zip(prompts, seeds):
        graph = parse(prompt)
        step = Step("add", tuple(e.id for e in graph.entities), graph)
        words = language.write_plan(np.random.default_rng(seed), None, step)
        if seed % 2 == 0:
            for entity in graph.entities:
                color = entity.attributes["color"]
                words = words.replace(color, OTHER.get(color, "blue"))
        plans.append(words if seed % 5 else "no plan at all")
    return plans


@pytest.fixture(scope="module")
def samples():
    return make_self_sampled(SETTINGS, TEACHERS, range(16), model)


def test_accepted_plans_are_targets_and_rejected_ones_context(samples):
    for number, record in enumerate(samples.records):
        check_grammar(record)
        positive = is_positive(SETTINGS, "conflict", number)
        assert (record.id, record.source) == (f"conflict-0-{number:06d}", "conflict")
        assert (record.scene["positive"], record.complete) == (positive, False)
        kinds, targets = [segment_kind(s) for s in record.segments], [s.target for s in record.segments]
        prompt, plan = record.segments[0].text, record.segments[1].text
        asked, planned = ({e.attributes["color"] for e in parse(t).entities} for t in (prompt, parse_plan(plan)[1]))
        if positive:
            assert kinds == ["prompt", "plan", "image", "inspect"] and targets == [False, True, True, True]
            assert planned == asked
        else:
            assert kinds == ["prompt", "plan", "image", "inspect+refine", "plan", "image"]
            assert targets == [False, False, False, True, True, True]
            assert planned != asked
            rewritten = parse(parse_plan(record.segments[4].text)[1])
            assert {e.attributes["color"] for e in rewritten.entities} == asked  # all that the wrong plan states
            assert any(color in parse_refine(record.segments[3].text) for color in asked)
            assert record.segments[2].png != record.segments[5].png
    assert sum(isinstance(s, Image) for r in samples.records for s in r.segments) == 6 + 2 * 10


def test_plans_that_cannot_be_used_are_counted(samples):
    assert samples.rejected["plan not understood"] >= 1
    assert sum(samples.rejected.values()) + 16 <= 3 * PLAN_BATCH_SIZE


def test_samples_depend_on_their_shard_alone(samples):
    again = make_self_sampled(SETTINGS, TEACHERS, range(16), model)
    assert [encode_record(r) for r in again.records] == [encode_record(r) for r in samples.records]
    assert again.rejected == samples.rejected
    later = make_self_sampled(SETTINGS, TEACHERS, range(8, 16), model)
    assert {r.segments[0].text for r in later.records} != {r.segments[0].text for r in samples.records[8:]}


def test_a_model_without_conflicts_is_reported(monkeypatch):
    monkeypatch.setattr("pdgen.synthesis.self_sampling.ATTEMPTS", 8)

    def faultless(prompts, seeds):
        return model(prompts, [2 * seed + 1 for seed in range(len(seeds))])

    with pytest.raises(SettingsError, match="0 positive and 5 negative samples are missing after 64 plans") as fault:
        make_self_sampled(SETTINGS, TEACHERS, range(8), faultless)
    assert "raise conflict.temperature" in str(fault.value)

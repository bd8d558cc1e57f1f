"""Settings of a data set: counts, scales, and refusals that name the key and the remedy."""

import importlib.util
import pathlib

import msgspec
import pytest

from pdgen.scenes.endpoint import Settings as EndpointSettings
from pdgen.scenes.settings import (
    SUBSETS,
    TASK_SHARES,
    Alignment,
    Conflict,
    Edit,
    MultiTurn,
    Settings,
    TeacherSettings,
    TextToImage,
    Understand,
    scaled,
)

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ENDPOINT = EndpointSettings(url="http://host/v1", model="m", cache="c")
REAL = TeacherSettings("kontext", "endpoint", "endpoint", prompts="p.txt", endpoint=ENDPOINT)
NO_FAULTS = MultiTurn(fault_rate=0)


def read(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return msgspec.convert(module.get_config().to_dict(), Settings)


@pytest.mark.parametrize(("name", "alignment"), [("data_shapes", 30000), ("data_bagel", 15000)])
def test_the_configs_have_the_papers_counts(name, alignment):
    """But for the faulty drafts of shapes world, of which there are more."""
    settings = read(name)
    assert [settings.counts(s) for s in SUBSETS] == [(32012, 0), (15201, 6905), (alignment, 5000), *[(0, 0)] * 3]
    assert [settings.lacking(s) for s in SUBSETS[:3]] == [None] * 3
    tenth = scaled(settings, 0.1)
    assert [tenth.counts(s)[0] for s in SUBSETS] == [3201, 1520, alignment // 10, 0, 0, 0]


def test_the_config_of_shapes_world_has_every_task():
    for shares in (read("data_shapes").tasks, TASK_SHARES):
        assert shares.keys() == TASK_SHARES.keys() and sum(shares.values()) == pytest.approx(1)


def test_the_base_config_has_what_the_base_model_learns_alone():
    base = read("data_shapes_base")
    assert [base.counts(s)[0] for s in SUBSETS] == [0, 0, 0, 60000, 50000, 25000]
    assert [base.lacking(s) for s in SUBSETS] == [None] * 6
    assert scaled(base, 1, 27).counts("edit") == (5, 0)


def test_a_count_is_shared_out_in_proportion():
    settings = Settings(multi_turn=MultiTurn(30), conflict=Conflict(10, 20), alignment=Alignment(10, 30))
    assert [scaled(settings, 1, 10).counts(s) for s in SUBSETS[:3]] == [(3, 0), (3, 1), (4, 1)]
    assert [scaled(settings, 0.5, 20).counts(s) for s in SUBSETS[:3]] == [(3, 0), (3, 1), (4, 1)]


@pytest.mark.parametrize(("factor", "count", "words"), [
    (0, None, "--scale=0 is no positive number"),
    (float("nan"), None, "--scale=nan is no positive"),
    (1, 0, "--count=0: at least 1"),
    (1e-9, None, "no sample is left of 62213 at --scale=1e-09"),
])  # fmt: skip
def test_scales_that_leave_nothing_are_refused(factor, count, words):
    with pytest.raises(ValueError, match=words):
        scaled(Settings(), factor, count)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Settings(seed=-1), "seed=-1: at least 0"),
    (lambda: Settings(image_size=8), "image_size=8: at least 16"),
    (lambda: Settings(shard_size=0), "shard_size=0"),
    (lambda: msgspec.convert({"positions": "loose"}, Settings), "loose.*positions"),
    (lambda: Settings(rewritten=1.5), "rewritten=1.5 is no probability"),
    (lambda: Settings(tasks={"position": -1}), "tasks: position=-1"),
    (lambda: Settings(tasks={"posture": 1}), "tasks: posture=1: expected a share of one of single_object"),
    (lambda: Settings(tasks={"position": 0}), "tasks: the shares sum to 0"),
    (lambda: Settings(entities=(0, 0)), "entities="),
    (lambda: Settings(entities=(1,) * 7), "entities="),
    (lambda: MultiTurn(count=-1), "multi_turn.count=-1 is below 0"),
    (lambda: MultiTurn(fault_rate=2), "multi_turn.fault_rate=2 is no probability"),
    (lambda: Conflict(negative=-1), "conflict.negative=-1"),
    (lambda: Conflict(temperature=-1), "conflict.temperature=-1"),
    (lambda: Alignment(positive=-1), "alignment.positive=-1"),
    (lambda: TextToImage(count=-1), "text_to_image.count=-1 is below 0"),
    (lambda: TextToImage(things=(1,) * 7), "text_to_image.things=.*expected up to 6 shares"),
    (lambda: TextToImage(wordings={"poem": 1}), "text_to_image.wordings: poem=1: expected a share of one of prompt"),
    (lambda: Understand(things=()), "understand.things="),
    (lambda: Understand(questions={"caption": 0}), "understand.questions: the shares sum to 0"),
    (lambda: Edit(operations={"add": -1}), "edit.operations: add=-1"),
    (lambda: TeacherSettings(redraws=-1), "teachers.redraws=-1"),
    (lambda: TeacherSettings(judge="endpoint"), "teachers.endpoint is missing"),
    (lambda: TeacherSettings(painter="kontext"), "teachers.prompts is missing"),
    (lambda: TeacherSettings(writer="endpoint", endpoint=ENDPOINT), "take writer=rules"),
    (lambda: Settings(teachers=REAL), "multi_turn.fault_rate: only shapes world"),
])  # fmt: skip
def test_values_out_of_range_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words) as fault:
        make()
    assert "\n" not in str(fault.value)


def test_each_stage_says_what_it_lacks():
    alone = Settings(conflict=Conflict(variant="self"))
    assert "needs a checkpoint" in alone.lacking("conflict") and alone.lacking("multi_turn") is None
    assert Settings(conflict=Conflict(variant="self", checkpoint="out/nano")).lacking("conflict") is None
    assert "GenRef archive" in Settings(teachers=REAL, multi_turn=NO_FAULTS).lacking("alignment")
    for subset in ("text_to_image", "understand", "edit"):
        assert f"--config.{subset}.count=0" in Settings(teachers=REAL, multi_turn=NO_FAULTS).lacking(subset)
    archive = Alignment(archive="genref")
    assert Settings(teachers=REAL, multi_turn=NO_FAULTS, alignment=archive).lacking("alignment") is None
    assert "judge=endpoint" in Settings(alignment=archive).lacking("alignment")
    assert Settings(alignment=Alignment(positive=0, archive="genref")).lacking("alignment") is None


def test_what_decides_speed_alone_may_change_between_runs():
    faster = msgspec.structs.replace(REAL, endpoint=msgspec.structs.replace(ENDPOINT, concurrency=64, cache="d"))
    other = msgspec.structs.replace(REAL, endpoint=msgspec.structs.replace(ENDPOINT, model="n"))
    common = [Settings(teachers=t, multi_turn=NO_FAULTS).common() for t in (REAL, faster, other)]
    assert common[0] == common[1] != common[2]
    assert not common[0].keys() & set(SUBSETS)

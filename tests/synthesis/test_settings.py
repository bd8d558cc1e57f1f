"""Settings of a data set: counts, scales, and refusals that name the key and the remedy."""

import importlib.util
import pathlib

import msgspec
import pytest

from pdgen.synthesis.settings import (
    SUBSETS,
    TASK_SHARES,
    Alignment,
    Conflict,
    DatasetSettings,
    Edit,
    MultiTurn,
    TeacherSettings,
    TextToImage,
    Understand,
    scale_settings,
)
from pdgen.teachers.endpoint import EndpointSettings

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ENDPOINT = EndpointSettings(url="http://host/v1", model="m", cache="c")
REAL = TeacherSettings("kontext", "endpoint", "endpoint", prompts="p.txt", endpoint=ENDPOINT)
NO_FAULTS = MultiTurn(fault_rate=0)


def read(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return msgspec.convert(module.get_config().to_dict(), DatasetSettings)


# data_shapes has more faulty drafts than the paper; see its docstring.
@pytest.mark.parametrize(("name", "alignment"), [("data_shapes", 30000), ("data_bagel", 15000)])
def test_the_configs_have_the_papers_counts(name, alignment):
    settings = read(name)
    counts = [(32012, 0), (15201, 6905), (alignment, 5000), *[(0, 0)] * 3]
    assert [settings.count_samples(s) for s in SUBSETS] == counts
    assert [settings.find_missing(s) for s in SUBSETS[:3]] == [None] * 3
    tenth = scale_settings(settings, 0.1)
    assert [tenth.count_samples(s)[0] for s in SUBSETS] == [3201, 1520, alignment // 10, 0, 0, 0]


def test_shares_of_tasks_sum_to_one():
    shares = read("data_shapes").tasks
    assert shares.keys() == TASK_SHARES.keys()
    assert sum(shares.values()) == pytest.approx(1) and sum(TASK_SHARES.values()) == pytest.approx(1)


def test_the_base_config_has_only_the_base_model_s_subsets():
    base = read("data_shapes_base")
    assert [base.count_samples(s)[0] for s in SUBSETS] == [0, 0, 0, 60000, 50000, 25000]
    assert [base.find_missing(s) for s in SUBSETS] == [None] * 6
    assert scale_settings(base, 1, 27).count_samples("edit") == (5, 0)


def test_a_count_is_divided_in_proportion():
    settings = DatasetSettings(multi_turn=MultiTurn(30), conflict=Conflict(10, 20), alignment=Alignment(10, 30))
    assert [scale_settings(settings, 1, 10).count_samples(s) for s in SUBSETS[:3]] == [(3, 0), (3, 1), (4, 1)]
    assert [scale_settings(settings, 0.5, 20).count_samples(s) for s in SUBSETS[:3]] == [(3, 0), (3, 1), (4, 1)]


@pytest.mark.parametrize(
    ("factor", "count", "words"),
    [
        (0, None, "--scale=0 is no positive number"),
        (float("nan"), None, "--scale=nan is no positive"),
        (1, 0, "--count=0: at least 1"),
        (1e-9, None, "no sample is left of 62213 at --scale=1e-09"),
    ],
)
def test_scales_that_leave_nothing_are_refused(factor, count, words):
    with pytest.raises(ValueError, match=words):
        scale_settings(DatasetSettings(), factor, count)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DatasetSettings(seed=-1), "seed=-1: at least 0"),
        (lambda: DatasetSettings(image_size=8), "image_size=8: at least 16"),
        (lambda: DatasetSettings(shard_size=0), "shard_size=0"),
        (lambda: msgspec.convert({"positions": "loose"}, DatasetSettings), "loose.*positions"),
        (lambda: DatasetSettings(rewritten=1.5), "rewritten=1.5 is no probability"),
        (lambda: DatasetSettings(tasks={"position": -1}), "tasks: position=-1"),
        (lambda: DatasetSettings(tasks={"posture": 1}), "tasks: posture=1: expected a share of one of single_object"),
        (lambda: DatasetSettings(tasks={"position": 0}), "tasks: the shares sum to 0"),
        (lambda: DatasetSettings(entities=(0, 0)), "entities="),
        (lambda: DatasetSettings(entities=(1,) * 7), "entities="),
        (lambda: MultiTurn(count=-1), "multi_turn.count=-1 is below 0"),
        (lambda: MultiTurn(fault_rate=2), "multi_turn.fault_rate=2 is no probability"),
        (lambda: Conflict(negative=-1), "conflict.negative=-1"),
        (lambda: Conflict(temperature=-1), "conflict.temperature=-1"),
        (lambda: Alignment(positive=-1), "alignment.positive=-1"),
        (lambda: TextToImage(count=-1), "text_to_image.count=-1 is below 0"),
        (lambda: TextToImage(things=(1,) * 7), "text_to_image.things=.*expected up to 6 shares"),
        (
            lambda: TextToImage(wordings={"poem": 1}),
            "text_to_image.wordings: poem=1: expected a share of one of prompt",
        ),
        (lambda: Understand(things=()), "understand.things="),
        (lambda: Understand(questions={"caption": 0}), "understand.questions: the shares sum to 0"),
        (lambda: Edit(operations={"add": -1}), "edit.operations: add=-1"),
        (lambda: TeacherSettings(redraws=-1), "teachers.redraws=-1"),
        (lambda: TeacherSettings(judge="endpoint"), "teachers.endpoint is missing"),
        (lambda: TeacherSettings(painter="kontext"), "teachers.prompts is missing"),
        (lambda: TeacherSettings(writer="endpoint", endpoint=ENDPOINT), "take writer=rules"),
        (lambda: DatasetSettings(teachers=REAL), "multi_turn.fault_rate: only shapes world"),
    ],
)
def test_values_out_of_range_are_named(make, words):
    with pytest.raises(ValueError, match=words) as fault:
        make()
    assert "\n" not in str(fault.value)


def test_each_stage_names_what_it_lacks():
    alone = DatasetSettings(conflict=Conflict(variant="self"))
    assert "needs a checkpoint" in alone.find_missing("conflict") and alone.find_missing("multi_turn") is None
    assert DatasetSettings(conflict=Conflict(variant="self", checkpoint="out/nano")).find_missing("conflict") is None
    assert "GenRef archive" in DatasetSettings(teachers=REAL, multi_turn=NO_FAULTS).find_missing("alignment")
    for subset in ("text_to_image", "understand", "edit"):
        assert f"--config.{subset}.count=0" in DatasetSettings(teachers=REAL, multi_turn=NO_FAULTS).find_missing(subset)
    archive = Alignment(archive="genref")
    assert DatasetSettings(teachers=REAL, multi_turn=NO_FAULTS, alignment=archive).find_missing("alignment") is None
    assert "judge=endpoint" in DatasetSettings(alignment=archive).find_missing("alignment")
    assert DatasetSettings(alignment=Alignment(positive=0, archive="genref")).find_missing("alignment") is None


def test_settings_of_speed_may_change_between_runs():
    faster = msgspec.structs.replace(REAL, endpoint=msgspec.structs.replace(ENDPOINT, concurrency=64, cache="d"))
    other = msgspec.structs.replace(REAL, endpoint=msgspec.structs.replace(ENDPOINT, model="n"))
    common = [DatasetSettings(teachers=t, multi_turn=NO_FAULTS).common_to_dict() for t in (REAL, faster, other)]
    assert common[0] == common[1] != common[2]
    assert not common[0].keys() & set(SUBSETS)

"""Trajectories: order and targets of their segments, and pictures that show what the texts say."""

import io
import re

import msgspec
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.interleave.trajectory import Image, Text, check_grammar, parse_refine, segment_kind
from pdgen.scenes.first_world import Scene
from pdgen.scenes.painter import COLOR_RGB, paint, png_bytes
from pdgen.scenes.subsets import Settings, make_trajectories, make_trajectory

SEEDS = st.integers(0, 2**32 - 1)
FAULTY = Settings(fault_rate=1.0)
SOUND = Settings(fault_rate=0.0)


def pixels(segment):
    return np.asarray(PIL.Image.open(io.BytesIO(segment.png))).astype(int)


def has_color(picture, name):
    return bool((picture == COLOR_RGB[name]).all(-1).any())


@given(SEEDS, st.sampled_from([Settings(), FAULTY, SOUND]))
@settings(max_examples=150, deadline=None)
def test_every_trajectory_is_whole_and_ends_in_its_scene(seed, choice):
    record = make_trajectory(np.random.default_rng(seed), "one", choice)
    check_grammar(record)
    scene = msgspec.convert(record.scene, Scene)
    kinds = [segment_kind(s) for s in record.segments]
    assert record.complete
    assert kinds[0] == "prompt"
    assert kinds[-2:] == ["image", "inspect"]
    assert record.segments[-2].png == png_bytes(paint(scene))
    faults = kinds.count("inspect+refine")
    assert 1 <= kinds.count("plan") <= len(scene.objects)
    assert faults == {FAULTY: kinds.count("plan"), SOUND: 0}.get(choice, faults)
    assert kinds.count("image") == kinds.count("plan") + faults
    for item in scene.objects:
        assert f"{item.color} {item.shape}" in record.segments[0].text
    assert make_trajectory(np.random.default_rng(seed), "one", choice) == record


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_the_draft_at_fault_is_context_and_the_rest_is_target(seed):
    record = make_trajectory(np.random.default_rng(seed), "one", FAULTY)
    kinds = [segment_kind(s) for s in record.segments]
    for number, (segment, kind) in enumerate(zip(record.segments, kinds)):
        faulted = kinds[number + 1 : number + 2] == ["inspect+refine"]
        assert segment.target == (kind != "prompt" and not faulted)
        if kind == "image":
            assert segment.stage == ("refine" if kinds[number - 1] == "inspect+refine" else "sketch")


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_what_an_inspection_says_is_true_of_the_pictures(seed):
    """A colour fault: the wrong colour is in the draft, the asked one appears with the refinement."""
    record = make_trajectory(np.random.default_rng(seed), "one", Settings(object_rates=(1.0,), fault_rate=1.0))
    draft, inspection, refined = record.segments[2:5]
    a, b = pixels(draft), pixels(refined)
    assert (a != b).any()
    asked = parse_refine(inspection.text)
    if match := re.fullmatch(r"Make the (\w+) (\w+) (\w+)\.", asked):
        wrong, _, right = match.groups()
        assert has_color(a, wrong) and not has_color(a, right)
        assert has_color(b, right) and not has_color(b, wrong)
    elif match := re.fullmatch(r"Move it to the (.*)\.", asked):
        ground = b[16, 0] if "left" not in match[1] else b[16, 31]
        a_rows, a_columns = np.nonzero((a != ground).any(-1))
        b_rows, b_columns = np.nonzero((b != ground).any(-1))
        assert (a_rows.mean(), a_columns.mean()) != (b_rows.mean(), b_columns.mean())
        for word, side, middle in (("left", b_columns, 1), ("right", b_columns, -1), ("top", b_rows, 1)):
            if word in match[1]:
                assert middle * (15.5 - side.mean()) > 4
    else:
        assert re.fullmatch(r"Make the \w+ \w+ an? \w+\.", asked)


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_inspections_name_what_is_still_missing(seed):
    record = make_trajectory(np.random.default_rng(seed), "one", Settings(object_rates=(0, 0, 0.5, 0.5)))
    looks = [f"{o['color']} {o['shape']}" for o in record.scene["objects"]]
    planned = ""
    for segment in record.segments[1:]:
        if isinstance(segment, Text) and segment.stage == "plan":
            planned += segment.text
        elif isinstance(segment, Text) and parse_refine(segment.text) is None:
            missing = [words for words in looks if words not in planned]
            assert ("still to come" in segment.text) == bool(missing)
            assert all(words in segment.text for words in missing)


def test_all_stages_and_lengths_occur():
    records = list(make_trajectories(Settings(count=200)))
    kinds = [[segment_kind(s) for s in r.segments] for r in records]
    assert {k for ks in kinds for k in ks} == {"prompt", "plan", "image", "inspect", "inspect+refine"}
    assert {ks.count("plan") for ks in kinds} == {1, 2, 3}
    assert len({r.id for r in records}) == 200
    stages = {s.stage for r in records for s in r.segments if isinstance(s, Image)}
    assert stages == {"sketch", "refine"}


def test_a_record_depends_on_the_seed_and_its_number_alone():
    many = list(make_trajectories(Settings(seed=5, count=20)))
    assert list(make_trajectories(Settings(seed=5, count=7))) == many[:7]
    other = list(make_trajectories(Settings(seed=6, count=20)))
    assert [r.segments for r in other] != [r.segments for r in many]


def test_picture_size_and_object_rates_are_obeyed():
    (record,) = make_trajectories(Settings(count=1, image_size=48, object_rates=(0, 0, 0, 1)))
    assert len(record.scene["objects"]) == 4
    assert {pixels(s).shape for s in record.segments if isinstance(s, Image)} == {(48, 48, 3)}
    assert all(s.text.isascii() for s in record.segments if isinstance(s, Text))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": -1}, "seed -1"),
        ({"count": 0}, "count 0"),
        ({"image_size": 8}, "image_size 8"),
        ({"object_rates": (0.5, 0.2)}, r"object_rates \(0.5, 0.2\)"),
        ({"object_rates": ()}, "object_rates"),
        ({"object_rates": (0, 0, 0, 0, 1)}, "object_rates"),
        ({"fault_rate": 1.5}, "fault_rate 1.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        Settings(**change)

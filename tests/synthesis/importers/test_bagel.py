"""BAGEL's parquet files: pairs and edits, and rows that are neither."""

import json

import pytest

from pdgen.synthesis.importers import bagel
from pdgen.synthesis.importers.outcome import ImporterError

from .made import hub, picture, seen, split, write_parquet

JPEG = picture("red", "JPEG")


def pair(captions, image=JPEG):
    return {"image": image, "captions": captions}


def edit(images, instructions):
    return {"image_list": images, "instruction_list": instructions}


def test_a_pair_is_prompt_plan_and_image(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [pair(json.dumps({"0": "a red thing"}))])
    (record,), skipped = split(bagel.read_text_to_image(path))
    assert skipped == []
    assert (record.id, record.source, record.complete) == ("bagel_t2i/a.parquet/0", "bagel_t2i", True)
    assert seen(record) == [
        ("prompt", "a red thing", False),
        ("plan", "<ins>Draw the whole scene.</ins> <des>a red thing</des>", False),
        ("sketch", "red", True),
    ]


def test_the_longest_of_several_captions_is_the_plan(tmp_path):
    captions = {"0": "a red thing, seen from above", "1": "red", "2": "a red thing"}
    path = write_parquet(tmp_path / "a.parquet", [pair(json.dumps(captions))])
    (record,), _ = split(bagel.read_text_to_image(path))
    assert seen(record)[:2] == [
        ("prompt", "red", False),
        ("plan", "<ins>Draw the whole scene.</ins> <des>a red thing, seen from above</des>", True),
    ]


def test_malformed_pairs_are_named_and_the_others_kept(tmp_path):
    good = json.dumps({"0": "red"})
    rows = [
        pair(good),
        pair("a red thing"),
        pair("[]"),
        pair("{}"),
        pair(json.dumps({"0": " "})),
        pair(json.dumps({"0": "a <des> b"})),
        pair(good, None),
        pair(good, JPEG[:100]),
        pair(None),
        pair(good),
    ]
    path = write_parquet(tmp_path / "a.parquet", rows)
    records, skipped = split(bagel.read_text_to_image(path))
    assert [r.id for r in records] == ["bagel_t2i/a.parquet/0", "bagel_t2i/a.parquet/9"]
    assert [(s.where, s.reason) for s in skipped] == [
        (f"{path}: row 1", "captions are no JSON object"),
        (f"{path}: row 2", "captions are no JSON object"),
        (f"{path}: row 3", "missing text"),
        (f"{path}: row 4", "missing text"),
        (f"{path}: row 5", "breaks the sequence grammar"),
        (f"{path}: row 6", "missing picture"),
        (f"{path}: row 7", "unreadable picture"),
        (f"{path}: row 8", "captions are no JSON object"),
    ]
    assert str(skipped[6]).startswith(f"{path}: row 7: unreadable picture: image: ")


def test_an_edit_in_two_turns(tmp_path):
    images = [picture(c, "JPEG") for c in ("red", "lime", "blue")]
    row = edit(images, [["make it green", "turn it green"], ["now make it blue"]])
    path = write_parquet(tmp_path / "a.parquet", [row])
    (record,), skipped = split(bagel.read_editing(path))
    assert skipped == []
    assert (record.source, record.complete) == ("bagel_edit", True)
    assert seen(record) == [
        ("given", "red", False),
        ("prompt", "make it green now make it blue", False),
        ("plan", "<ins>make it green</ins> <des>The picture so far, after this: make it green</des>", False),
        ("sketch", "lime", True),
        ("plan", "<ins>now make it blue</ins> <des>The picture so far, after this: now make it blue</des>", False),
        ("sketch", "blue", True),
    ]


def test_malformed_edits_are_named(tmp_path):
    one = picture("red")
    rows = [
        edit([one, one], [["a"]]),
        edit([one], []),
        edit([one, one], [["a"], ["b"]]),
        edit([one, one], [[]]),
        edit(None, None),
        edit([one, None], [["a"]]),
    ]
    path = write_parquet(tmp_path / "a.parquet", rows)
    records, skipped = split(bagel.read_editing(path))
    assert len(records) == 1
    assert [(s.where[-5:], s.reason) for s in skipped] == [
        ("row 1", "missing picture"),
        ("row 2", "images and instructions differ in number"),
        ("row 3", "missing text"),
        ("row 4", "missing picture"),
        ("row 5", "missing picture"),
    ]


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path):
    for name in ("b/0.parquet", "a/1.parquet", "a/0.parquet"):
        row = pair(json.dumps({"0": name}), hub(JPEG))
        write_parquet(tmp_path / name, [row] * 20)  # more rows than are read at once
    records, _ = split(bagel.read_text_to_image(tmp_path))
    assert [r.segments[0].text for r in records[::20]] == ["a/0.parquet", "a/1.parquet", "b/0.parquet"]
    assert [r.id for r in records[:20]] == [f"bagel_t2i/a/0.parquet/{n}" for n in range(20)]
    assert len({r.id for r in records}) == 60


def test_files_that_are_not_of_the_format_are_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [edit([JPEG], [["a"]])])
    with pytest.raises(ImporterError, match=r"a.parquet: has columns image_list, .*; expected image, captions"):
        list(bagel.read_text_to_image(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ImporterError, match=r"a.parquet: not a whole parquet file"):
        list(bagel.read_editing(path))
    with pytest.raises(ImporterError, match="none: no such file or folder"):
        list(bagel.read_editing(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImporterError, match=r"empty: holds no \*.parquet file"):
        list(bagel.read_editing(tmp_path / "empty"))

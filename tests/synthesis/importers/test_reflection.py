"""UniCoT-Self-Reflection and GenRef: faulty images are context, corrections are learned."""

import pytest

from pdgen.synthesis.importers import reflection
from pdgen.synthesis.importers.outcome import ImporterError

from .made import picture, seen, split, write_parquet, write_tar

RED, LIME, BLUE = (picture(c, "JPEG") for c in ("red", "lime", "blue"))


def unicot(rounds, **columns):
    """Return a row of rounds (input, eval, summary, edit, output)."""
    names = ("input_image", "eval", "eval_summary", "edit", "output_image")
    return {"data_id": "7", "prompt": "a blue thing"} | dict(zip(names, map(list, zip(*rounds)))) | columns


MENDED = [
    (RED, "It is red.", "Wrong colour.", "Make it green.", LIME),
    (LIME, "It is green.", None, "Make it blue.", BLUE),
    (BLUE, "It is blue.", "All is well.", None, None),
]


def test_unicot_rounds_are_inspections_and_refined_images(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [unicot(MENDED), unicot(MENDED[2:])])
    (record, at_once), skipped = split(reflection.read_unicot(path))
    assert skipped == []
    assert (record.id, record.source, record.complete) == ("unicot/a.parquet/0", "unicot", True)
    start = [
        ("prompt", "a blue thing", False),
        ("plan", "<ins>Draw the whole scene.</ins> <des>a blue thing</des>", False),
    ]
    assert seen(record) == [
        *start,
        ("sketch", "red", False),
        ("inspect", "It is red. Wrong colour. <refine>Make it green.</refine>", True),
        ("refine", "lime", False),
        ("inspect", "It is green. <refine>Make it blue.</refine>", True),
        ("refine", "blue", True),
        ("inspect", "It is blue. All is well.", True),
    ]
    assert seen(at_once) == [*start, ("sketch", "blue", True), ("inspect", "It is blue. All is well.", True)]


def test_malformed_unicot_rows_are_named(tmp_path):
    first, second, last = MENDED
    rows = [
        unicot(MENDED),
        unicot(MENDED, edit=["Make it green."]),
        unicot([]) | {name: [] for name in ("input_image", "output_image", "edit", "eval", "eval_summary")},
        unicot([first, last, second]),
        unicot([first, (*second[:3], None, BLUE), last]),
        unicot([first, (*second[:4], None), last]),
        unicot([(RED, " ", None, None, None)]),
        unicot(MENDED, prompt=None),
        unicot([(RED[:90], *last[1:])]),
    ]
    path = write_parquet(tmp_path / "a.parquet", rows)
    records, skipped = split(reflection.read_unicot(path))
    assert len(records) == 1
    assert [(s.where, s.reason) for s in skipped] == [
        (f"{path}: row 1", "rounds differ in number"),
        (f"{path}: row 2", "rounds differ in number"),
        (f"{path}: row 3", "round without edit or result"),
        (f"{path}: row 4", "round without edit or result"),
        (f"{path}: row 5", "round without edit or result"),
        (f"{path}: row 6", "missing text"),
        (f"{path}: row 7", "missing text"),
        (f"{path}: row 8", "unreadable picture"),
    ]


def genref(**members):
    texts = {"reflection_txt": b"1. Make it blue.\n", "prompt_txt": b"a blue thing\n", "subset_txt": b"rule"}
    held = {"good_image_jpg": BLUE, "bad_image_jpg": RED} | texts | members
    return {name[::-1].replace("_", ".", 1)[::-1]: data for name, data in held.items() if data is not None}


def test_genref_samples_are_cuts_with_a_correction(tmp_path):
    path = write_tar(tmp_path / "genref_0.tar", {"000": genref(), "dir/001": genref(subset_txt=None)})
    records, skipped = split(reflection.read_genref(path))
    assert skipped == []
    for record in records:
        assert (record.source, record.complete) == ("genref", False)
        assert seen(record) == [
            ("prompt", "a blue thing", False),
            ("plan", "<ins>Draw the whole scene.</ins> <des>a blue thing</des>", False),
            ("sketch", "red", False),
            ("inspect", "<refine>1. Make it blue.</refine>", True),
            ("refine", "blue", True),
        ]
    assert [r.id for r in records] == ["genref/genref_0.tar/000", "genref/genref_0.tar/dir/001"]
    assert [r.scene for r in records] == [{"subset": "rule"}, None]


def test_malformed_genref_samples_are_named(tmp_path):
    samples = {
        "0": genref(),
        "1": genref(bad_image_jpg=None),
        "2": genref(reflection_txt=b" \n"),
        "3": genref(prompt_txt=None),
        "4": genref(prompt_txt=b"\xff\xfe"),
        "5": genref(good_image_jpg=BLUE[:80]),
        "6": genref(reflection_txt=b"see <ins>"),
        "7": genref(),
    }
    path = write_tar(tmp_path / "a.tar", samples)
    records, skipped = split(reflection.read_genref(path))
    assert [r.id[-1] for r in records] == ["0", "7"]
    assert [(s.where, s.reason) for s in skipped] == [
        (f"{path}: sample 1", "missing picture"),
        (f"{path}: sample 2", "missing text"),
        (f"{path}: sample 3", "missing text"),
        (f"{path}: sample 4", "missing text"),
        (f"{path}: sample 5", "unreadable picture"),
        (f"{path}: sample 6", "breaks the sequence grammar"),
    ]


@pytest.mark.parametrize("kept", [512, 700, 1024, 5000, -512, -10_240, -10])
def test_truncated_archives_are_named(tmp_path, kept):
    path = write_tar(tmp_path / "a.tar", {str(n): genref() for n in range(9)})
    data = path.read_bytes()
    if kept == -512:  # archives end in zeros, and some of them may be missing
        path.write_bytes(data[:kept])
        assert len(split(reflection.read_genref(path))[0]) == 9
        return
    path.write_bytes(data[:kept])
    with pytest.raises(ImporterError, match=r"a.tar: not a whole tar archive"):
        list(reflection.read_genref(path))

"""The page of a data set: counts, histograms, and the scripts with its samples."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import PIL.Image
import pytest

from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.synthesis.page import (
    THUMBNAIL,
    DatasetSummary,
    compute_mean,
    make_table_row,
    make_thumbnail,
    merge_summaries,
    render_chunk,
    render_dataset,
    render_index,
    summarise_records,
)

FACTS = {
    "rejected": {"multi_turn": {"no layout found": 1234}, "conflict": {}},
    "leaks": {"exact": 0, "normalised": 2, "records": ["a", "b"]},
    "versions": {"pdgen": "0.1.0"},
}


def png(width=4, height=4, seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(number, task="position", positive=None, operations=("add",), prompt="a red circle"):
    segments = [Text(stage="prompt", text=prompt, target=False)]
    for _ in operations:
        segments.append(Text(stage="plan", text="<ins>Draw <b>.</ins> <des>A thing.</des>", target=True))
        segments.append(Image(stage="sketch", png=png(), target=False))
    segments.append(Text(stage="inspect", text="Wrong. <refine>Turn it.</refine>", target=True))
    segments.append(Image(stage="refine", png=png(), target=True))
    verdict = {"segment": 2, "accept": False, "analysis": "It is red.", "correction": "Paint."}
    steps = [{"operation": o} for o in operations]
    scene = {"task": task, "steps": steps, "note": "wrong color", "verdicts": [verdict]}
    if positive is not None:
        scene["positive"] = positive
    return Record(id=f"r{number}", source="x", complete=False, segments=segments, scene=scene)


RECORDS = [
    record(0),
    record(1, operations=("add", "swap"), positive=True),
    record(2, task="colors", positive=False, prompt="x" * 41),
]


def called(script, name):
    """Return the arguments of a script that is one call."""
    arguments = re.fullmatch(rf"{name}\((.*)\);\n", script, re.DOTALL)[1]
    return json.loads(f"[{arguments}]")


def test_counts_by_hand():
    summary = summarise_records(RECORDS)
    assert summary.images == {2: 2, 3: 1}
    assert summary.prompt_lengths == {12: 2, 41: 1}
    assert summary.operations == {"add": 3, "swap": 1}
    assert summary.tasks == {"colors": 1, "position": 2}
    assert summary.verdicts == {"": 1, "negative": 1, "positive": 1}
    assert summary.faults == 3
    assert make_table_row(summary) == (3, 1, 1, pytest.approx(65 / 3), pytest.approx(7 / 3), 3)
    assert compute_mean({}) == 0


def test_parts_add_up_to_the_whole():
    assert merge_summaries(
        [summarise_records(RECORDS[:1]), DatasetSummary(), summarise_records(RECORDS[1:])]
    ) == summarise_records(RECORDS)


def test_a_record_of_an_unknown_source_is_counted():
    bare = Record(id="x", source="x", complete=True, segments=RECORDS[0].segments[:3])
    summary = summarise_records([bare])
    assert (summary.tasks, summary.operations, summary.verdicts) == ({"": 1}, {}, {"": 1})


def test_a_chunk_holds_the_shown_parts_of_its_samples():
    name, samples = called(render_chunk("multi_turn-00001", RECORDS), "pdgen_chunk")
    assert name == "multi_turn-00001"
    assert [s["verdict"] for s in samples] == ["", "positive", "negative"]
    second = samples[1]
    told = [second[key] for key in ("id", "task", "complete", "note")]
    assert told == ["r1", "position", False, "wrong color"]
    assert second["operations"] == ["add", "swap"]
    stages = [(s["stage"], s["target"]) for s in second["segments"]]
    assert stages[:3] == [("prompt", False), ("plan", True), ("sketch", False)]
    assert second["segments"][1]["spans"] == [["instruction", "Draw <b>."], ["description", "A thing."]]
    assert second["segments"][-2]["spans"] == [["", "Wrong."], ["refine", "Turn it."]]
    judged = [s.get("judged") for s in second["segments"]]
    assert judged[2] == {"accept": False, "analysis": "It is red."} and judged.count(None) == len(judged) - 1
    head, data = second["segments"][2]["source"].split(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == png()


def test_the_index_lists_every_sample_by_number_and_bit():
    rows = summarise_records(RECORDS).rows
    (index,) = called(render_index([("a-00000", "a", rows[:2]), ("b-00000", "b", rows[2:])]), "pdgen_index")
    assert index["shards"] == [["a-00000", "a", 2], ["b-00000", "b", 1]]
    assert [index["tasks"][n] for n in index["task"]] == ["position", "position", "colors"]
    named = [{o for n, o in enumerate(index["operations"]) if bits >> n & 1} for bits in index["bits"]]
    assert named == [{"add"}, {"add", "swap"}, {"add"}]
    assert [index["verdicts"][n] for n in index["verdict"]] == ["", "positive", "negative"]


def test_large_pictures_become_thumbnails():
    assert make_thumbnail(png(THUMBNAIL, 9)) == ("png", png(THUMBNAIL, 9), (THUMBNAIL, 9))
    kind, data, size = make_thumbnail(png(512, 256))
    small = PIL.Image.open(io.BytesIO(data))
    assert (kind, size) == ("webp", (512, 256))
    assert (small.format, small.size) == ("WEBP", (THUMBNAIL, THUMBNAIL // 2))


class _Cells(html.parser.HTMLParser):
    """A parser of the text of every table cell, and the widths of bars."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.bars, self.scripts, self._open = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in ("td", "th"):
            self._open = True
            self.cells.append("")
        if tag == "rect" and "x" in given:
            self.bars.append((given["class"], float(given["width"])))
        if tag == "script" and "src" in given:
            self.scripts.append(given["src"])

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.cells[-1] += data.strip()


def test_the_page_compares_with_the_paper():
    subsets = {"multi_turn": summarise_records(RECORDS), "other": summarise_records(RECORDS[:1])}
    page = render_dataset("my <set>", subsets, FACTS, {"a": {"b": 1}})
    assert "my &lt;set&gt;" in page and "http://" not in page and "https://" not in page
    shown = _Cells(page)
    start = shown.cells.index("multi_turn")
    assert shown.cells[start : start + 7] == ["multi_turn", "3", "1", "1", "21.7", "2.33", "3"]
    assert shown.cells[start + 7 : start + 14] == ["paper", "32,012", "–", "–", "152.8", "3.51", "5"]  # noqa: RUF001
    assert shown.cells[start + 14 : start + 16] == ["other", "1"]
    for row in (["multi_turn: no layout found", "1,234"], ["conflict", "none"], ["records", "a, b"], ["a", "b 1"]):
        assert shown.cells[shown.cells.index(row[0], start + 20) + 1] == row[1], row
    assert shown.scripts == ["report/index.js"]
    # Images: 2 of 2 pictures of one set and 1 of the other make the longest bar, of 180 units.
    assert shown.bars[:4] == [("c0", 120.0), ("c1", 60.0), ("c0", 60.0), ("c1", 0.0)]


def test_the_page_calls_what_its_script_defines():
    page = render_dataset("x", {"one": summarise_records(RECORDS)}, FACTS, {})
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert "function pdgen_index(" in script and "function pdgen_chunk(" in script
    used = set(re.findall(r"\b(?:sample|segment)\.(\w+)", script)) - {"forEach"}
    sample = called(render_chunk("a", RECORDS), "pdgen_chunk")[1][0]
    assert used <= {*sample, *(key for s in sample["segments"] for key in s)}
    ids = set(re.findall(r'getElementById\("(\w+)"\)', script))
    assert all(f'id="{name}"' in page for name in ids)

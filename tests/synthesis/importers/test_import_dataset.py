"""Whole imports: the written data set holds what was read, and skipped samples are reported."""

import pathlib
import subprocess
import sys

import pytest

from pdgen.data.records import RecordSource, find_broken_records
from pdgen.files import FolderError
from pdgen.synthesis.importers import FORMATS, ImporterError, import_dataset
from pdgen.synthesis.importers.outcome import NAMED
from tests.support.own_lines import own_lines

from .made import hub, picture, split, write_parquet, write_tar
from .test_reasoning import TRACE, thinkmorph, zebra
from .test_reflection import MENDED, genref, unicot

ROOT = pathlib.Path(__file__).parents[3]


def good(name, folder):
    """Write a source of five samples of the format."""
    rows = {
        "bagel_t2i": {"image": hub(picture("red")), "captions": '{"0": "red"}'},
        "bagel_edit": {"image_list": [picture("red"), picture("lime")], "instruction_list": [["green"]]},
        "zebra_cot": zebra(TRACE),
        "thinkmorph": thinkmorph(),
        "unicot": unicot(MENDED),
    }
    folder.mkdir()
    if name in rows:
        return write_parquet(folder / "a.parquet", [rows[name]] * 5)
    if name == "genref":
        return write_tar(folder / "a.tar", {str(n): genref() for n in range(5)})
    (folder / "0.png").write_bytes(picture("red"))
    line = '{"prompt": "red", "steps": [{"instruction": "Draw.", "description": "Red.", "image": "0.png"}]}\n'
    (folder / "a.jsonl").write_text(line * 5)
    return folder / "a.jsonl"


# "preferences" makes pairs of folders: see test_preferences.
@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"preferences"}))
def test_every_format_round_trips(tmp_path, name):
    source = good(name, tmp_path / "source")
    expected, _ = split(FORMATS[name](source))
    dataset, tally = import_dataset(name, source.parent, tmp_path / "data", records_per_file=2)
    read = RecordSource(tmp_path / "data")
    assert [read[n] for n in range(5)] == expected
    assert read.subsets == {name: [range(5)]}
    assert [file.name for file in dataset.files] == [f"{name}-{n:05d}.array_record" for n in range(3)]
    assert dataset.facts == {"imported": 5, "skipped": {}} and tally.skipped == {}
    assert list(find_broken_records(tmp_path / "data")) == []


def test_skipped_samples_are_counted_and_the_first_named(tmp_path):
    bad = [{"image": b"", "captions": '{"0": "red"}'}] * (NAMED + 5) + [{"image": b"", "captions": "x"}]
    source = write_parquet(tmp_path / "a.parquet", [*bad, {"image": picture("red"), "captions": '{"0": "red"}'}])
    dataset, tally = import_dataset("bagel_t2i", source, tmp_path / "data")
    assert tally.skipped == {"missing picture": NAMED + 5, "captions are no JSON object": 1}
    told = dataset.facts["skipped"]
    assert {reason: held["samples"] for reason, held in told.items()} == tally.skipped
    assert len(told["missing picture"]["first"]) == NAMED
    assert told["missing picture"]["first"][3].startswith(f"{source}: row 3: missing picture: ")
    assert RecordSource(tmp_path / "data").dataset.facts == dataset.facts


def test_nothing_is_written_where_nothing_can_be_imported(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", [{"image": b"", "captions": "{}"}])
    with pytest.raises(ImporterError, match=r"a.parquet: no sample became a record; skipped: .*'missing text': 1"):
        import_dataset("bagel_t2i", source, tmp_path / "data")
    assert list(tmp_path.iterdir()) == [source]
    good("folder", tmp_path / "source")
    import_dataset("folder", tmp_path / "source", tmp_path / "data")
    with pytest.raises(FolderError, match="data: exists"):
        import_dataset("folder", tmp_path / "source", tmp_path / "data")
    import_dataset("folder", tmp_path / "source", tmp_path / "data", overwrite=True)


@pytest.mark.slow
def test_the_command_line(tmp_path):
    source = good("folder", tmp_path / "source")
    source.write_text(source.read_text() + '{"prompt": "x"}\n')

    def run(*arguments):
        command = [sys.executable, str(ROOT / "launch" / "build_data.py"), "import", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    flags = ("--format=folder", f"--source={source}", f"--output={tmp_path / 'data'}")
    done = run(*flags)
    assert done.returncode == 0, done.stderr
    told, total = done.stdout.splitlines()
    assert told.startswith(f"skipped 1: {source}: line 6: malformed line: ")
    assert total == f"{tmp_path / 'data'}: 5 records in 1 files, 1 skipped"
    for wrong, words in ((flags, "exists; choose another"), (("--format=x", *flags[1:]), "format")):
        done = run(*wrong)
        said = own_lines(done.stderr, "build_data")
        assert (done.returncode, done.stdout, said.count("\n")) == (2, "", 1) and words in said

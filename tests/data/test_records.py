"""Data sets on disk: records are read back as written, and every broken file or record is named."""

import copy
import hashlib
import json

import grain
import msgspec
import pytest

from pdgen.data import records
from pdgen.data.records import (
    Dataset,
    Origin,
    RecordError,
    RecordSource,
    read_dataset,
    write_dataset,
    write_file,
    write_files,
    write_index,
)
from pdgen.files import FolderError
from pdgen.sequence.trajectory import Image

from . import handmade

ORIGIN = Origin(seed=3, tokenizer="ab12", autoencoder="cd34", settings={"count": 25})


@pytest.fixture(scope="module")
def made():
    return handmade.records(25)


@pytest.fixture
def folder(made, tmp_path):
    write_dataset(tmp_path / "data", made, ORIGIN, records_per_file=10)
    return tmp_path / "data"


def files_of(folder):
    return sorted(p.name for p in folder.iterdir())


def run_check(capsys, *arguments):
    """Run the check; return exit status, standard output and standard error."""
    try:
        records.main(["records", *map(str, arguments)])
        status = 0
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_records_are_read_in_any_order(made, folder):
    source = RecordSource(folder)
    assert len(source) == 25
    assert [source[i] for i in (24, 0, 10, 9, 19, 20)] == [made[i] for i in (24, 0, 10, 9, 19, 20)]
    assert [source[i] for i in range(25)] == made
    for outside in (25, -1):
        with pytest.raises(IndexError, match=f"record {outside} of 25"):
            source[outside]


def test_the_index_counts_files_and_names_the_origin(folder):
    assert files_of(folder) == ["dataset.json", *(f"part-{i:05d}.array_record" for i in range(3))]
    dataset = read_dataset(folder)
    assert [f.records for f in dataset.files] == [10, 10, 5]
    assert dataset.origin == ORIGIN
    assert dataset.records == 25


def test_equal_records_give_equal_files(made, folder, tmp_path):
    write_dataset(tmp_path / "again", iter(made), ORIGIN, records_per_file=10)
    for name in files_of(folder):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_grain_reads_the_source_and_copies_of_it(made, folder):
    source = RecordSource(folder)
    first = source[0]
    shuffled = [r.id for r in grain.MapDataset.source(source).shuffle(seed=1)]
    assert sorted(shuffled) == sorted(r.id for r in made)
    assert shuffled != [r.id for r in made]
    # Worker processes receive a copy made through the same protocol, with no open files.
    assert copy.deepcopy(source)[0] == first == made[0]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named_on_opening(folder, kept):
    path = folder / "part-00001.array_record"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(RecordError, match=r"part-00001.array_record: (holds 0 records, .* counts 10|does not open)"):
        RecordSource(folder)


def test_exchanged_and_missing_files_are_named(folder):
    last = folder / "part-00002.array_record"
    last.write_bytes((folder / "part-00000.array_record").read_bytes())
    with pytest.raises(RecordError, match=r"part-00002.*holds 10 records, dataset.json counts 5"):
        RecordSource(folder)
    last.unlink()
    with pytest.raises(RecordError, match=r"part-00002.array_record: missing"):
        RecordSource(folder)


def flip_record(folder, made, number):
    """Flip a byte inside the stored form of record ``number`` of the first file."""
    path = folder / "part-00000.array_record"
    data = bytearray(path.read_bytes())
    # A compressed record keeps its PNGs nearly verbatim, so an image's bytes locate it.
    png = next(s.png for s in made[number].segments if isinstance(s, Image))
    data[data.index(png[60:90])] ^= 0xFF
    path.write_bytes(bytes(data))


def test_check_names_every_broken_record(made, folder, capsys):
    status, out, err = run_check(capsys, "check", folder)
    assert (status, out) == (0, f"{folder}: 25 records in 3 files, 0 faults\n")
    assert "checking" in err
    flip_record(folder, made, 4)
    flip_record(folder, made, 7)
    (folder / "part-00002.array_record").unlink()
    status, out, _ = run_check(capsys, "check", folder)
    lines = out.splitlines()
    assert status == 2
    assert "part-00000.array_record: is not the file that was written, its SHA-256 differs" in lines[0]
    assert "part-00000.array_record: record 4: " in lines[1]
    assert "part-00000.array_record: record 7: " in lines[2]
    assert "part-00002.array_record: missing" in lines[3]
    assert lines[4:] == [f"{folder}: 25 records in 3 files, 4 faults"]


def test_check_finds_a_file_replaced_by_another_of_the_same_length(made, folder, capsys):
    (folder / "part-00001.array_record").write_bytes((folder / "part-00000.array_record").read_bytes())
    status, out, _ = run_check(capsys, "check", folder)
    assert status == 2
    assert "part-00001.array_record: is not the file that was written" in out
    assert out.endswith("1 faults\n")


def test_subsets_are_ranges_of_record_numbers(made, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    parts = [("", made[:3]), ("b", made[3:5]), ("a", made[5:9]), ("a", made[9:10]), ("b", made[10:14])]
    files = [write_file(folder / f"{n}.array_record", part, subset) for n, (subset, part) in enumerate(parts)]
    write_index(folder, Dataset(files=files, origin=ORIGIN, facts={"rejected": {"blurred": 2}}))
    source = RecordSource(folder)
    assert source.subsets == {"": [range(3)], "b": [range(3, 5), range(10, 14)], "a": [range(5, 10)]}
    for (subset, part), file in zip(parts, source.dataset.files, strict=True):
        assert (file.subset, file.records) == (subset, len(part))
        assert file.sha256 == hashlib.sha256((folder / file.name).read_bytes()).hexdigest()
    assert source.dataset.facts == {"rejected": {"blurred": 2}}
    assert files_of(folder) == sorted([*(f"{n}.array_record" for n in range(5)), "dataset.json"])


def test_files_of_a_subset_have_its_name_and_are_never_empty(made, tmp_path):
    files = write_files(tmp_path, made[:5], subset="conflict", records_per_file=2)
    assert [f.name for f in files] == [f"conflict-{n:05d}.array_record" for n in range(3)]
    assert [f.records for f in files] == [2, 2, 1]
    assert write_files(tmp_path, []) == []
    with pytest.raises(RecordError, match=r"none.array_record: no records to write"):
        write_file(tmp_path / "none.array_record", [])
    assert files_of(tmp_path) == [f.name for f in files]


def test_an_index_without_subsets_digests_and_facts_still_opens(made, folder, capsys):
    path = folder / "dataset.json"
    index = json.loads(path.read_text())
    del index["facts"]
    for file in index["files"]:
        del file["subset"], file["sha256"]
    path.write_text(json.dumps(index))
    source = RecordSource(folder)
    assert source[24] == made[24] and source.subsets == {"": [range(25)]}
    assert run_check(capsys, "check", folder)[0] == 0


def test_check_decodes_the_pictures(made, tmp_path, capsys):
    record = made[0]
    image = record.segments[2]
    broken = msgspec.structs.replace(image, png=image.png[:60])
    segments = [broken if s is image else s for s in record.segments]
    write_dataset(tmp_path / "data", [msgspec.structs.replace(record, segments=segments)], ORIGIN)
    status, out, _ = run_check(capsys, "check", tmp_path / "data")
    assert status == 2
    assert "record 0: segment 2: picture: " in out


def test_check_refuses_bad_arguments_in_one_line(tmp_path, capsys):
    for arguments in ((), ("check",), ("repair", tmp_path), ("check", tmp_path / "none")):
        status, out, err = run_check(capsys, *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("records: ") and err.count("\n") == 1


def test_an_unreadable_record_is_named_when_it_is_read(made, folder):
    flip_record(folder, made, 4)
    source = RecordSource(folder)
    with pytest.raises(RecordError, match=r"part-00000.array_record: record 4: "):
        source[4]
    assert source[5] == made[5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segments": []}, "begins with nothing"),
        ({"id": 7}, "Expected `str`, got `int`"),
        ({"scene": {"size": object()}}, "object"),
    ],
)
def test_writing_a_broken_record_leaves_nothing(made, tmp_path, change, words):
    broken = msgspec.structs.replace(made[1], **change)
    with pytest.raises(RecordError, match=f"part-00001.array_record: record 1: .*{words}"):
        write_dataset(tmp_path / "data", [*made[:11], broken], ORIGIN, records_per_file=10)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RecordError, match=f"one.array_record: record 1: .*{words}"):
        write_file(tmp_path / "one.array_record", [made[0], broken])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(made, tmp_path):
    def interrupted():
        yield from made[:12]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "data", interrupted(), ORIGIN, records_per_file=10)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RecordError, match="no records to write"):
        write_dataset(tmp_path / "data", [], ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_on_request(made, folder, tmp_path):
    with pytest.raises(FolderError, match="data: exists; choose another target or add --overwrite"):
        write_dataset(folder, made[:3], ORIGIN)
    assert len(RecordSource(folder)) == 25
    write_dataset(folder, made[:3], ORIGIN, overwrite=True)
    assert len(RecordSource(folder)) == 3
    assert files_of(folder) == ["dataset.json", "part-00000.array_record"]
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("keep")
    with pytest.raises(FolderError, match="letters: exists and is no data set, so --overwrite does not"):
        write_dataset(tmp_path / "letters", made[:3], ORIGIN, overwrite=True)
    assert files_of(tmp_path / "letters") == ["mine.txt"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"version": 1', '"version": 99', "version 99 is not 1; build the data again"),
        ('"seed": 3', '"seed": "three"', "origin.seed"),
        ('"records": 10', '"records": 0', "holds 0 records"),
        ("part-00000.array_record", "../part.array_record", "must be a plain name"),
        ("part-00001", "part-00000", "'part-00000.array_record' is listed twice"),
        ("{", "", "Expected `object`"),
    ],
)
def test_a_malformed_index_is_named(folder, old, new, words):
    path = folder / "dataset.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RecordError, match=rf"dataset.json: .*({words})"):
        RecordSource(folder)

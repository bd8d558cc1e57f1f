"""Data sets: dataset.json, the files of records, and records whose file is whole."""

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from msgspec import structs

from pdgen.data.records import INDEX, SUFFIX, Origin, RecordSource, find_broken_records, write_dataset
from pdgen.sequence.trajectory import decode_record, encode_record
from tests.data import handmade
from tests.robustness.calls import call, find_fault, survey
from tests.robustness.mutations import mutate

pytestmark = pytest.mark.slow  # hundreds of damaged copies


@pytest.fixture
def folder(tmp_path):
    origin = Origin(seed=3, tokenizer="ab12", settings={"count": 3})
    write_dataset(tmp_path / "data", handmade.records(3), origin, records_per_file=2)
    return tmp_path / "data"


def read_all(folder):
    source = RecordSource(folder)
    assert source.subsets
    for number in range(len(source)):
        source[number]


def test_the_index(folder, capfd):
    survey(folder / INDEX, mutate((folder / INDEX).read_bytes(), 9), lambda: read_all(folder), capfd, ("part-",))


def test_files_of_records(folder, capfd):
    file = folder / f"part-00000{SUFFIX}"
    survey(file, mutate(file.read_bytes(), 10), lambda: read_all(folder), capfd)


def test_checking_files_of_records(folder, capfd):
    """A check reports damage and exits with success."""
    file = folder / f"part-00000{SUFFIX}"
    survey(file, mutate(file.read_bytes(), 12, 60), lambda: list(find_broken_records(folder)), capfd)


def test_records_in_files_with_valid_checksums(folder, capfd):
    """Another writer may have made such a file."""
    file, record = folder / f"part-00001{SUFFIX}", encode_record(handmade.records(3)[2])

    def write(data):
        writer = ArrayRecordWriter(str(file), "group_size:1")
        writer.write(data)
        writer.close()
        return file.read_bytes()

    whole = file.read_bytes()
    mutated = [(name, write(data)) for name, data in mutate(record, 11) if data]
    file.write_bytes(whole)
    survey(file, mutated, lambda: read_all(folder), capfd)


def test_a_scene_without_an_end(tmp_path, capfd):
    record = encode_record(structs.replace(handmade.record(0), scene={"dots": 0}))
    assert record.count(b"\xa4dots\x00") == 1
    deep = record.replace(b"\xa4dots\x00", b"\xa4dots" + b"\x91" * 10**5 + b"\x00")
    outcome = call(lambda: decode_record(deep, str(tmp_path / "part: record 0")), capfd)
    assert find_fault(outcome, ["part: record 0: values are nested too deeply"]) == ""
    assert outcome.status == 2

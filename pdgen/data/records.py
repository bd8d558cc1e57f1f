"""Data sets of trajectories on disk: a folder of ArrayRecord files and the ``dataset.json`` that counts them.

    python -m pdgen.data.records check DIR        names every broken record

A truncated ArrayRecord opens as an empty one, so the count of every file stands in ``dataset.json`` and is
checked whenever the folder is opened. Files and folders are written under a temporary name and renamed.
"""

import bisect
import io
import itertools
import pathlib
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsIndex

import msgspec
import PIL.Image
from absl import app
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from pdgen.files import file_sha256, new_file, new_folder
from pdgen.sequence.images import why_unreadable
from pdgen.sequence.trajectory import (
    VERSION,
    Image,
    Record,
    TrajectoryError,
    decode_record,
    encode_record,
)

INDEX = "dataset.json"
SUFFIX = ".array_record"


class RecordError(ValueError):
    """A data set or one of its records is missing or broken; the line names the file and the record."""


class DataFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ArrayRecord file of a data set and what it must hold.

    ``subset`` names the part of the data set that its records belong to ("" where there is but one),
    ``sha256`` is the digest of the whole file in hexadecimal ("" where it was not taken).
    """

    name: str
    records: int
    subset: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if pathlib.PurePath(self.name).name != self.name or not self.name.endswith(SUFFIX):
            raise ValueError(f"file {self.name!r} must be a plain name ending in {SUFFIX}")
        if self.records < 1:
            raise ValueError(f"file {self.name!r} holds {self.records} records, expected at least 1")


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a data set was made from; equal origins give equal records.

    ``tokenizer`` is the fingerprint of the tokenizer its texts were written for, ``autoencoder`` that of the
    weights its latents come from (``latents.fingerprint_autoencoder``; None: no latents), ``settings`` the
    builder's configuration.
    """

    seed: int
    tokenizer: str | None = None
    autoencoder: str | None = None
    settings: dict[str, Any] = {}


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of ``dataset.json``.

    ``facts`` tells the reader what was counted on the way (subsets, rejected and skipped samples, versions);
    ``version`` is the version of the records' format.
    """

    files: list[DataFile]
    origin: Origin
    facts: dict[str, Any] = {}
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}; build the data again")
        names = [file.name for file in self.files]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"file {twice!r} is listed twice")

    @property
    def records(self) -> int:
        """Records in all files."""
        return sum(f.records for f in self.files)


def write_records(path: str | pathlib.Path, records: Iterable[Record]) -> int:
    """Writes one ArrayRecord file; it appears whole or not at all. Returns the number of records.

    Every record is checked by reading back the bytes that are written.

    Raises:
      RecordError: naming the file, the record's number and what is wrong with it.
    """
    count = 0
    with new_file(path) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        try:
            for record in records:
                writer.write(_encode(record, f"{path}: record {count}"))
                count += 1
        finally:
            writer.close()
    return count


def _encode(record: Record, name: str) -> bytes:
    try:
        data = encode_record(record)
    except (TrajectoryError, TypeError) as fault:  # msgspec raises TypeError on values it cannot write
        raise RecordError(f"{name}: {fault}") from None
    # Structs check the types of their fields only when they are read.
    _decode(data, name)
    return data


def _decode(data: bytes, name: str) -> Record:
    try:
        return decode_record(data, name)
    except TrajectoryError as fault:
        raise RecordError(str(fault)) from None


def write_file(path: str | pathlib.Path, records: Iterable[Record], subset: str = "") -> DataFile:
    """``write_records``, and the file's entry for ``dataset.json``. Raises RecordError, also without records."""
    path = pathlib.Path(path)
    if not (count := write_records(path, records)):
        path.unlink()
        raise RecordError(f"{path}: no records to write")
    return DataFile(name=path.name, records=count, subset=subset, sha256=file_sha256(path))


def write_files(
    folder: pathlib.Path, records: Iterable[Record], *, subset: str = "", records_per_file: int = 1000
) -> list[DataFile]:
    """Writes ``<subset>-<5 digits>.array_record`` files of ``records_per_file`` records ("part" without subset).

    Raises RecordError where a record is broken; there may be no records, and then no files.
    """
    files: list[DataFile] = []
    remaining = iter(records)
    while (first := next(remaining, None)) is not None:
        path = folder / f"{subset or 'part'}-{len(files):05d}{SUFFIX}"
        part = itertools.chain([first], itertools.islice(remaining, records_per_file - 1))
        files.append(write_file(path, part, subset))
    return files


def write_index(folder: str | pathlib.Path, dataset: Dataset) -> None:
    """Writes ``dataset.json``, whole or not at all, over an earlier one."""
    with new_file(pathlib.Path(folder) / INDEX) as path:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(dataset), indent=1) + b"\n")


def is_dataset(folder: pathlib.Path) -> bool:
    """Whether the folder holds a ``dataset.json``."""
    return (folder / INDEX).is_file()


def write_dataset(
    folder: str | pathlib.Path,
    records: Iterable[Record],
    origin: Origin,
    *,
    records_per_file: int = 1000,
    overwrite: bool = False,
) -> Dataset:
    """Writes a data set in files of ``records_per_file``; the folder appears whole or not at all.

    Raises:
      FolderError: see ``pdgen.files.new_folder``.
      RecordError: there are no records, or one is broken.
    """
    with new_folder(folder, kind="data set", replaceable=is_dataset, overwrite=overwrite) as partial:
        files = write_files(partial, records, records_per_file=records_per_file)
        if not files:
            raise RecordError(f"{folder}: no records to write")
        dataset = Dataset(files=files, origin=origin)
        write_index(partial, dataset)
    return dataset


def read_dataset(folder: str | pathlib.Path) -> Dataset:
    """The folder's ``dataset.json``. Raises RecordError if it is missing or malformed."""
    path = pathlib.Path(folder) / INDEX
    try:
        return msgspec.json.decode(path.read_bytes(), type=Dataset)
    except OSError as fault:
        raise RecordError(f"{path}: {fault.strerror}; expected a folder that build_data wrote") from None
    except msgspec.DecodeError as fault:
        raise RecordError(f"{path}: {fault}") from None


def open_file(folder: pathlib.Path, file: DataFile) -> ArrayRecordDataSource:
    """Opens a file for random access to its bytes. Raises RecordError where it is not whole."""
    path = folder / file.name
    if not path.is_file():
        raise RecordError(f"{path}: missing, but {INDEX} counts {file.records} records in it")
    try:
        source = ArrayRecordDataSource(str(path))
    except RuntimeError as fault:
        raise RecordError(
            f"{path}: does not open as an ArrayRecord file ({fault or 'truncated'}): copy or build it again"
        ) from None
    if len(source) != file.records:
        raise RecordError(
            f"{path}: holds {len(source)} records, {INDEX} counts {file.records}; "
            "the file is truncated or not of this data set: copy or build it again"
        )
    return source


def _read(source: ArrayRecordDataSource, path: pathlib.Path, position: int) -> Record:
    name = f"{path}: record {position}"
    try:
        data = source[position]
    except RuntimeError as fault:  # the file's own checksums
        raise RecordError(f"{name}: {fault}") from None
    return _decode(data, name)


class RecordSource:
    """Random access to a data set's records, as Grain wants it: ``len(source)`` and ``source[index]``.

    It may be pickled and shared between threads; each process opens the files for itself.

    Raises:
      RecordError: on opening, if a file is missing or holds another number of records than ``dataset.json``
        counts; on access, naming the file and the record's position in it.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        self.folder = pathlib.Path(folder)
        self.dataset = read_dataset(self.folder)
        self._sources = [open_file(self.folder, file) for file in self.dataset.files]
        self._ends = list(itertools.accumulate(file.records for file in self.dataset.files))

    def __len__(self) -> int:
        return self.dataset.records

    @property
    def subsets(self) -> dict[str, list[range]]:
        """The numbers of every subset's records, as ascending ranges, by the subset's name."""
        ranges: dict[str, list[range]] = {}
        for file, end in zip(self.dataset.files, self._ends):
            held, start = ranges.setdefault(file.subset, []), end - file.records
            if held and held[-1].stop == start:
                start = held.pop().start
            held.append(range(start, end))
        return ranges

    def __repr__(self) -> str:
        return f"RecordSource({str(self.folder)!r}, {len(self)} records)"

    def __getitem__(self, index: SupportsIndex) -> Record:
        number = index.__index__()
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        file = bisect.bisect_right(self._ends, number)
        position = number - (self._ends[file - 1] if file else 0)
        return _read(self._sources[file], self.folder / self.dataset.files[file].name, position)


def find_broken_records(folder: str | pathlib.Path) -> Iterator[str]:
    """One line for every file that does not open or has changed, and for every record that cannot be read.

    Pictures are decoded too. Shows its progress on standard error.

    Raises:
      RecordError: ``dataset.json`` itself is missing or malformed.
    """
    folder = pathlib.Path(folder)
    dataset = read_dataset(folder)
    with tqdm(total=dataset.records, desc="checking", unit="record", leave=False) as bar:
        for file in dataset.files:
            yield from _check_file(folder, file, bar)


def _check_file(folder: pathlib.Path, file: DataFile, bar: tqdm) -> Iterator[str]:
    path = folder / file.name
    try:
        source = open_file(folder, file)
    except RecordError as fault:
        bar.update(file.records)
        yield str(fault)
        return
    if file.sha256 and file_sha256(path) != file.sha256:
        yield f"{path}: is not the file that was written, its SHA-256 differs from {INDEX}: copy or build it again"

    def fault_of(position: int) -> str | None:
        try:
            _check_pictures(_read(source, path, position), f"{path}: record {position}")
        except RecordError as fault:
            return str(fault)
        return None

    with ThreadPoolExecutor() as threads:
        for fault in threads.map(fault_of, range(file.records)):
            bar.update()
            if fault is not None:
                yield fault


def _check_pictures(record: Record, name: str) -> None:
    for number, segment in enumerate(record.segments):
        if isinstance(segment, Image):
            try:
                PIL.Image.open(io.BytesIO(segment.png)).load()
            except (OSError, SyntaxError) as fault:  # Pillow raises SyntaxError on a broken PNG chunk
                raise RecordError(f"{name}: segment {number}: picture: {why_unreadable(fault)}") from None


def main(argv: list[str]) -> None:
    """The command line ``check DIR``: exit status 0 if every record reads, 2 otherwise."""
    if len(argv) != 3 or argv[1] != "check":
        print("records: usage: python -m pdgen.data.records check DIR", file=sys.stderr)
        sys.exit(2)
    try:
        dataset = read_dataset(argv[2])
        broken = 0
        for line in find_broken_records(argv[2]):
            broken += 1
            tqdm.write(line)
    except RecordError as fault:
        print(f"records: {fault}", file=sys.stderr)
        sys.exit(2)
    print(f"{argv[2]}: {dataset.records} records in {len(dataset.files)} files, {broken} faults")
    if broken:
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)

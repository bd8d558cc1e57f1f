"""Data sets of trajectories on disk: a folder of ArrayRecord files and the index ``dataset.json``.

    python -m pdgen.data.records check DIR        lists every broken record

A truncated ArrayRecord file opens as an empty one. So ``dataset.json`` holds the number of records of each file, which
is checked whenever the folder is opened. Files and folders are written under a temporary name and renamed.
"""

import bisect
import contextlib
import itertools
import pathlib
import sys
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsIndex

import msgspec
from absl import app
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from pdgen.files import file_sha256, is_plain_name, new_file, new_folder, to_os_error
from pdgen.json_text import decode_json
from pdgen.progress_bar import ProgressBar
from pdgen.sequence.images import ImageError, decode_image
from pdgen.sequence.trajectory import VERSION, Image, Record, TrajectoryError, decode_record, encode_record

INDEX = "dataset.json"
SUFFIX = ".array_record"


class RecordError(ValueError):
    """A data set or a record that is missing or broken. The message is one line that names the file and the record."""


class DataFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ArrayRecord file of a data set.

    Attributes:
      name: file name, ending in ``SUFFIX``.
      records: number of records, at least 1.
      subset: the part of the data set that the records belong to; "" if there is only one.
      sha256: digest of the whole file in hexadecimal; "" if unknown.
    """

    name: str
    records: int
    subset: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if not is_plain_name(self.name, SUFFIX):
            raise ValueError(f"file {self.name!r} must be a plain name ending in {SUFFIX}")
        if self.records < 1:
            raise ValueError(f"file {self.name!r} holds {self.records} records, expected at least 1")


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a data set was made from. Equal origins give equal records.

    Attributes:
      seed: the builder's seed.
      tokenizer: fingerprint of the tokenizer that the texts were written for.
      autoencoder: ``latents.fingerprint_autoencoder`` of the weights that encoded the latents; None: no latents.
      settings: the builder's configuration.
    """

    seed: int
    tokenizer: str | None = None
    autoencoder: str | None = None
    settings: dict[str, Any] = {}


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of ``dataset.json``.

    Attributes:
      files: the data files, in order.
      origin: what the records were made from.
      facts: figures for the reader: subsets, rejected and skipped samples, versions.
      version: version of the record format.
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
        """Number of records in all files."""
        return sum(f.records for f in self.files)


def write_file(path: pathlib.Path, records: Iterable[Record], subset: str = "") -> DataFile:
    """Write one ArrayRecord file atomically. Returns its entry for ``dataset.json``.

    Each record is checked by decoding the bytes to be written.

    Raises:
      RecordError: a record is broken, or there are none; the message names the file, the record's number and the fault.
      OSError: the file cannot be written.
    """
    count = 0
    with new_file(path) as partial, contextlib.ExitStack() as stack:
        with _name_file(path):
            writer = ArrayRecordWriter(str(partial), "group_size:1")
        stack.callback(_close, writer)
        for record in records:
            data = _encode(record, f"{path}: record {count}")
            with _name_file(path):
                writer.write(data)
            count += 1
        if not count:
            raise RecordError(f"{path}: no records to write")
        stack.pop_all()
        with _name_file(path):
            writer.close()  # a full disk often shows only here
    return DataFile(name=path.name, records=count, subset=subset, sha256=file_sha256(path))


@contextlib.contextmanager
def _name_file(path: str | pathlib.Path) -> Generator[None, None, None]:
    """Raise OSError with the file's name for ArrayRecord's RuntimeError, which has only the system's words."""
    try:
        yield
    except RuntimeError as fault:
        raise to_os_error(fault, path) from None


def _close(writer: ArrayRecordWriter) -> None:
    """Close a writer after another error, which is the cause of a further one."""
    with contextlib.suppress(RuntimeError):
        writer.close()


def _encode(record: Record, name: str) -> bytes:
    try:
        data = encode_record(record)
    except (TrajectoryError, TypeError) as fault:  # msgspec raises TypeError on values it cannot write
        raise RecordError(f"{name}: {fault}") from None
    # msgspec checks the types of fields only when it decodes.
    _decode(data, name)
    return data


def _decode(data: bytes, name: str) -> Record:
    try:
        return decode_record(data, name)
    except TrajectoryError as fault:
        raise RecordError(str(fault)) from None


def write_files(
    folder: pathlib.Path, records: Iterable[Record], *, subset: str = "", records_per_file: int = 1000
) -> list[DataFile]:
    """Write records to files ``<subset>-<5 digits>.array_record``, or ``part-...`` without a subset.

    Without records no file is written. Raises RecordError if a record is broken.
    """
    files: list[DataFile] = []
    remaining = iter(records)
    while (first := next(remaining, None)) is not None:
        path = folder / f"{subset or 'part'}-{len(files):05d}{SUFFIX}"
        part = itertools.chain([first], itertools.islice(remaining, records_per_file - 1))
        files.append(write_file(path, part, subset))
    return files


def write_index(folder: str | pathlib.Path, dataset: Dataset) -> None:
    """Write ``dataset.json`` atomically; it may replace an earlier one."""
    with new_file(pathlib.Path(folder) / INDEX) as path:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(dataset), indent=1) + b"\n")


def is_dataset(folder: pathlib.Path) -> bool:
    """Return whether the folder contains a ``dataset.json``."""
    return (folder / INDEX).is_file()


def write_dataset(
    folder: str | pathlib.Path,
    records: Iterable[Record],
    origin: Origin,
    *,
    records_per_file: int = 1000,
    overwrite: bool = False,
) -> Dataset:
    """Write a data set in files of ``records_per_file`` records. The folder appears complete or not at all.

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
    """Read the folder's ``dataset.json``. Raises RecordError if it is missing or malformed."""
    path = pathlib.Path(folder) / INDEX
    try:
        return decode_json(path.read_bytes(), Dataset)
    except OSError as fault:
        raise RecordError(f"{path}: {fault.strerror}; expected a folder that build_data wrote") from None
    except msgspec.DecodeError as fault:
        raise RecordError(f"{path}: {fault}") from None


def open_file(folder: pathlib.Path, file: DataFile) -> ArrayRecordDataSource:
    """Open a file for random access to its records as bytes. Raises RecordError if it is missing or truncated."""
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
    except RuntimeError as fault:  # a checksum of the file does not match
        raise RecordError(f"{name}: {fault}") from None
    return _decode(data, name)


class RecordSource:
    """Random access to a data set's records, as Grain needs it: ``len(source)`` and ``source[index]``.

    It can be pickled and shared between threads. Each process opens the files itself.

    Raises:
      RecordError: when opened, if a file is missing or its number of records differs from ``dataset.json``; on access,
        if a record is broken. The message names the file and the record's position in it.
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
        """Record numbers by subset, as ascending ranges."""
        ranges: dict[str, list[range]] = {}
        for file, end in zip(self.dataset.files, self._ends):
            own, start = ranges.setdefault(file.subset, []), end - file.records
            if own and own[-1].stop == start:
                start = own.pop().start
            own.append(range(start, end))
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
    """Yield one line for each file that is broken or changed and for each record that cannot be decoded.

    Pictures are decoded too. Progress is shown on standard error.

    Raises:
      RecordError: ``dataset.json`` itself is missing or malformed.
    """
    folder = pathlib.Path(folder)
    dataset = read_dataset(folder)
    with ProgressBar(total=dataset.records, desc="checking", unit="record", leave=False) as bar:
        for file in dataset.files:
            yield from _check_file(folder, file, bar)


def _check_file(folder: pathlib.Path, file: DataFile, bar: ProgressBar) -> Iterator[str]:
    path = folder / file.name
    try:
        source = open_file(folder, file)
    except RecordError as fault:
        bar.update(file.records)
        yield str(fault)
        return
    if file.sha256 and file_sha256(path) != file.sha256:
        yield f"{path}: is not the file that was written, its SHA-256 differs from {INDEX}: copy or build it again"

    def check(position: int) -> str | None:
        try:
            for number, segment in enumerate(_read(source, path, position).segments):
                if isinstance(segment, Image):
                    decode_image(segment.png, f"{path}: record {position}: segment {number}: picture")
        except (RecordError, ImageError) as fault:
            return str(fault)
        return None

    with ThreadPoolExecutor() as threads:
        for fault in threads.map(check, range(file.records)):
            bar.update()
            if fault is not None:
                yield fault


def main(argv: list[str]) -> None:
    """Run the command line ``check DIR``: exit status 0 if all records are whole, 2 otherwise."""
    if len(argv) != 3 or argv[1] != "check":
        print("records: usage: python -m pdgen.data.records check DIR", file=sys.stderr)
        sys.exit(2)
    try:
        dataset = read_dataset(argv[2])
        broken = 0
        for line in find_broken_records(argv[2]):
            broken += 1
            ProgressBar.write(line)
    except RecordError as fault:
        print(f"records: {fault}", file=sys.stderr)
        sys.exit(2)
    print(f"{argv[2]}: {dataset.records} records in {len(dataset.files)} files, {broken} faults")
    if broken:
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)

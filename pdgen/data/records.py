"""Data sets of trajectories on disk: a folder of ArrayRecord files and the ``dataset.json`` that counts them.

    python -m pdgen.data.records check DIR        names every broken record

A truncated ArrayRecord opens as an empty one, so the count of every file stands in ``dataset.json`` and is
checked whenever the folder is opened. Files and folders are written under a temporary name and renamed.
"""

import bisect
import io
import itertools
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

import msgspec
import PIL.Image
from absl import app
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from pdgen.interleave.trajectory import (
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
    """One ArrayRecord file of a data set and the number of records it must hold."""

    name: str
    records: int

    def __post_init__(self) -> None:
        if pathlib.PurePath(self.name).name != self.name or not self.name.endswith(SUFFIX):
            raise ValueError(f"file {self.name!r} must be a plain name ending in {SUFFIX}")
        if self.records < 1:
            raise ValueError(f"file {self.name!r} holds {self.records} records, expected at least 1")


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a data set was made from; equal origins give equal records.

    ``tokenizer`` is the fingerprint of the tokenizer its texts were written for, ``autoencoder`` that of the
    weights its latents come from (``latents.autoencoder_fingerprint``; None: no latents), ``settings`` the
    builder's configuration.
    """

    seed: int
    tokenizer: str | None = None
    autoencoder: str | None = None
    settings: dict[str, Any] = {}


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of ``dataset.json``. ``version`` is the version of the records' format."""

    files: list[DataFile]
    origin: Origin
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}; build the data again")

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
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    try:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        try:
            for record in records:
                writer.write(_encode(record, f"{path}: record {count}"))
                count += 1
        finally:
            writer.close()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
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
      RecordError: the folder exists and ``overwrite`` is False, there are no records, or one is broken.
    """
    folder = pathlib.Path(folder)
    _refuse_existing(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        files = []
        remaining = iter(records)
        while (first := next(remaining, None)) is not None:
            name = f"part-{len(files):05d}{SUFFIX}"
            part = itertools.chain([first], itertools.islice(remaining, records_per_file - 1))
            files.append(DataFile(name=name, records=write_records(partial / name, part)))
        if not files:
            raise RecordError(f"{folder}: no records to write")
        dataset = Dataset(files=files, origin=origin)
        (partial / INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(dataset), indent=1) + b"\n")
        partial.chmod(0o755)  # mkdtemp's folders are readable by their owner alone
        _replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return dataset


def _refuse_existing(folder: pathlib.Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise RecordError(f"{folder}: exists already; pass --overwrite to replace it, or name another folder")
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / INDEX).is_file()):
        raise RecordError(f"{folder}: is not a data set ({INDEX} is missing), so it is not replaced")


def _replace(partial: pathlib.Path, folder: pathlib.Path) -> None:
    if not folder.exists():
        os.rename(partial, folder)
        return
    old = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old)


def read_dataset(folder: str | pathlib.Path) -> Dataset:
    """The folder's ``dataset.json``. Raises RecordError if it is missing or malformed."""
    path = pathlib.Path(folder) / INDEX
    try:
        return msgspec.json.decode(path.read_bytes(), type=Dataset)
    except OSError as fault:
        raise RecordError(f"{path}: {fault.strerror}; expected a folder that build_data wrote") from None
    except msgspec.DecodeError as fault:
        raise RecordError(f"{path}: {fault}") from None


def _open_file(folder: pathlib.Path, file: DataFile) -> ArrayRecordDataSource:
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
        self._sources = [_open_file(self.folder, file) for file in self.dataset.files]
        self._ends = list(itertools.accumulate(file.records for file in self.dataset.files))

    def __len__(self) -> int:
        return self.dataset.records

    def __repr__(self) -> str:
        return f"RecordSource({str(self.folder)!r}, {len(self)} records)"

    def __getitem__(self, index: SupportsIndex) -> Record:
        number = index.__index__()
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        file = bisect.bisect_right(self._ends, number)
        position = number - (self._ends[file - 1] if file else 0)
        return _read(self._sources[file], self.folder / self.dataset.files[file].name, position)


def broken_records(folder: str | pathlib.Path) -> Iterator[str]:
    """One line for every file that does not open and every record that cannot be read, pictures included.

    Raises:
      RecordError: ``dataset.json`` itself is missing or malformed.
    """
    folder = pathlib.Path(folder)
    for file in read_dataset(folder).files:
        try:
            source = _open_file(folder, file)
        except RecordError as fault:
            yield str(fault)
            continue
        for position in range(file.records):
            path = folder / file.name
            try:
                _check_pictures(_read(source, path, position), f"{path}: record {position}")
            except RecordError as fault:
                yield str(fault)


def _check_pictures(record: Record, name: str) -> None:
    for number, segment in enumerate(record.segments):
        if isinstance(segment, Image):
            try:
                PIL.Image.open(io.BytesIO(segment.png)).load()
            except (OSError, SyntaxError) as fault:  # Pillow raises SyntaxError on a broken PNG chunk
                raise RecordError(f"{name}: segment {number}: picture: {fault}") from None


def main(argv: list[str]) -> None:
    """The command line ``check DIR``: exit status 0 if every record reads, 2 otherwise."""
    if len(argv) != 3 or argv[1] != "check":
        print("records: usage: python -m pdgen.data.records check DIR", file=sys.stderr)
        sys.exit(2)
    try:
        dataset = read_dataset(argv[2])
        broken = 0
        for line in broken_records(argv[2]):
            broken += 1
            print(line)
    except RecordError as fault:
        print(f"records: {fault}", file=sys.stderr)
        sys.exit(2)
    print(f"{argv[2]}: {dataset.records} records in {len(dataset.files)} files, {broken} faults")
    if broken:
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)

"""Readers of samples from parquet files, tar archives and JSON lines, one by one and with a progress bar."""

import itertools
import pathlib
import tarfile
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pdgen.progress_bar import ProgressBar
from pdgen.synthesis.importers.outcome import ImporterError, SourceSample

ROWS = 16  # rows read at a time; a row with images may have many megabytes


def list_files(path: pathlib.Path, suffix: str) -> list[tuple[pathlib.Path, str]]:
    """List the file ``path``, or all files below the folder ``path`` that end in ``suffix``, with short names.

    Raises:
      ImporterError: there is no such file.
    """
    if path.is_file():
        return [(path, path.name)]
    if not path.is_dir():
        raise ImporterError(f"{path}: no such file or folder")
    found = sorted(file for file in path.rglob(f"*{suffix}") if file.is_file())
    if not found:
        raise ImporterError(f"{path}: holds no *{suffix} file")
    return [(file, file.relative_to(path).as_posix()) for file in found]


def read_parquet(path: pathlib.Path, source: str, layouts: Sequence[Collection[str]]) -> Iterator[SourceSample]:
    """Read the rows of parquet files as dictionaries of all columns.

    Args:
      path: a file, or a folder with ``*.parquet``.
      source: first part of the ids ``<source>/<file>/<row>``; rows are numbered from 0 in each file.
      layouts: sets of columns; each file must have all columns of one of them.

    Raises:
      ImporterError: a file is not parquet, is damaged, or lacks columns.
    """
    for file, name in list_files(path, ".parquet"):
        try:
            table = pq.ParquetFile(file)
            columns = table.schema_arrow.names
            if not any(set(layout) <= set(columns) for layout in layouts):
                wanted = " or ".join(", ".join(layout) for layout in layouts)
                raise ImporterError(f"{file}: has columns {', '.join(columns)}; expected {wanted}")
            with ProgressBar(total=table.metadata.num_rows, desc=name, unit="row", leave=False) as bar:
                for batch in table.iter_batches(batch_size=ROWS):
                    for row in batch.to_pylist():
                        yield SourceSample(f"{file}: row {bar.n}", f"{source}/{name}/{bar.n}", row)
                        bar.update()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
            raise ImporterError(f"{file}: not a whole parquet file ({' '.join(str(fault).split())})") from None


def read_tar(path: pathlib.Path, source: str) -> Iterator[SourceSample]:
    """Read the samples of webdataset archives: consecutive members with the same name up to the first dot.

    The content of a sample is a dictionary from the rest of the name ("prompt.txt") to the member's bytes.

    Args:
      path: an archive, or a folder with ``*.tar``.
      source: first part of the ids ``<source>/<file>/<shared name>``.

    Raises:
      ImporterError: an archive is not a tar file, or is truncated.
    """
    for file, name in list_files(path, ".tar"):
        try:
            _check_end(file)
            with (
                tarfile.open(file, "r:") as archive,
                ProgressBar(total=file.stat().st_size, desc=name, unit="B", unit_scale=True, leave=False) as bar,
            ):
                files = (member for member in archive if member.isfile())
                for shared, members in itertools.groupby(files, lambda member: _split_name(member.name)[0]):
                    content = {}
                    for member in members:
                        opened = archive.extractfile(member)
                        assert opened is not None  # the member is a file
                        content[_split_name(member.name)[1].lower()] = opened.read()
                        bar.update(member.offset_data + member.size - bar.n)
                    yield SourceSample(f"{file}: sample {shared}", f"{source}/{name}/{shared}", content)
        except (tarfile.TarError, OSError, EOFError) as fault:
            raise ImporterError(f"{file}: not a whole tar archive ({fault})") from None


def _split_name(member: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last part: "a.b/0.prompt.txt" to "a.b/0" and "prompt.txt"."""
    folder, _, base = member.rpartition("/")
    first, _, rest = base.partition(".")
    return f"{folder}/{first}" if folder else first, rest


def _check_end(file: pathlib.Path) -> None:
    """Raise TarError if the zeros at the end of an archive are missing, which tarfile may not notice."""
    with file.open("rb") as archive:
        size = archive.seek(0, 2)
        archive.seek(max(0, size - tarfile.BLOCKSIZE))
        if size % tarfile.BLOCKSIZE or any(archive.read()):
            raise tarfile.ReadError("it is truncated or compressed")


def read_json_lines(path: pathlib.Path, source: str) -> Iterator[SourceSample]:
    """Read the lines of a JSON lines file, or of all ``*.jsonl`` in a folder, as bytes; empty lines are skipped.

    The content of a sample is (the file's folder, the line). Its id is ``<source>/<file>/<line>``, from line 1.

    Raises:
      ImporterError: there is no file.
    """
    for file, name in list_files(path, ".jsonl"):
        with (
            file.open("rb") as lines,
            ProgressBar(total=file.stat().st_size, desc=name, unit="B", unit_scale=True, leave=False) as bar,
        ):
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield SourceSample(f"{file}: line {number}", f"{source}/{name}/{number}", (file.parent, line))
                bar.update(len(line))

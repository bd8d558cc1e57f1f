"""Encoding of a whole data set: a copy of its files with latents, in another folder.

    .<target>.encoding/work.json        the source and the settings
    .<target>.encoding/*.array_record   finished files
    <target>/                           the same folder, renamed when all files are finished

A run that was killed resumes at the first unfinished file. Each file depends only on its source and on ``work.json``,
so the result equals that of an uninterrupted run byte for byte.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import jax
import msgspec

from pdgen.config import AutoencoderConfig
from pdgen.data.latents import Encode, LatentError, add_latents, fingerprint_autoencoder, make_encoder
from pdgen.data.records import (
    INDEX,
    DataFile,
    Dataset,
    RecordError,
    RecordSource,
    is_dataset,
    open_file,
    write_file,
    write_index,
)
from pdgen.files import check_settings, check_target, file_sha256, lock_folder, new_file, replace_folder
from pdgen.json_text import decode_json
from pdgen.progress_bar import ProgressBar
from pdgen.sequence.images import ImageError, SizeRule
from pdgen.sequence.trajectory import Record

WORK = "work.json"
CHUNK_SIZE = 256  # records whose pictures are in memory at a time, grouped by size


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The autoencoder and the settings of an encoding.

    Attributes:
      config, params: those of the autoencoder.
      rule: the picture sizes of the model; other pictures are resized, also in the records.
      batch_size: pictures in a batch, fewer if they are large; see ``latents.make_encoder``.
    """

    config: AutoencoderConfig
    params: Mapping[str, Any]
    rule: SizeRule
    batch_size: int


def encode_dataset(source: pathlib.Path, target: pathlib.Path, encoder: Encoder, *, overwrite: bool = False) -> Dataset:
    """Write the data set ``source`` with latents to ``target``. Resumes an earlier run that was killed.

    Existing latents are replaced. With ``overwrite``, ``target`` may be ``source`` itself.

    Raises:
      FolderError: ``target`` exists and may not be replaced.
      LatentError: a moment is not finite, another run is encoding to ``target``, or an unfinished run has other
        settings.
      RecordError: a record or a picture is broken.
    """
    target = pathlib.Path(os.path.abspath(target))
    check_target(target, "data set", is_dataset, overwrite)
    records = RecordSource(source)
    fingerprint = fingerprint_autoencoder(encoder.params)
    work = {
        "source": file_sha256(records.folder / INDEX),
        "autoencoder": fingerprint,
        "sizes": dataclasses.asdict(encoder.rule),
        "batch_size": encoder.batch_size,
        "device": jax.devices()[0].device_kind,
    }
    with _claim_folder(target.with_name(f".{target.name}.encoding"), work) as folder:
        files = _encode_files(records, folder, encoder)
        origin = msgspec.structs.replace(records.dataset.origin, autoencoder=fingerprint)
        dataset = msgspec.structs.replace(records.dataset, files=files, origin=origin)
        write_index(folder, dataset)
        (folder / WORK).unlink()
        replace_folder(folder, target)
    return dataset


@contextlib.contextmanager
def _claim_folder(folder: pathlib.Path, work: Mapping[str, Any]) -> Generator[pathlib.Path, None, None]:
    """Lock the folder of unfinished work. It is empty or has finished files of the same ``work``."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, "encoding into it", error=LatentError):
        path = folder / WORK
        if not path.is_file():  # an earlier run was killed before it began, or while its folder was renamed
            for leftover in folder.iterdir():
                leftover.unlink()
            with new_file(path) as partial:
                partial.write_bytes(msgspec.json.encode(work) + b"\n")
        try:
            begun = decode_json(path.read_bytes(), dict[str, Any])
        except msgspec.DecodeError as fault:
            raise LatentError(f"{path}: damaged ({fault}); delete the folder") from None
        check_settings(folder, begun, work, remedy="finish that work, or delete the folder", error=LatentError)
        yield folder


def _encode_files(records: RecordSource, folder: pathlib.Path, encoder: Encoder) -> list[DataFile]:
    """Write all unfinished files. Returns the entries of all files for ``dataset.json``."""
    encode = make_encoder(encoder.config, encoder.params, encoder.batch_size)
    files, end = [], 0
    with ProgressBar(total=len(records), desc="encoding", unit="record") as bar:
        for file in records.dataset.files:
            start, end = end, end + file.records
            if _is_finished(folder, file):
                bar.initial += file.records  # keeps finished files out of the estimate of the remaining time
                bar.update(file.records)
            else:
                written = _encode_records(records, range(start, end), encode, encoder.rule, file.name)
                write_file(folder / file.name, _count_records(written, bar), file.subset)
            files.append(msgspec.structs.replace(file, sha256=file_sha256(folder / file.name)))
    return files


def _encode_records(
    records: RecordSource, numbers: range, encode: Encode, rule: SizeRule, name: str
) -> Iterator[Record]:
    for first in numbers[::CHUNK_SIZE]:
        chunk = [records[n] for n in range(first, min(first + CHUNK_SIZE, numbers.stop))]
        try:
            yield from add_latents(chunk, encode, rule)
        except ImageError as fault:
            raise RecordError(f"{records.folder / name}: {fault}") from None


def _count_records(records: Iterator[Record], bar: ProgressBar) -> Iterator[Record]:
    for record in records:
        yield record
        bar.update()


def _is_finished(folder: pathlib.Path, file: DataFile) -> bool:
    try:
        open_file(folder, file)
    except RecordError:
        return False
    return True

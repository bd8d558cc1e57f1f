"""Token counts of every record, computed once per data set and model and kept beside the data."""

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging
from jaxtyping import Int8, Int32, Int64
from tqdm import tqdm

from pdgen.config import ModelConfig
from pdgen.data.records import INDEX, RecordError, RecordSource
from pdgen.interleave.images import image_sizes
from pdgen.interleave.segments import SegmentError, Unit, outline, stream_lengths
from pdgen.interleave.tokenizer import Tokenizer

_VERSION = 1  # of what ``outline`` counts; a new number makes old files unused


@dataclasses.dataclass(frozen=True)
class LengthIndex:
    """Units of all records, one record after the other.

    Attributes:
      ids: the records' ids.
      kinds: kind of each unit, as in ``interleave.segments``.
      tokens: the unit's tokens without switch tokens.
      starts: record i owns units [starts[i], starts[i + 1]).
    """

    ids: np.ndarray
    kinds: Int8[np.ndarray, " units"]
    tokens: Int32[np.ndarray, " units"]
    starts: Int64[np.ndarray, " records+1"]

    def __len__(self) -> int:
        return len(self.ids)

    def units(self, record: int) -> slice:
        """Where a record's units stand in ``kinds`` and ``tokens``."""
        return slice(self.starts[record], self.starts[record + 1])

    def totals(self) -> Int64[np.ndarray, "records 3"]:
        """Tokens of every record in the text, vit and vae stream, nothing dropped."""
        sums = np.cumsum(stream_lengths(self.kinds, self.tokens), axis=0, dtype=np.int64)
        return np.diff(np.concatenate([np.zeros((1, 3), np.int64), sums])[self.starts], axis=0)


def make_index(documents: Iterable[tuple[str, Sequence[Unit]]]) -> LengthIndex:
    """The index of (record id, units) pairs."""
    ids, units, starts = [], [], [0]
    for record_id, own in documents:
        ids.append(record_id)
        units += own
        starts.append(len(units))
    kinds, tokens = np.array(units, np.int32).reshape(-1, 2).T
    return LengthIndex(np.array(ids, str), kinds.astype(np.int8), tokens, np.array(starts, np.int64))


def length_index(source: RecordSource, tokenizer: Tokenizer, config: ModelConfig) -> LengthIndex:
    """The data set's index: read from the file beside the data, or made and written there.

    The file's name holds a digest of the tokenizer, of all sizes that decide token counts, and of the data
    files' names, lengths and times, so another model or a rebuilt data set never meets an old file. Where
    the folder cannot be written, the index is made anew each time, and a warning says so.

    Raises:
      RecordError: a record is broken or does not suit the model; the line names file and record.
    """
    path = source.folder / f"lengths-{_digest(source, tokenizer, config)}.npz"
    if (index := _read(path)) is not None and len(index) == len(source):
        return index
    progress = tqdm(range(len(source)), desc="token lengths", unit="record", disable=len(source) < 1000)
    index = make_index(_outlined(source, number, tokenizer, config) for number in progress)
    _write(path, index)
    return index


def record_name(source: RecordSource, number: int) -> str:
    """File and position of a record, for messages."""
    for file in source.dataset.files:
        if number < file.records:
            return f"{source.folder / file.name}: record {number}"
        number -= file.records
    raise IndexError(f"record {number} beyond the end of {source.folder}")


def _outlined(
    source: RecordSource, number: int, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[str, list[Unit]]:
    record = source[number]
    try:
        return record.id, outline(record, tokenizer, config)
    except SegmentError as fault:
        raise RecordError(f"{record_name(source, number)}: {fault}") from None


def _digest(source: RecordSource, tokenizer: Tokenizer, config: ModelConfig) -> str:
    stats = [(source.folder / file.name).stat() for file in source.dataset.files]
    facts = {
        "version": _VERSION,
        "tokenizer": tokenizer.fingerprint,
        "sizes": dataclasses.asdict(image_sizes(config)),
        "latent_patch": config.latent_patch_size,
        "dataset": hashlib.sha256((source.folder / INDEX).read_bytes()).hexdigest(),
        "files": [(stat.st_size, stat.st_mtime_ns) for stat in stats],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: pathlib.Path) -> LengthIndex | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return LengthIndex(**{f.name: arrays[f.name] for f in dataclasses.fields(LengthIndex)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as fault:
        logging.warning("%s: not readable (%s); counting the tokens again", path, fault)
        return None


def _write(path: pathlib.Path, index: LengthIndex) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **{f.name: getattr(index, f.name) for f in dataclasses.fields(LengthIndex)})
        os.replace(partial, path)
    except OSError as fault:
        logging.warning("%s: cannot be written (%s); every start counts the tokens again", path, fault)
        partial.unlink(missing_ok=True)

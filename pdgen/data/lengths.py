"""Token counts of all records, computed once per data set and model and stored with the data."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Int8, Int32, Int64, Shaped

from pdgen.config import ModelConfig
from pdgen.data.records import INDEX, RecordError, RecordSource
from pdgen.files import load_arrays, sha256
from pdgen.progress_bar import ProgressBar
from pdgen.sequence.images import image_sizes
from pdgen.sequence.segments import Outline, SegmentError, outline
from pdgen.sequence.tokenizer import Tokenizer, TokenizerError

Broken = Literal["stop", "skip"]  # the treatment of broken records
_VERSION = 3  # version of the stored file; files of other versions are ignored


@dataclasses.dataclass(frozen=True)
class LengthIndex:
    """Units and turns of all records, concatenated. Broken records have none.

    Attributes:
      ids: the records' ids; "" for broken records.
      broken: numbers of the broken records, ascending.
      faults: the error of each broken record, which names file and record.
      kinds: kind of each unit, as in ``sequence.segments``.
      tokens: tokens of each unit without switch tokens.
      starts: record i has units [starts[i], starts[i + 1]).
      turns: (first, end) of each turn, relative to the record's first unit; see ``segments.Outline``.
      turn_starts: record i has turns [turn_starts[i], turn_starts[i + 1]).
    """

    ids: Shaped[np.ndarray, " records"]
    broken: Int64[np.ndarray, " broken"]
    faults: Shaped[np.ndarray, " broken"]
    kinds: Int8[np.ndarray, " units"]
    tokens: Int32[np.ndarray, " units"]
    starts: Int64[np.ndarray, " boundaries"]
    turns: Int32[np.ndarray, "turns 2"]
    turn_starts: Int64[np.ndarray, " boundaries"]

    def __len__(self) -> int:
        return len(self.ids)


class CountedRecord(NamedTuple):
    """One record of an index. A broken record has a fault instead of an outline."""

    id: str
    outline: Outline | None
    fault: str = ""


def make_index(records: Iterable[CountedRecord]) -> LengthIndex:
    """Make the index of the records, in order."""
    ids, faults, units, turns, starts, turn_starts = [], {}, [], [], [0], [0]
    for number, (record_id, found, fault) in enumerate(records):
        ids.append(record_id)
        if found is None:
            faults[number] = fault
        else:
            units += found.units
            turns += found.turns
        starts.append(len(units))
        turn_starts.append(len(turns))
    kinds, tokens = np.array(units, np.int32).reshape(-1, 2).T
    return LengthIndex(
        ids=np.array(ids, str),
        broken=np.array(list(faults), np.int64),
        faults=np.array(list(faults.values()), str),
        kinds=kinds.astype(np.int8),
        tokens=tokens.copy(),
        starts=np.array(starts, np.int64),
        turns=np.array(turns, np.int32).reshape(-1, 2),
        turn_starts=np.array(turn_starts, np.int64),
    )


def load_length_index(
    source: RecordSource, tokenizer: Tokenizer, config: ModelConfig, broken: Broken = "stop", draws: int = 1
) -> LengthIndex:
    """Read a data set's index from its folder, or make it and write it there.

    The file name contains a digest of the tokenizer, of all sizes that determine token counts, and of the data files'
    names, sizes and times. So a stale file is never read for another model or a rebuilt data set. If the folder cannot
    be written, a warning is logged and the index is made on every start.

    Args:
      broken: "stop" raises at the first broken record; "skip" lists it in ``faults``.
      draws: noised copies of an image; see ``segments.record_segments``.

    Raises:
      RecordError: a record is broken or does not fit the model; the message names file and record.
    """
    path = source.folder / f"lengths-{_compute_digest(source, tokenizer, config, draws)}.npz"
    index = _read(path)
    if index is None or len(index) != len(source):
        progress = ProgressBar(range(len(source)), desc="token lengths", unit="record", disable=len(source) < 1000)
        index = make_index(_count_record(source, number, tokenizer, config, broken, draws) for number in progress)
        _write(path, index)
    if broken == "stop" and index.broken.size:
        raise RecordError(str(index.faults[0]))
    return index


def locate_record(source: RecordSource, number: int) -> str:
    """Return file and position of a record as text for messages. Raises IndexError beyond the last record."""
    for file in source.dataset.files:
        if number < file.records:
            return f"{source.folder / file.name}: record {number}"
        number -= file.records
    raise IndexError(f"record {number} beyond the end of {source.folder}")


def _count_record(
    source: RecordSource, number: int, tokenizer: Tokenizer, config: ModelConfig, broken: Broken, draws: int
) -> CountedRecord:
    try:
        record = source[number]
        return CountedRecord(record.id, outline(record, tokenizer, config, draws))
    except RecordError as fault:
        named = fault
    except (SegmentError, TokenizerError) as fault:
        named = RecordError(f"{locate_record(source, number)}: {fault}")
    if broken == "stop":
        raise named from None
    return CountedRecord("", None, str(named))


def _compute_digest(source: RecordSource, tokenizer: Tokenizer, config: ModelConfig, draws: int) -> str:
    stats = [(source.folder / file.name).stat() for file in source.dataset.files]
    facts = {
        "version": _VERSION,
        "tokenizer": tokenizer.fingerprint,
        "sizes": dataclasses.asdict(image_sizes(config)),
        "latent_patch": config.latent_patch_size,
        "draws": draws,
        "dataset": sha256((source.folder / INDEX).read_bytes()),
        "files": [(stat.st_size, stat.st_mtime_ns) for stat in stats],
    }
    return sha256(json.dumps(facts, sort_keys=True).encode())[:16]


def _read(path: pathlib.Path) -> LengthIndex | None:
    if not path.exists():
        return None
    try:
        arrays = load_arrays(path)
        return LengthIndex(**{f.name: arrays[f.name] for f in dataclasses.fields(LengthIndex)})
    except (OSError, ValueError, KeyError) as fault:
        logging.warning("%s: not readable (%s); counting the tokens again", path, fault)
        return None


def _write(path: pathlib.Path, index: LengthIndex) -> None:
    # The process id keeps processes apart that write at the same time.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **{f.name: getattr(index, f.name) for f in dataclasses.fields(LengthIndex)})
        os.replace(partial, path)
    except OSError as fault:
        logging.warning("%s: cannot be written (%s); every start counts the tokens again", path, fault)
        partial.unlink(missing_ok=True)

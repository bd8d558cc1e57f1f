"""Resumable builds of data sets in shards.

    DIR/<subset>-<5 digits>.array_record   the records of one shard
    DIR/report/<the same name>.js          the same records for the browser of samples
    DIR/build/<the same name>.json         the shard's ``ShardFacts``, written last: the shard is finished
    DIR/build/settings.json                the settings of the build
    DIR/dataset.json, DIR/index.html       written when all shards of the requested stages are finished

A shard depends only on the settings and its number, and every file is written atomically. So a killed build can resume,
and its result is byte for byte that of an uninterrupted build, with any runner and any number of workers.
"""

import collections
import contextlib
import functools
import pathlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pdgen.data.records import INDEX, SUFFIX, DataFile, Dataset, Origin, write_file, write_index
from pdgen.files import check_settings, file_sha256, lock_folder, new_file
from pdgen.json_text import decode_json
from pdgen.sequence.trajectory import Record
from pdgen.synthesis.leaks import load_geneval_digests
from pdgen.synthesis.page import (
    DatasetSummary,
    make_table_row,
    merge_summaries,
    render_chunk,
    render_dataset,
    render_index,
    summarise_records,
)
from pdgen.synthesis.settings import SUBSETS, DatasetSettings

STATE, REPORT, PAGE = "build", "report", "index.html"
_SETTINGS = "settings.json"


class BuildError(ValueError):
    """A build that cannot start, resume or finish. The message is one line with the folder or shard and the remedy."""


class Shard(msgspec.Struct, frozen=True):
    """Shard ``number`` of a subset: samples ``start`` to ``stop`` - 1."""

    subset: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The name of its files without suffix."""
        return f"{self.subset}-{self.number:05d}"


class ShardFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The facts of a finished shard.

    Attributes:
      name: name of its files without suffix.
      records, sha256: number of records in its file, and the file's digest.
      rejected: number of rejected samples by reason.
      noted: ids of noteworthy records, such as leaks, by kind.
      summary: its part of the report.
    """

    name: str
    records: int
    sha256: str
    rejected: dict[str, int]
    noted: dict[str, list[str]]
    summary: DatasetSummary


class ShardContent(NamedTuple):
    """The records of a shard, the number of rejected samples by reason, and ids of noteworthy records by kind."""

    records: list[Record]
    rejected: Mapping[str, int]
    noted: Mapping[str, list[str]] = {}


Make = Callable[[Shard], ShardContent]
Work = Callable[[Shard], ShardFacts]
Runner = Callable[[Work, Sequence[Shard]], Iterator[ShardFacts]]


def cut_shards(subset: str, count: int, size: int) -> list[Shard]:
    """Divide ``count`` samples of a subset into shards of ``size``; the last one may be smaller."""
    starts = range(0, count, size)
    return [Shard(subset, number, start, min(start + size, count)) for number, start in enumerate(starts)]


def _write(path: pathlib.Path, data: bytes) -> None:
    with new_file(path) as partial:
        partial.write_bytes(data)


def build_shard(folder: pathlib.Path, make: Make, shard: Shard) -> ShardFacts:
    """Make a shard and write its files. The facts are written last, because they mark the shard as finished.

    Raises:
      BuildError: ``make`` returned a wrong number of records.
      RecordError: a record is malformed.
    """
    records, rejected, noted = make(shard)
    if len(records) != shard.stop - shard.start:
        raise BuildError(f"{shard.name}: {len(records)} records made, {shard.stop - shard.start} expected")
    file = write_file(folder / f"{shard.name}{SUFFIX}", records, shard.subset)
    _write(folder / REPORT / f"{shard.name}.js", render_chunk(shard.name, records).encode())
    facts = ShardFacts(
        name=shard.name,
        records=file.records,
        sha256=file.sha256,
        rejected=dict(sorted(rejected.items())),
        noted=dict(noted),
        summary=summarise_records(records),
    )
    _write(_get_facts_path(folder, shard), msgspec.json.encode(facts) + b"\n")
    return facts


def _get_facts_path(folder: pathlib.Path, shard: Shard) -> pathlib.Path:
    return folder / STATE / f"{shard.name}.json"


def read_facts(folder: pathlib.Path, subset: str) -> list[ShardFacts]:
    """Read the facts of all finished shards of a subset, in order. Their files are not checked."""
    paths = sorted(folder.glob(f"{STATE}/{subset}-*.json"))
    facts = []
    for path in paths:
        try:
            facts.append(decode_json(path.read_bytes(), ShardFacts))
        except msgspec.DecodeError as fault:
            raise BuildError(f"{path}: damaged ({fault}); remove it and build again, which makes this shard") from None
    return facts


def read_stages(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Read the settings of all subsets that were started in the folder."""
    return _read_state(folder).stages


class _BuildState(msgspec.Struct):
    """The settings with which a build began: those of all subsets, and those of each by name."""

    common: dict[str, Any]
    stages: dict[str, dict[str, Any]]


def _read_state(folder: pathlib.Path) -> _BuildState:
    path = folder / STATE / _SETTINGS
    try:
        return decode_json(path.read_bytes(), _BuildState)
    except msgspec.DecodeError as fault:
        raise BuildError(f"{path}: damaged ({fault}); choose another folder") from None


def find_finished(folder: pathlib.Path, shard: Shard) -> ShardFacts | None:
    """Return the facts of a shard if it is finished and its files are intact, otherwise None."""
    try:
        facts = decode_json(_get_facts_path(folder, shard).read_bytes(), ShardFacts)
        intact = file_sha256(folder / f"{shard.name}{SUFFIX}") == facts.sha256
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    shown = (folder / REPORT / f"{shard.name}.js").is_file()
    return facts if intact and shown else None


def build_shards(
    folder: pathlib.Path,
    shards: Sequence[Shard],
    make: Make,
    runner: Runner,
    progress: Callable[[ShardFacts], None] = lambda facts: None,
) -> list[ShardFacts]:
    """Make all unfinished shards with ``runner``. Returns the facts of all shards, in order.

    ``progress`` is called with the facts of each finished shard.
    """
    known = {}
    for shard in shards:
        if (facts := find_finished(folder, shard)) is not None:
            known[shard.name] = facts
            progress(facts)
    missing = [shard for shard in shards if shard.name not in known]
    if missing:
        for facts in runner(functools.partial(build_shard, folder, make), missing):
            known[facts.name] = facts
            progress(facts)
    return [known[shard.name] for shard in shards]


@contextlib.contextmanager
def open_build(
    folder: pathlib.Path, common: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], overwrite: bool
) -> Generator[None, None, None]:
    """Lock ``folder`` for a build of ``stages`` (subset: its settings) with the ``common`` settings.

    Other subsets in the folder stay. Temporary files of a killed build are removed.

    Raises:
      BuildError: the folder has other content, a build with other settings that ``overwrite`` does not replace, or a
        build that is running.
    """
    state = folder / STATE
    if folder.exists() and not state.is_dir() and (not folder.is_dir() or any(folder.iterdir())):
        raise BuildError(f"{folder}: exists and was not begun by build_data ({STATE}/ is missing); name another folder")
    state.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).mkdir(exist_ok=True)
    with lock_folder(folder, "building in it", lock=state, error=BuildError):
        _remove_partial_files(folder)
        _check_settings(folder, common, stages, overwrite)
        try:
            yield
        finally:
            _remove_partial_files(folder)  # of workers that a fault of another one has ended


def _remove_partial_files(folder: pathlib.Path) -> None:
    for leftover in (*folder.glob(".*.partial"), *folder.glob("*/.*.partial")):
        leftover.unlink()


def _check_settings(
    folder: pathlib.Path, common: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], overwrite: bool
) -> None:
    """Compare the settings with those in the folder, and write the new ones."""
    path = folder / STATE / _SETTINGS
    begun = _read_state(folder) if path.is_file() else _BuildState({}, {})
    if overwrite and any(subset in begun.stages for subset in stages):
        (folder / INDEX).unlink(missing_ok=True)
        for subset in stages:
            begun.stages.pop(subset, None)
            _discard(folder, subset)
    # As it is in the file: tuples become lists, and keys strings.
    wanted = msgspec.json.decode(msgspec.json.encode({"common": common, "stages": begun.stages | dict(stages)}))
    if begun.stages:
        _compare(folder, begun.common, wanted["common"], overwrite)
    for subset, settings in begun.stages.items():
        if subset in stages:
            _compare(folder, settings, wanted["stages"][subset], overwrite)
    _write(path, msgspec.json.format(msgspec.json.encode(wanted), indent=1) + b"\n")


def _compare(folder: pathlib.Path, begun: Mapping[str, Any], wanted: Mapping[str, Any], overwrite: bool) -> None:
    remedy = "build all its stages again" if overwrite else "pass --overwrite to replace it"
    check_settings(folder, begun, wanted, remedy=f"{remedy}, or name another folder", error=BuildError)


def _discard(folder: pathlib.Path, subset: str) -> None:
    """Remove a subset's shards. The facts are removed first, because they mark shards as finished."""
    for pattern in (f"{STATE}/{subset}-*.json", f"{REPORT}/{subset}-*.js", f"{subset}-*{SUFFIX}"):
        for path in folder.glob(pattern):
            path.unlink()


def list_data_files(facts: Sequence[ShardFacts]) -> list[DataFile]:
    """Return the shards' entries for ``dataset.json``."""
    return [
        DataFile(name=f"{f.name}{SUFFIX}", records=f.records, subset=f.name.rpartition("-")[0], sha256=f.sha256)
        for f in facts
    ]


def count_rejected(facts: Sequence[ShardFacts]) -> dict[str, int]:
    """Count rejected samples by reason over all shards, most frequent first."""
    total = sum((collections.Counter(one.rejected) for one in facts), collections.Counter())
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def write_outcome(settings: DatasetSettings, common: dict[str, Any], folder: pathlib.Path) -> str:
    """Write ``dataset.json`` and the page of all complete stages. Returns one line that summarises the data set.

    ``common`` is the result of ``shards.collect_common_settings``.
    """
    stages = _find_complete_stages(settings, folder)
    summaries = {stage: merge_summaries([one.summary for one in found]) for stage, found in stages.items()}
    facts = _make_dataset_facts(common, stages, summaries)
    begun = read_stages(folder)
    origin = Origin(
        seed=settings.seed,
        tokenizer=common["tokenizer"],
        autoencoder=common["autoencoder"],
        settings=settings.common_to_dict() | {stage: begun[stage] for stage in stages},
    )
    files = list_data_files([one for found in stages.values() for one in found])
    dataset = Dataset(files=files, origin=origin, facts=facts)
    rows = [(one.name, stage, one.summary.rows) for stage, found in stages.items() for one in found]
    _write(folder / REPORT / "index.js", render_index(rows).encode())
    page = render_dataset("Training data", summaries, facts, origin.settings | {"seed": settings.seed})
    _write(folder / PAGE, page.encode())
    write_index(folder, dataset)
    counts = ", ".join(f"{stage} {summary.records:,}" for stage, summary in summaries.items())
    size = sum((folder / file.name).stat().st_size for file in files)
    return f"{folder}: {counts} records in {len(files)} files, {size / 1e6:.1f} MB; see {folder / PAGE}"


def _find_complete_stages(settings: DatasetSettings, folder: pathlib.Path) -> dict[str, list[ShardFacts]]:
    """Return the facts of all complete stages in the folder, in order."""
    found = {}
    for stage, begun in sorted(read_stages(folder).items(), key=lambda item: SUBSETS.index(item[0])):
        facts = read_facts(folder, stage)
        part = msgspec.convert(begun, type(getattr(settings, stage)))
        count, _ = msgspec.structs.replace(settings, **{stage: part}).count_samples(stage)
        if sum(one.records for one in facts) == count:
            found[stage] = facts
    return found


def _make_dataset_facts(
    common: dict[str, Any], stages: dict[str, list[ShardFacts]], summaries: dict[str, DatasetSummary]
) -> dict[str, Any]:
    """Make the facts of ``dataset.json``."""
    every = [one for facts in stages.values() for one in facts]
    leaked = {kind: [name for one in every for name in one.noted.get(kind, ())] for kind in ("exact", "normalised")}
    subsets = {}
    for stage, summary in summaries.items():
        ours = make_table_row(summary)._asdict()
        subsets[stage] = {key: value for key, value in ours.items() if value is not None}
    return {
        "subsets": subsets,
        "rejected": {stage: count_rejected(facts) for stage, facts in stages.items()},
        "leaks": {
            "prompts": sum(one.records for one in every),
            "benchmark": f"GenEval, {len(load_geneval_digests())} prompts",
            "exact": len(leaked["exact"]),
            "normalised": len(leaked["exact"]) + len(leaked["normalised"]),
            "records": leaked["exact"] + leaked["normalised"],
        },
        "versions": common["versions"],
    }

"""Building a data set in shards: cut into pieces that are each made, written and remembered on their own.

    DIR/<subset>-<5 digits>.array_record   one shard's records
    DIR/report/<the same name>.js          the same for the browser of samples
    DIR/build/<the same name>.json         its ``ShardFacts``; written last: the shard is done
    DIR/build/settings.json                what the shards are made from
    DIR/dataset.json, DIR/index.html       written when all shards of the stages asked for are done

A shard is a pure function of the settings and its own number, and every file appears whole or not at all. So a
build that is killed goes on where it was, and its folder comes out byte for byte as if it had never stopped,
whatever the runner and the number of workers.
"""

import collections
import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pdgen.data.records import INDEX, SUFFIX, DataFile, Dataset, Origin, write_file, write_index
from pdgen.files import check_begun, file_sha256, locked, new_file
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
    """A build cannot begin, go on or end; the line names the folder or the shard and the remedy."""


class Shard(msgspec.Struct, frozen=True):
    """Samples ``start`` to ``stop`` - 1 of a subset; the ``number``-th of its shards."""

    subset: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The name of its files, without their endings."""
        return f"{self.subset}-{self.number:05d}"


class ShardFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a finished shard.

    Attributes:
      name: of its files, without their endings.
      records: in its file.
      sha256: of its file.
      rejected: samples made and not kept, by reason.
      noted: ids of records, by what was noted of them.
      summary: what the report shows of it.
    """

    name: str
    records: int
    sha256: str
    rejected: dict[str, int]
    noted: dict[str, list[str]]
    summary: DatasetSummary


class ShardContent(NamedTuple):
    """A shard's records, how many samples were rejected on the way, by reason, and ids of records to be noted."""

    records: list[Record]
    rejected: Mapping[str, int]
    noted: Mapping[str, list[str]] = {}


Make = Callable[[Shard], ShardContent]
Work = Callable[[Shard], ShardFacts]
Runner = Callable[[Work, Sequence[Shard]], Iterator[ShardFacts]]


def cut_shards(subset: str, count: int, size: int) -> list[Shard]:
    """The shards of a subset of ``count`` samples, ``size`` in each but the last."""
    starts = range(0, count, size)
    return [Shard(subset, number, start, min(start + size, count)) for number, start in enumerate(starts)]


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    with new_file(path) as partial:
        partial.write_bytes(data)


def build_shard(folder: pathlib.Path, make: Make, shard: Shard) -> ShardFacts:
    """Makes a shard and writes its files; the facts, which say that it is done, come last.

    Raises:
      BuildError: ``make`` gave another number of records.
      RecordError: one of them breaks the format.
    """
    records, rejected, noted = make(shard)
    if len(records) != shard.stop - shard.start:
        raise BuildError(f"{shard.name}: {len(records)} records made, {shard.stop - shard.start} expected")
    file = write_file(folder / f"{shard.name}{SUFFIX}", records, shard.subset)
    write_atomically(folder / REPORT / f"{shard.name}.js", render_chunk(shard.name, records).encode())
    facts = ShardFacts(
        name=shard.name,
        records=file.records,
        sha256=file.sha256,
        rejected=dict(sorted(rejected.items())),
        noted=dict(noted),
        summary=summarise_records(records),
    )
    write_atomically(_get_facts_path(folder, shard), msgspec.json.encode(facts) + b"\n")
    return facts


def _get_facts_path(folder: pathlib.Path, shard: Shard) -> pathlib.Path:
    return folder / STATE / f"{shard.name}.json"


def read_facts(folder: pathlib.Path, subset: str) -> list[ShardFacts]:
    """The facts of all shards of a subset that were made so far, in order; their files are not looked at."""
    paths = sorted(folder.glob(f"{STATE}/{subset}-*.json"))
    return [msgspec.json.decode(path.read_bytes(), type=ShardFacts) for path in paths]


def read_stages(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The settings of every subset that was begun in the folder, by its name."""
    return msgspec.json.decode((folder / STATE / _SETTINGS).read_bytes())["stages"]


def find_finished(folder: pathlib.Path, shard: Shard) -> ShardFacts | None:
    """The facts of a shard whose files are there and unharmed, else None."""
    try:
        facts = msgspec.json.decode(_get_facts_path(folder, shard).read_bytes(), type=ShardFacts)
        unharmed = file_sha256(folder / f"{shard.name}{SUFFIX}") == facts.sha256
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    shown = (folder / REPORT / f"{shard.name}.js").is_file()
    return facts if unharmed and shown else None


def build_shards(
    folder: pathlib.Path,
    shards: Sequence[Shard],
    make: Make,
    runner: Runner,
    progress: Callable[[ShardFacts], None] = lambda facts: None,
) -> list[ShardFacts]:
    """The facts of all shards, in order; those that are not yet done are made by ``runner``.

    ``progress`` is called with every shard's facts as they become known.
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
) -> Iterator[None]:
    """Claims ``folder`` for a build of ``stages`` (subset: its settings) that share the ``common`` settings.

    Other subsets that the folder holds stay. Leftovers of a build that was killed are removed.

    Raises:
      BuildError: the folder holds something else, or a build from other settings that ``overwrite`` does not
        replace, or another process is building in it.
    """
    state = folder / STATE
    if folder.exists() and not state.is_dir() and (not folder.is_dir() or any(folder.iterdir())):
        raise BuildError(f"{folder}: exists and was not begun by build_data ({STATE}/ is missing); name another folder")
    state.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).mkdir(exist_ok=True)
    with locked(folder, "building in it", lock=state, error=BuildError):
        for leftover in (*folder.glob(".*.partial"), *folder.glob("*/.*.partial")):
            leftover.unlink()
        _check_settings(folder, common, stages, overwrite)
        yield


def _check_settings(
    folder: pathlib.Path, common: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], overwrite: bool
) -> None:
    """Compares the settings with those that the folder was begun with, and notes the new ones."""
    path = folder / STATE / _SETTINGS
    begun = msgspec.json.decode(path.read_bytes()) if path.is_file() else {"common": {}, "stages": {}}
    if overwrite and any(subset in begun["stages"] for subset in stages):
        (folder / INDEX).unlink(missing_ok=True)
        for subset in stages:
            begun["stages"].pop(subset, None)
            _discard(folder, subset)
    wanted = msgspec.to_builtins({"common": common, "stages": begun["stages"] | dict(stages)}, str_keys=True)
    wanted = msgspec.json.decode(msgspec.json.encode(wanted))  # tuples become lists, as in the file
    if begun["stages"]:
        _compare(folder, begun["common"], wanted["common"], overwrite)
    for subset, settings in begun["stages"].items():
        if subset in stages:
            _compare(folder, settings, wanted["stages"][subset], overwrite)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(wanted), indent=1) + b"\n")


def _compare(folder: pathlib.Path, begun: Mapping[str, Any], wanted: Mapping[str, Any], overwrite: bool) -> None:
    remedy = "build all its stages again" if overwrite else "pass --overwrite to replace it"
    check_begun(folder, begun, wanted, remedy=f"{remedy}, or name another folder", error=BuildError)


def _discard(folder: pathlib.Path, subset: str) -> None:
    """Removes a subset's shards; their facts, which say that they are done, go first."""
    for pattern in (f"{STATE}/{subset}-*.json", f"{REPORT}/{subset}-*.js", f"{subset}-*{SUFFIX}"):
        for path in folder.glob(pattern):
            path.unlink()


def list_data_files(facts: Sequence[ShardFacts]) -> list[DataFile]:
    """The shards' files as ``dataset.json`` counts them."""
    return [
        DataFile(name=f"{f.name}{SUFFIX}", records=f.records, subset=f.name.rpartition("-")[0], sha256=f.sha256)
        for f in facts
    ]


def count_rejected(facts: Sequence[ShardFacts]) -> dict[str, int]:
    """Rejected samples by reason over all shards, most frequent first."""
    total: collections.Counter[str] = collections.Counter()
    for one in facts:
        total.update(one.rejected)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def summarise_facts(facts: Sequence[ShardFacts]) -> DatasetSummary:
    """What the report shows of all shards together."""
    return merge_summaries([one.summary for one in facts])


def write_outcome(settings: DatasetSettings, common: dict[str, Any], folder: pathlib.Path) -> str:
    """Writes ``dataset.json`` and the page of the stages that are whole.

    Args:
      settings: The build's settings.
      common: Its ``pdgen.synthesis.shards.collect_common_settings``.
      folder: Its folder.

    Returns:
      A line that sums the data set up.
    """
    stages = _find_complete_stages(settings, folder)
    facts = _make_dataset_facts(common, stages)
    begun = read_stages(folder)
    origin = Origin(
        seed=settings.seed,
        tokenizer=common["tokenizer"],
        autoencoder=common["autoencoder"],
        settings=settings.common_to_dict() | {stage: begun[stage] for stage in stages},
    )
    every = [one for found in stages.values() for one in found]
    dataset = Dataset(files=list_data_files(every), origin=origin, facts=facts)
    rows = [(one.name, stage, one.summary.rows) for stage, found in stages.items() for one in found]
    write_atomically(folder / REPORT / "index.js", render_index(rows).encode())
    summaries = {stage: summarise_facts(found) for stage, found in stages.items()}
    page = render_dataset("Training data", summaries, facts, origin.settings | {"seed": settings.seed})
    write_atomically(folder / PAGE, page.encode())
    write_index(folder, dataset)
    counts = ", ".join(f"{stage} {summary.records:,}" for stage, summary in summaries.items())
    size = sum((folder / file.name).stat().st_size for file in dataset.files)
    return f"{folder}: {counts} records in {len(dataset.files)} files, {size / 1e6:.1f} MB; see {folder / PAGE}"


def _find_complete_stages(settings: DatasetSettings, folder: pathlib.Path) -> dict[str, list[ShardFacts]]:
    """The facts of every stage in the folder that has all its samples, in order."""
    found = {}
    for stage, begun in sorted(read_stages(folder).items(), key=lambda item: SUBSETS.index(item[0])):
        facts = read_facts(folder, stage)
        part = msgspec.convert(begun, type(getattr(settings, stage)))
        count, _ = msgspec.structs.replace(settings, **{stage: part}).count_samples(stage)
        if sum(one.records for one in facts) == count:
            found[stage] = facts
    return found


def _make_dataset_facts(common: dict[str, Any], stages: dict[str, list[ShardFacts]]) -> dict[str, Any]:
    """The facts of ``dataset.json``."""
    every = [one for facts in stages.values() for one in facts]
    leaked = {kind: [name for one in every for name in one.noted.get(kind, ())] for kind in ("exact", "normalised")}
    subsets = {}
    for stage, facts in stages.items():
        ours = make_table_row(summarise_facts(facts))._asdict()
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

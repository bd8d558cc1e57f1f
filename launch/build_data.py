"""Builds training data by stages: the subsets of the method, and what its base model learns.

python launch/build_data.py --config=configs/data_shapes.py --output=out/data --scale=0.1

Killed at any moment and started again, it goes on and comes to the same bytes. Look at OUTPUT/index.html.
"""

import functools
import importlib.metadata
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from pdgen.assets import shapes_folder
from pdgen.cli import fail, parse
from pdgen.data.records import Dataset, Origin, write_index
from pdgen.sample.engine import Sampler
from pdgen.sample.plans import first_plans
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.synthesis import build, runners, shards
from pdgen.synthesis.importers.samples import files_of
from pdgen.synthesis.leaks import geneval_digests
from pdgen.synthesis.page import browser_index, dataset_page, figures
from pdgen.synthesis.self_sampling import TOGETHER
from pdgen.synthesis.settings import SUBSETS, Settings, SettingsError, scaled
from pdgen.teachers.endpoint import Endpoint
from pdgen.train.export import find_checkpoint

CONFIG = config_flags.DEFINE_config_file("config", None, "File such as configs/data_shapes.py.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
STAGES = flags.DEFINE_list("stages", list(SUBSETS), f"Of {', '.join(SUBSETS)}.")
COUNT = flags.DEFINE_integer("count", None, "Samples of all subsets together, in the config's proportions.")
SCALE = flags.DEFINE_float("scale", 1.0, "Factor on the numbers of samples.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Make the stages anew, also where they were made otherwise.")
RUNNER = flags.DEFINE_enum("runner", "local", ["local", "ray"], "Processes of this machine, or a Ray cluster.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes of the local runner; 0 = one a core.", lower_bound=0)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the calls to remote teachers and their price; make nothing.")
flags.mark_flag_as_required("config")


def read_settings() -> tuple[Settings, list[str]]:
    """The config's settings, scaled, and the stages asked for that have any samples.

    Raises:
      ValueError: a setting is out of range, a key or a stage is unknown, or a stage lacks something.
    """
    settings = scaled(msgspec.convert(CONFIG.value.to_dict(), Settings), SCALE.value, COUNT.value)
    if unknown := [stage for stage in STAGES.value if stage not in SUBSETS]:
        raise SettingsError(f"--stages: {unknown[0]!r} is none of {', '.join(SUBSETS)}")
    stages = [s for s in SUBSETS if s in STAGES.value and settings.counts(s)[0]]
    if not stages:
        raise SettingsError(f"--stages={','.join(STAGES.value)}: the config has no samples for them")
    for stage in stages:
        if line := settings.lacking(stage):
            raise SettingsError(line)
    return settings, stages


def check_inputs(settings: Settings, stages: Sequence[str]) -> None:
    """Raises ValueError where prompts, a key, a checkpoint or an archive is missing, before anything is written."""
    shards.maker(settings)
    shards.hire(settings)
    if "conflict" in stages and settings.conflict.variant == "self":
        find_checkpoint(settings.conflict.checkpoint)
    if "alignment" in stages and settings.alignment.archive:
        files_of(pathlib.Path(settings.alignment.archive), ".tar")


def stays_here(settings: Settings, stage: str) -> bool:
    """Whether a stage is made in this process: it holds a checkpoint, a large model, or an archive's position."""
    alone = {"conflict": settings.conflict.variant == "self", "alignment": bool(settings.alignment.archive)}
    return alone.get(stage, False) or settings.teachers.painter == "kontext" or settings.teachers.remote


def stage_maker(settings: Settings, stage: str, folder: pathlib.Path) -> build.Make:
    """What makes the shards of a stage that stays here."""
    if stage == "conflict" and settings.conflict.variant == "self":
        sampler = Sampler.from_checkpoint(settings.conflict.checkpoint)
        write = first_plans(sampler, settings.conflict.temperature, TOGETHER)
        return shards.self_sampling_maker(settings, shards.hire(settings), write)
    if stage == "alignment" and settings.alignment.archive:

        def used(shard: build.Shard) -> int:
            earlier = build.known_facts(folder, stage)[: shard.number]
            return sum(facts.records + sum(facts.rejected.values()) for facts in earlier)

        return shards.archive_maker(settings, shards.hire(settings), used)
    return shards.maker(settings)


def chosen_runner() -> build.Runner:
    """The runner that the flags name."""
    if RUNNER.value == "ray":
        return runners.on_ray
    workers = WORKERS.value or runners.cores()
    return runners.here if workers == 1 else functools.partial(runners.in_processes, workers)


def build_stages(settings: Settings, stages: Sequence[str], folder: pathlib.Path) -> None:
    """Makes what the stages lack, with progress: together what may go to other processes, then the rest here."""
    wanted = {stage: build.cut(stage, settings.counts(stage)[0], settings.shard_size) for stage in stages}
    here = [stage for stage in stages if stays_here(settings, stage)]
    elsewhere = [shard for stage in stages if stage not in here for shard in wanted[stage]]
    with tqdm(total=sum(settings.counts(stage)[0] for stage in stages), unit=" samples", smoothing=0.05) as bar:

        def progress(facts: build.ShardFacts) -> None:
            bar.set_postfix_str(facts.name)
            bar.update(facts.records)

        build.run(folder, elsewhere, shards.maker(settings), chosen_runner(), progress)
        for stage in here:
            build.run(folder, wanted[stage], stage_maker(settings, stage, folder), runners.here, progress)


def common_settings(settings: Settings) -> dict[str, Any]:
    """What must be equal for a build to go on: settings, versions, tokenizer and autoencoder."""
    return {
        **settings.common(),
        "tokenizer": load_tokenizer(shapes_folder()).fingerprint,
        "autoencoder": shards.shapes_encoder()[1] if settings.latents else None,
        "versions": {name: importlib.metadata.version(name) for name in ("pdgen", "jax", "numpy", "pillow")},
    }


def whole_stages(settings: Settings, folder: pathlib.Path) -> dict[str, list[build.ShardFacts]]:
    """The facts of every stage in the folder that has all its samples, in order."""
    found = {}
    for stage, begun in sorted(build.begun_stages(folder).items(), key=lambda item: SUBSETS.index(item[0])):
        facts = build.known_facts(folder, stage)
        part = msgspec.convert(begun, type(getattr(settings, stage)))
        count, _ = msgspec.structs.replace(settings, **{stage: part}).counts(stage)
        if sum(one.records for one in facts) == count:
            found[stage] = facts
    return found


def told(settings: Settings, common: dict[str, Any], stages: dict[str, list[build.ShardFacts]]) -> dict[str, Any]:
    """The facts of ``dataset.json``."""
    every = [one for facts in stages.values() for one in facts]
    leaked = {kind: [name for one in every for name in one.noted.get(kind, ())] for kind in ("exact", "normalised")}
    subsets = {}
    for stage, facts in stages.items():
        ours = figures(build.total_summary(facts))._asdict()
        subsets[stage] = {key: value for key, value in ours.items() if value is not None}
    return {
        "subsets": subsets,
        "rejected": {stage: build.total_rejected(facts) for stage, facts in stages.items()},
        "leaks": {
            "prompts": sum(one.records for one in every),
            "benchmark": f"GenEval, {len(geneval_digests())} prompts",
            "exact": len(leaked["exact"]),
            "normalised": len(leaked["exact"]) + len(leaked["normalised"]),
            "records": leaked["exact"] + leaked["normalised"],
        },
        "versions": common["versions"],
    }


def write_outcome(settings: Settings, common: dict[str, Any], folder: pathlib.Path) -> str:
    """Writes ``dataset.json`` and the page; returns a line that sums the data set up."""
    stages = whole_stages(settings, folder)
    facts = told(settings, common, stages)
    begun = build.begun_stages(folder)
    origin = Origin(
        seed=settings.seed,
        tokenizer=common["tokenizer"],
        autoencoder=common["autoencoder"],
        settings=settings.common() | {stage: begun[stage] for stage in stages},
    )
    every = [one for found in stages.values() for one in found]
    dataset = Dataset(files=build.data_files(every), origin=origin, facts=facts)
    rows = [(one.name, stage, one.summary.rows) for stage, found in stages.items() for one in found]
    build.write_whole(folder / build.REPORT / "index.js", browser_index(rows).encode())
    summaries = {stage: build.total_summary(found) for stage, found in stages.items()}
    page = dataset_page("Training data", summaries, facts, origin.settings | {"seed": settings.seed})
    build.write_whole(folder / build.PAGE, page.encode())
    write_index(folder, dataset)
    counts = ", ".join(f"{stage} {summary.records:,}" for stage, summary in summaries.items())
    size = sum((folder / file.name).stat().st_size for file in dataset.files)
    return f"{folder}: {counts} records in {len(dataset.files)} files, {size / 1e6:.1f} MB; see {folder / build.PAGE}"


def dry_run(settings: Settings, stages: Sequence[str]) -> str:
    """What remote teachers would be asked, and its price. Nothing is sent and nothing written but the cache read."""
    if not settings.teachers.remote:
        return "no remote teacher is asked: the judge is exact and the writer follows rules"
    assert settings.teachers.endpoint is not None  # the settings check it
    endpoint = Endpoint(settings.teachers.endpoint, dry_run=True)
    teachers, prompts = shards.hire(settings, endpoint), shards.maker(settings).prompts
    for stage in stages:
        numbers = range(settings.counts(stage)[0])
        print(f"{stage}: counting the calls for {len(numbers):,} samples", file=sys.stderr)
        shards.dry_samples(settings, teachers, stage, numbers, prompts)
    pictures = getattr(teachers.painter, "pictures", None)
    lines = [endpoint.ledger.report()]
    return "\n".join(lines + ([] if pictures is None else [f"pictures by Kontext: {pictures:,}"]))


def run() -> str:
    """Builds, or runs dry, and returns the lines that sum it up."""
    settings, stages = read_settings()
    if DRY_RUN.value:
        return dry_run(settings, stages)
    check_inputs(settings, stages)
    folder, common = pathlib.Path(OUTPUT.value), common_settings(settings)
    with build.opened(folder, common, {stage: settings.of(stage) for stage in stages}, OVERWRITE.value):
        build_stages(settings, stages, folder)
        return write_outcome(settings, common, folder)


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # workers leave, their work is kept
    try:
        print(run())
    except (ValueError, OSError) as fault:  # every error class of pdgen and of msgspec is a ValueError
        fail(fault)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

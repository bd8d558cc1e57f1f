"""Builds training data, imports other data sets, and encodes the pictures of any.

python launch/build_data.py --config=configs/data_shapes.py --output=out/data --scale=0.1            build (the default)
python launch/build_data.py import --format=folder --source=drawings --output=out/drawings          import
python launch/build_data.py encode --data=out/drawings --checkpoint=bagel --output=out/encoded      encode
python launch/build_data.py encode --data=out/drawings --model=bagel_7b --autoencoder=BAGEL-7B-MoT --output=...

build makes the subsets of the method, or what its base model learns, stage by stage. Look at OUTPUT/index.html.

import reads BAGEL parquet, Zebra-CoT, ThinkMorph, UniCoT, GenRef, or one's own images. It leaves out what does not fit
the sequence grammar, counts it by reason and names it. pdgen/synthesis/importers describes the formats. Encode the
result before training.

encode adds autoencoder latents to the pictures, so that training never runs the encoder. It resizes pictures to what
the model takes.

build and encode resume after a kill and come to the same bytes. For one mode's flags: build_data.py MODE --help.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence

import jax
import msgspec
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from pdgen.assets import shapes_folder
from pdgen.checkpoints.load import find, load_autoencoder
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.cli import Mode, exit_on_sigterm, run_modes
from pdgen.config import PRESETS, SHAPES_AUTOENCODER, ModelConfig
from pdgen.data.encode import Encoder, encode_dataset
from pdgen.data.latents import BATCH_SIZE
from pdgen.sample.compiled import keep_compiled
from pdgen.sample.plans import make_plan_writer
from pdgen.sample.sampler import Sampler
from pdgen.sequence.images import image_sizes
from pdgen.synthesis import build, runners, shards
from pdgen.synthesis.importers import FORMATS, import_dataset
from pdgen.synthesis.importers.samples import files_of
from pdgen.synthesis.self_sampling import TOGETHER
from pdgen.synthesis.settings import SUBSETS, Settings, SettingsError, scaled
from pdgen.teachers.endpoint import Endpoint

CONFIG = config_flags.DEFINE_config_file("config", None, "File such as configs/data_shapes.py.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; to encode --data in place, pass --overwrite as well.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is there; build: also stages of other settings.")
STAGES = flags.DEFINE_list("stages", list(SUBSETS), f"Subsets to make, of {', '.join(SUBSETS)}.")
COUNT = flags.DEFINE_integer("count", None, "Samples of all subsets together, in the config's proportions.")
SCALE = flags.DEFINE_float("scale", 1.0, "Factor on the numbers of samples.")
RUNNER = flags.DEFINE_enum("runner", "local", ["local", "ray"], "Processes of this machine, or a Ray cluster.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes of the local runner; 0 = one a core.", lower_bound=0)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the calls to remote teachers and their price; make nothing.")

FORMAT = flags.DEFINE_enum("format", None, sorted(FORMATS), "Format of the source.")
SOURCE = flags.DEFINE_string("source", None, "File to read, or a folder of such files.")
RECORDS_PER_FILE = flags.DEFINE_integer("records_per_file", 1000, "Records in a written file.", lower_bound=1)

DATA = flags.DEFINE_string("data", None, "Data set to read.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A pdgen checkpoint or a training run's workdir.")
MODEL = flags.DEFINE_enum("model", None, sorted(PRESETS), "In place of a checkpoint: the sizes of this model.")
AUTOENCODER = flags.DEFINE_string(
    "autoencoder", None, "With --model: folder with its ae.safetensors; nano and tiny have shapes world's own."
)
BATCH = flags.DEFINE_integer("batch_size", BATCH_SIZE, "Pictures encoded at a time.", lower_bound=1)


def build_subsets() -> None:
    """Builds what the flags ask for, or prints its price, and prints a line that sums it up. Raises ValueError."""
    exit_on_sigterm()  # workers leave, and what they have finished stays
    settings, stages = read_settings()
    if DRY_RUN.value:
        print(price_teachers(settings, stages))
        return
    check_inputs(settings, stages)
    folder, common = pathlib.Path(OUTPUT.value), shards.common_settings(settings)
    with build.opened(folder, common, {stage: settings.of(stage) for stage in stages}, OVERWRITE.value):
        build_stages(settings, stages, folder)
        print(build.write_outcome(settings, common, folder))


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
        find(settings.conflict.checkpoint)
    if "alignment" in stages and settings.alignment.archive:
        files_of(pathlib.Path(settings.alignment.archive), ".tar")


def build_stages(settings: Settings, stages: Sequence[str], folder: pathlib.Path) -> None:
    """Makes what the stages lack, with progress: first what other processes may make, then the rest here."""
    wanted = {stage: build.cut(stage, settings.counts(stage)[0], settings.shard_size) for stage in stages}
    here = [stage for stage in stages if shards.stays_here(settings, stage)]
    elsewhere = [shard for stage in stages if stage not in here for shard in wanted[stage]]
    with tqdm(total=sum(settings.counts(stage)[0] for stage in stages), unit=" samples", smoothing=0.05) as bar:

        def progress(facts: build.ShardFacts) -> None:
            bar.set_postfix_str(facts.name)
            bar.update(facts.records)

        build.run(folder, elsewhere, shards.maker(settings), choose_runner(), progress)
        for stage in here:
            build.run(folder, wanted[stage], make_stage_maker(settings, stage, folder), runners.here, progress)


def choose_runner() -> build.Runner:
    """The runner that the flags name."""
    if RUNNER.value == "ray":
        return runners.on_ray
    workers = WORKERS.value or runners.cores()
    return runners.here if workers == 1 else functools.partial(runners.in_processes, workers)


def make_stage_maker(settings: Settings, stage: str, folder: pathlib.Path) -> build.Make:
    """Makes what makes the shards of a stage in this process."""
    if stage == "conflict" and settings.conflict.variant == "self":
        sampler = Sampler.from_checkpoint(settings.conflict.checkpoint)
        write = make_plan_writer(sampler, settings.conflict.temperature, TOGETHER)
        return shards.self_sampling_maker(settings, shards.hire(settings), write)
    if stage == "alignment" and settings.alignment.archive:

        def used(shard: build.Shard) -> int:
            earlier = build.known_facts(folder, stage)[: shard.number]
            return sum(facts.records + sum(facts.rejected.values()) for facts in earlier)

        return shards.archive_maker(settings, shards.hire(settings), used)
    return shards.maker(settings)


def price_teachers(settings: Settings, stages: Sequence[str]) -> str:
    """The calls to remote teachers and their price as lines. Sends nothing and writes nothing; reads the cache."""
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


def import_records() -> None:
    """Imports a data set and prints what was skipped and written. Raises ValueError, OSError."""
    exit_on_sigterm()
    folder = pathlib.Path(OUTPUT.value)
    dataset, tally = import_dataset(
        FORMAT.value,
        pathlib.Path(SOURCE.value),
        folder,
        records_per_file=RECORDS_PER_FILE.value,
        overwrite=OVERWRITE.value,
    )
    for held in dataset.facts["skipped"].values():
        print(f"skipped {held['samples']}: {held['first'][0]}")
    total = sum(tally.skipped.values())
    print(f"{folder}: {dataset.records} records in {len(dataset.files)} files, {total} skipped")


def encode_pictures() -> None:
    """Encodes a data set and prints a line that sums it up. Raises ValueError, OSError."""
    keep_compiled()
    source, target = pathlib.Path(DATA.value), pathlib.Path(OUTPUT.value)
    dataset = encode_dataset(source, target, read_encoder(), overwrite=OVERWRITE.value)
    size = sum((target / file.name).stat().st_size for file in dataset.files)
    print(f"{target}: {dataset.records} records in {len(dataset.files)} files, {size / 1e6:.1f} MB")


def read_encoder() -> Encoder:
    """The autoencoder that the flags name, and the model's picture sizes.

    Raises:
      ValueError: the flags contradict each other.
      CheckpointError, ConfigError: there is no checkpoint, or it is damaged.
    """
    if (CHECKPOINT.value is None) == (MODEL.value is None):
        raise ValueError("give either --checkpoint or --model")
    if CHECKPOINT.value is not None:
        if AUTOENCODER.value is not None:
            raise ValueError("--checkpoint has an autoencoder; leave --autoencoder out, or give --model instead")
        config, params = load_autoencoder(CHECKPOINT.value)
        return make_encoder(config, params)
    config = PRESETS[MODEL.value]
    if AUTOENCODER.value is None and config.autoencoder != SHAPES_AUTOENCODER:
        raise ValueError(f"--model={MODEL.value} needs --autoencoder, a folder with its ae.safetensors")
    return make_encoder(config, read_autoencoder(AUTOENCODER.value or shapes_folder(), config.autoencoder))


def make_encoder(config: ModelConfig, params: dict) -> Encoder:
    """The encoder of a model. Parameters become float32, so that a checkpoint's dtype changes little."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    return Encoder(config.autoencoder, params, image_sizes(config).vae, BATCH.value)


MODES = {
    "build": Mode(
        build_subsets,
        ("config", "output", "overwrite", "stages", "count", "scale", "runner", "workers", "dry_run"),
        needs=("config", "output"),
    ),
    "import": Mode(
        import_records,
        ("format", "source", "output", "overwrite", "records_per_file"),
        needs=("format", "source", "output"),
    ),
    "encode": Mode(
        encode_pictures,
        ("data", "output", "overwrite", "checkpoint", "model", "autoencoder", "batch_size"),
        needs=("data", "output"),
    ),
}

if __name__ == "__main__":
    run_modes(MODES, default="build")

"""Builds training data, imports other data sets, encodes pictures, and samples data for a learned verifier.

python launch/build_data.py --config=configs/data_shapes.py --output=out/data --scale=0.1            build (the default)
python launch/build_data.py import --format=folder --source=drawings --output=out/drawings          import
python launch/build_data.py encode --data=out/drawings --checkpoint=bagel --output=out/encoded      encode
python launch/build_data.py encode --data=out/drawings --model=bagel_7b --autoencoder=BAGEL-7B-MoT --output=...
python launch/build_data.py estimates --checkpoint=shapes --prompts=prompts.txt --output=out/estimates    estimates

build makes the subsets of the method, or the base model's training data, stage by stage. OUTPUT/index.html shows them.

import reads BAGEL parquet, Zebra-CoT, ThinkMorph, UniCoT, GenRef, a folder of your own images, or sampled trajectories
as preferences. It skips samples that do not fit the sequence grammar, and reports their number and the first one for
each reason. The formats are described in pdgen/synthesis/importers. Encode the result before training.

encode adds autoencoder latents to the pictures, so that training never runs the encoder. It resizes pictures to the
model's sizes.

estimates draws pictures of prompts of shapes world and asks of each, and of its estimates on the way, whether it shows
the prompt (configs/shapes_verifier.py). The exact verifier answers.

build and encode resume after a kill and give the same bytes. For one mode's flags: build_data.py MODE --help.
"""

import collections
import functools
import pathlib
import sys
from collections.abc import Sequence

import jax
import msgspec
import numpy as np
from absl import flags
from ml_collections import config_flags

from pdgen.assets import shapes_folder
from pdgen.checkpoints.load import find, load_autoencoder
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.cli import Mode, exit_on_sigterm, require, run_modes
from pdgen.config import PRESETS, SHAPES_AUTOENCODER
from pdgen.data.encode import Encoder, encode_dataset
from pdgen.data.latents import BATCH_SIZE
from pdgen.data.prompts import read_prompt_texts
from pdgen.data.records import Origin, is_dataset, write_dataset
from pdgen.files import check_target, check_writable
from pdgen.flow.denoise import ImageSettings
from pdgen.progress_bar import ProgressBar
from pdgen.sample.compiled import keep_compiled
from pdgen.sample.plans import make_plan_writer
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings
from pdgen.sample.strategies.estimates import make_estimate_records
from pdgen.sequence.images import image_sizes
from pdgen.synthesis import build, runners, shards
from pdgen.synthesis.importers import FORMATS, import_dataset
from pdgen.synthesis.importers.samples import list_files
from pdgen.synthesis.self_sampling import PLAN_BATCH_SIZE
from pdgen.synthesis.settings import SUBSETS, DatasetSettings, SettingsError, scale_settings
from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.verifier import ExactVerifier

CONFIG = config_flags.DEFINE_config_file("config", None, "File such as configs/data_shapes.py.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write. encode: may be --data, with --overwrite.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing output; build: also stages with other settings.")
STAGES = flags.DEFINE_list("stages", list(SUBSETS), f"Subsets to build, from {', '.join(SUBSETS)}.")
COUNT = flags.DEFINE_integer("count", None, "Total number of samples, in the config's proportions.")
SCALE = flags.DEFINE_float("scale", 1.0, "Factor on the numbers of samples.")
RUNNER = flags.DEFINE_enum("runner", "local", ["local", "ray"], "Processes of this machine, or a Ray cluster.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes of the local runner; 0 = one for each core.", lower_bound=0)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the calls to remote teachers and their price, and stop.")

FORMAT = flags.DEFINE_enum("format", None, sorted(FORMATS), "Format of the source.")
SOURCE = flags.DEFINE_string("source", None, "File to read, or a folder of such files.")
RECORDS_PER_FILE = flags.DEFINE_integer("records_per_file", 1000, "Records in a written file.", lower_bound=1)

DATA = flags.DEFINE_string("data", None, "Data set to read.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A pdgen checkpoint or a training run's workdir.")
MODEL = flags.DEFINE_enum("model", None, sorted(PRESETS), "Instead of --checkpoint: a preset with the model's sizes.")
AUTOENCODER = flags.DEFINE_string(
    "autoencoder", None, "With --model: folder with its ae.safetensors; nano and tiny use shapes world's."
)
BATCH = flags.DEFINE_integer("batch_size", BATCH_SIZE, "Pictures in a batch.", lower_bound=1)

PROMPTS = flags.DEFINE_string("prompts", None, "File of prompts, one a line.")
SAMPLES = flags.DEFINE_integer("samples", 4, "Pictures of each prompt.", lower_bound=1)
NUM_TIMESTEPS = flags.DEFINE_integer("num_timesteps", 50, "Points of a picture's schedule.", lower_bound=3)


def build_subsets() -> None:
    """Build the subsets, or print the price of their remote teachers, and print a summary line."""
    exit_on_sigterm()  # workers end, and finished shards stay
    settings, stages = read_settings()
    if DRY_RUN.value:
        print(price_teachers(settings, stages))
        return
    check_writable(require(OUTPUT))
    check_inputs(settings, stages)
    folder, common = pathlib.Path(require(OUTPUT)), shards.collect_common_settings(settings)
    subsets = {stage: msgspec.to_builtins(getattr(settings, stage)) for stage in stages}
    with build.open_build(folder, common, subsets, OVERWRITE.value):
        build_stages(settings, stages, folder)
        print(build.write_outcome(settings, common, folder))


def read_settings() -> tuple[DatasetSettings, list[str]]:
    """Return the config's settings, scaled, and the selected stages that have samples."""
    settings = scale_settings(msgspec.convert(CONFIG.value.to_dict(), DatasetSettings), SCALE.value, COUNT.value)
    if unknown := [stage for stage in STAGES.value if stage not in SUBSETS]:
        raise SettingsError(f"--stages: {unknown[0]!r} is none of {', '.join(SUBSETS)}")
    stages = [s for s in SUBSETS if s in STAGES.value and settings.count_samples(s)[0]]
    if not stages:
        raise SettingsError(f"--stages={','.join(STAGES.value)}: the config has no samples for them")
    for stage in stages:
        if line := settings.find_missing(stage):
            raise SettingsError(line)
    return settings, stages


def check_inputs(settings: DatasetSettings, stages: Sequence[str]) -> None:
    """Raise ValueError if prompts, a key, a checkpoint or an archive is missing, before anything is written."""
    shards.read_prompts(settings)
    shards.make_teachers(settings)
    if "conflict" in stages and settings.conflict.variant == "self":
        find(settings.conflict.checkpoint)
    if "alignment" in stages and settings.alignment.archive:
        list_files(pathlib.Path(settings.alignment.archive), ".tar")


def build_stages(settings: DatasetSettings, stages: Sequence[str], folder: pathlib.Path) -> None:
    """Build the missing shards with progress: first those that workers may make, then the rest in this process."""
    wanted = {stage: build.cut_shards(stage, settings.count_samples(stage)[0], settings.shard_size) for stage in stages}
    here = [stage for stage in stages if shards.needs_main_process(settings, stage)]
    elsewhere = [shard for stage in stages if stage not in here for shard in wanted[stage]]
    with ProgressBar(
        total=sum(settings.count_samples(stage)[0] for stage in stages), unit=" samples", smoothing=0.05
    ) as bar:

        def progress(facts: build.ShardFacts) -> None:
            bar.set_postfix_str(facts.name)
            bar.update(facts.records)

        build.build_shards(folder, elsewhere, shards.make_shard_maker(settings), choose_runner(), progress)
        for stage in here:
            build.build_shards(folder, wanted[stage], make_stage_maker(settings, stage, folder), map, progress)


def choose_runner() -> build.Runner:
    """Return the runner that the flags select."""
    if RUNNER.value == "ray":
        return runners.run_on_ray
    workers = WORKERS.value or runners.count_cores()
    return map if workers == 1 else functools.partial(runners.run_in_processes, workers)


def make_stage_maker(settings: DatasetSettings, stage: str, folder: pathlib.Path) -> build.Make:
    """Return the function that makes a stage's shards in this process."""
    if stage == "conflict" and settings.conflict.variant == "self":
        sampler = Sampler.from_checkpoint(settings.conflict.checkpoint)
        write = make_plan_writer(sampler, settings.conflict.temperature, PLAN_BATCH_SIZE)
        return shards.make_self_sampling_maker(settings, shards.make_teachers(settings), write)
    if stage == "alignment" and settings.alignment.archive:

        def used(shard: build.Shard) -> int:
            earlier = build.read_facts(folder, stage)[: shard.number]
            return sum(facts.records + sum(facts.rejected.values()) for facts in earlier)

        return shards.make_archive_maker(settings, shards.make_teachers(settings), used)
    return shards.make_shard_maker(settings)


def price_teachers(settings: DatasetSettings, stages: Sequence[str]) -> str:
    """Return the calls to remote teachers and their price as lines. Answers in the cache are not counted."""
    if not settings.teachers.remote:
        return "no remote teacher: the judge is exact and the writer follows rules"
    assert settings.teachers.endpoint is not None  # the settings check it
    endpoint = Endpoint(settings.teachers.endpoint, dry_run=True)
    teachers, prompts = shards.make_teachers(settings, endpoint), shards.read_prompts(settings)
    for stage in stages:
        numbers = range(settings.count_samples(stage)[0])
        print(f"{stage}: counting the calls for {len(numbers):,} samples", file=sys.stderr)
        shards.run_dry(settings, teachers, stage, numbers, prompts)
    pictures = getattr(teachers.painter, "pictures", None)
    lines = [endpoint.ledger.report()]
    return "\n".join(lines + ([] if pictures is None else [f"pictures by Kontext: {pictures:,}"]))


def import_records() -> None:
    """Import a data set and print what was skipped and written."""
    exit_on_sigterm()
    folder = pathlib.Path(require(OUTPUT))
    check_writable(folder.absolute().parent)  # the folder itself is renamed into place when it is finished
    dataset, tally = import_dataset(
        require(FORMAT),
        pathlib.Path(require(SOURCE)),
        folder,
        records_per_file=RECORDS_PER_FILE.value,
        overwrite=OVERWRITE.value,
    )
    for skipped in dataset.facts["skipped"].values():
        print(f"skipped {skipped['samples']}: {skipped['first'][0]}")
    total = sum(tally.skipped.values())
    print(f"{folder}: {dataset.records} records in {len(dataset.files)} files, {total} skipped")


def encode_pictures() -> None:
    """Encode a data set and print a summary line."""
    keep_compiled()
    source, target = pathlib.Path(require(DATA)), pathlib.Path(require(OUTPUT))
    check_writable(target.absolute().parent)
    dataset = encode_dataset(source, target, read_encoder(), overwrite=OVERWRITE.value)
    size = sum((target / file.name).stat().st_size for file in dataset.files)
    print(f"{target}: {dataset.records} records in {len(dataset.files)} files, {size / 1e6:.1f} MB")


def read_encoder() -> Encoder:
    """Load the autoencoder that the flags select, with the model's picture sizes.

    Parameters become float32, so that a checkpoint's dtype has little effect.
    """
    if (CHECKPOINT.value is None) == (MODEL.value is None):
        raise ValueError("give either --checkpoint or --model")
    if CHECKPOINT.value is not None:
        if AUTOENCODER.value is not None:
            raise ValueError("--checkpoint contains an autoencoder; leave --autoencoder out, or give --model instead")
        config, params = load_autoencoder(CHECKPOINT.value)
    else:
        config = PRESETS[require(MODEL)]
        if AUTOENCODER.value is None and config.autoencoder != SHAPES_AUTOENCODER:
            raise ValueError(f"--model={MODEL.value} needs --autoencoder, a folder with its ae.safetensors")
        params = read_autoencoder(AUTOENCODER.value or shapes_folder(), config.autoencoder)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    return Encoder(config.autoencoder, params, image_sizes(config).vae, BATCH.value)


def sample_estimates() -> None:
    """Sample pictures with their estimates, write the questions about them and print a summary line."""
    exit_on_sigterm()
    keep_compiled()
    folder, prompts = pathlib.Path(require(OUTPUT)), read_prompt_texts(pathlib.Path(require(PROMPTS)))
    check_writable(folder.absolute().parent)
    check_target(folder, "data set", is_dataset, OVERWRITE.value)
    sampler = Sampler.from_checkpoint(require(CHECKPOINT))
    image = ImageSettings(num_timesteps=NUM_TIMESTEPS.value)
    settings, skipped = SampleSettings(mode="single_pass", image=image), collections.Counter()
    made = make_estimate_records(sampler, ExactVerifier(), prompts, SAMPLES.value, settings, skipped=skipped)
    origin = Origin(
        seed=0, tokenizer=sampler.model.tokenizer.fingerprint, settings={"checkpoint": sampler.model.digest}
    )
    dataset = write_dataset(folder, made, origin, overwrite=OVERWRITE.value)
    for fault, count in skipped.most_common(3):
        print(f"skipped {count} pictures: {fault}")
    print(f"{folder}: {dataset.records} records in {len(dataset.files)} files")


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
    "estimates": Mode(
        sample_estimates,
        ("checkpoint", "prompts", "output", "overwrite", "samples", "num_timesteps"),
        needs=("checkpoint", "prompts", "output"),
    ),
}

if __name__ == "__main__":
    run_modes(MODES, default="build")

"""Makers of shards: they create the teachers, make the samples of a shard and add latents."""

import dataclasses
import functools
import importlib.metadata
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from pdgen.assets import shapes_folder
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import SHAPES_AUTOENCODER
from pdgen.data.latents import Encode, add_latents, fingerprint_autoencoder, make_encoder
from pdgen.data.prompts import PromptError, read_prompt_texts
from pdgen.json_text import decode_json
from pdgen.sequence.images import Picture
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Record, Text, format_plan
from pdgen.shapes.placement import PLACEMENTS
from pdgen.synthesis.build import Shard, ShardContent
from pdgen.synthesis.importers.genref import make_archive_samples
from pdgen.synthesis.importers.reflection import read_genref
from pdgen.synthesis.leaks import find_leak
from pdgen.synthesis.self_sampling import PlanWriter, make_self_sampled
from pdgen.synthesis.settings import Conflict, DatasetSettings, SettingsError
from pdgen.synthesis.story import Teachers
from pdgen.synthesis.subsets import Samples, make_samples
from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.exact.painter import ShapesPainter
from pdgen.teachers.exact.writer import RulesWriter
from pdgen.teachers.kontext import KontextPainter
from pdgen.teachers.protocols import Stroke
from pdgen.teachers.remote_teachers import EndpointJudge, EndpointWriter


@dataclasses.dataclass
class BlankPainter:
    """The painter of a dry run, which only counts pictures."""

    size: int
    pictures: int = 0
    name: str = "blank"

    def paint(self, stroke: Stroke) -> Picture:
        """Return a grey picture."""
        self.pictures += 1
        return np.full((self.size, self.size, 3), 128, np.uint8)


def make_teachers(settings: DatasetSettings, endpoint: Endpoint | None = None) -> Teachers:
    """Make the teachers of the settings. With a dry ``endpoint`` all teachers are dry; None: the one of the settings.

    Raises:
      TeacherError: the endpoint's key is missing.
    """
    wanted = settings.teachers
    if endpoint is None and wanted.endpoint is not None and wanted.remote:
        endpoint = Endpoint(wanted.endpoint)
    dry = endpoint is not None and endpoint.dry_run
    painter = ShapesPainter(settings.image_size) if wanted.painter == "shapes" else KontextPainter(wanted.kontext)
    if dry and wanted.painter == "kontext":
        painter = BlankPainter(wanted.kontext.size)
    return Teachers(
        painter=painter,
        judge=EndpointJudge(endpoint) if endpoint and wanted.judge == "endpoint" else ExactJudge(),
        writer=EndpointWriter(endpoint) if endpoint and wanted.writer == "endpoint" else RulesWriter(),
        placement=PLACEMENTS[settings.positions] if wanted.painter == "shapes" else None,
        judge_explains=wanted.judge == "endpoint",
        redraws=wanted.redraws,
        assumed=dry,
    )


@functools.cache
def load_shapes_encoder() -> tuple[Encode, str]:
    """Load shapes world's autoencoder. Returns its encoder, which each process compiles once, and its fingerprint."""
    weights = read_autoencoder(shapes_folder(), SHAPES_AUTOENCODER)
    return make_encoder(SHAPES_AUTOENCODER, weights), fingerprint_autoencoder(weights)


@functools.lru_cache(1)
def _decode_settings(settings: bytes) -> tuple[DatasetSettings, Teachers]:
    decoded = decode_json(settings, DatasetSettings)
    return decoded, make_teachers(decoded)


def find_leaks(records: Sequence[Record]) -> dict[str, list[str]]:
    """Find records whose prompt is one of GenEval's. Returns their ids by "exact" and "normalised"."""
    leaks: dict[str, list[str]] = {}
    for record in records:
        prompt = next(s for s in record.segments if isinstance(s, Text) and s.stage == "prompt")
        if kind := find_leak(prompt.text):
            leaks.setdefault(kind, []).append(record.id)
    return leaks


def finish_shard(settings: DatasetSettings, samples: Samples) -> ShardContent:
    """Add latents to the samples if the settings ask for them, and find leaks."""
    records = add_latents(samples.records, load_shapes_encoder()[0]) if settings.latents else samples.records
    return ShardContent(records, samples.rejected, find_leaks(records))


def collect_common_settings(settings: DatasetSettings) -> dict[str, Any]:
    """Collect what must be equal to resume a build: settings, versions, tokenizer and autoencoder."""
    return {
        **settings.common_to_dict(),
        "tokenizer": load_tokenizer(shapes_folder()).fingerprint,
        "autoencoder": load_shapes_encoder()[1] if settings.latents else None,
        "versions": {name: importlib.metadata.version(name) for name in ("pdgen", "jax", "numpy", "pillow")},
    }


def needs_main_process(settings: DatasetSettings, stage: str) -> bool:
    """Return whether a stage must run in this process, which has a checkpoint, a large model or an open archive."""
    alone = {"conflict": settings.conflict.variant == "self", "alignment": bool(settings.alignment.archive)}
    return alone.get(stage, False) or settings.teachers.painter == "kontext" or settings.teachers.remote


def read_prompts(settings: DatasetSettings) -> list[str]:
    """Read the settings' file of prompts, if any. Raises SettingsError if it cannot be read."""
    path = settings.teachers.prompts
    try:
        return read_prompt_texts(pathlib.Path(path)) if path else []
    except PromptError as fault:
        raise SettingsError(f"teachers.prompts: {fault}") from None


def make_shard_maker(settings: DatasetSettings) -> Callable[[Shard], ShardContent]:
    """Make a picklable function that makes any shard of a data set. Raises SettingsError as ``read_prompts``."""
    return functools.partial(_make_shard, msgspec.json.encode(settings), read_prompts(settings))


def _make_shard(encoded: bytes, prompts: Sequence[str], shard: Shard) -> ShardContent:
    settings, teachers = _decode_settings(encoded)
    numbers, threads = range(shard.start, shard.stop), _count_threads(settings)
    return finish_shard(settings, make_samples(settings, teachers, shard.subset, numbers, prompts, threads))


def make_self_sampling_maker(
    settings: DatasetSettings, teachers: Teachers, write: PlanWriter
) -> Callable[[Shard], ShardContent]:
    """Make a function that makes shards of the conflict subset in this process, which has the sampler."""
    prompts = read_prompts(settings)

    def make(shard: Shard) -> ShardContent:
        numbers = range(shard.start, shard.stop)
        return finish_shard(settings, make_self_sampled(settings, teachers, numbers, write, prompts))

    return make


def make_archive_maker(
    settings: DatasetSettings, teachers: Teachers, used: Callable[[Shard], int]
) -> Callable[[Shard], ShardContent]:
    """Make a function that makes shards of the alignment subset from GenRef, in order and in this process.

    ``used`` returns how many samples of the archive the shards before the given one have used or rejected.
    """
    position, outcomes = 0, iter(())  # type: int, Iterator[Outcome]

    def make(shard: Shard) -> ShardContent:
        nonlocal position, outcomes
        start = used(shard)
        if start < position or position == 0:
            position, outcomes = 0, read_genref(pathlib.Path(settings.alignment.archive))
        for _ in itertools.islice(outcomes, start - position):
            pass
        samples = make_archive_samples(settings, teachers, outcomes, range(shard.start, shard.stop))
        position = start + len(samples.records) + sum(samples.rejected.values())
        return finish_shard(settings, samples)

    return make


def run_dry(settings: DatasetSettings, teachers: Teachers, subset: str, numbers: range, prompts: Sequence[str]) -> None:
    """Make samples with dry teachers, which count the requests.

    A dry run has no checkpoint, so it assumes that every plan of self-sampling is accepted.
    """
    if subset == "conflict" and settings.conflict.variant == "self":
        total, _ = settings.count_samples(subset)
        alike = msgspec.structs.replace(settings, conflict=Conflict(positive=total, negative=0))
        make_self_sampled(
            alike, teachers, numbers, lambda asked, seeds: [format_plan("Draw it.", text) for text in asked], prompts
        )
    elif subset == "alignment" and settings.alignment.archive:
        make_archive_samples(settings, teachers, read_genref(pathlib.Path(settings.alignment.archive)), numbers)
    else:
        make_samples(settings, teachers, subset, numbers, prompts, _count_threads(settings))


def _count_threads(settings: DatasetSettings) -> int:
    endpoint = settings.teachers.endpoint
    return endpoint.concurrency if endpoint is not None and settings.teachers.remote else 1

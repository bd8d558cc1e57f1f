"""Data for a learned verifier: a sampler's own estimates of pictures on their way, labelled by what became of them."""

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from pdgen.progress_bar import ProgressBar
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings
from pdgen.sample.strategies.verifier import make_verdict_record
from pdgen.sequence.trajectory import Record
from pdgen.teachers.protocols import Declined, Verifier

JUDGED = (0.25, 0.5, 0.75)  # shares of the steps after which estimates are kept, besides the finished picture


class Estimates(NamedTuple):
    """A single-pass picture of a prompt: by share of its steps the estimate of the clean picture; at 1 itself."""

    prompt: str
    seed: int
    pictures: dict[float, PIL.Image.Image]


def draw_estimates(
    sampler: Sampler,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SampleSettings,
    judged: Sequence[float] = JUDGED,
) -> list[Estimates]:
    """Draw one picture per prompt and seed, with its estimates. Raises SampleError as ``Sampler``.

    ``settings`` have mode "single_pass". ``judged`` ascend within (0, 1), as in ``search.Parm``.
    """
    batch = sampler.make_batch(sampler.make_starts(prompts, seeds, settings), settings)
    denoising = batch.begin_images(range(len(prompts)))
    pictures: list[dict[float, PIL.Image.Image]] = [{} for _ in prompts]
    for share in judged:
        denoising.advance(max(1, round(share * denoising.steps)))
        for slot, picture in denoising.decode_estimates().items():
            pictures[slot][share] = picture
    batch.finish_images(denoising)
    batch.settle()
    for slot, found in enumerate(pictures):
        found[1.0] = batch.make_trajectory(slot).images[-1]
    return [Estimates(*one) for one in zip(prompts, seeds, pictures, strict=True)]


def make_estimate_records(
    sampler: Sampler,
    verifier: Verifier,
    prompts: Sequence[str],
    samples: int,
    settings: SampleSettings,
    seed: int = 0,
    skipped: collections.Counter[str] | None = None,
) -> Iterator[Record]:
    """Yield the records of questions about estimates of ``samples`` pictures of each prompt, prompt by prompt.

    The answer is whether the finished picture has all that the prompt asks for by ``verifier``: of an estimate this is
    what PARM calls its potential. ``scene`` has ``prompt``, ``share``, that of the steps, and ``exact``, the verifier's
    score of the estimate. Prompts that it cannot judge are counted in ``skipped``.
    """
    size = sampler.resolve_batch_size(settings, samples * len(prompts)).batch_size
    jobs = [(prompt, seed + number) for number, prompt in enumerate(p for p in prompts for _ in range(samples))]
    for first in ProgressBar(range(0, len(jobs), size), desc="estimates", unit="batch"):
        part = jobs[first : first + size]
        for one in draw_estimates(sampler, [prompt for prompt, _ in part], [own for _, own in part], settings):
            try:
                scores = {share: verifier.score(one.prompt, np.asarray(p)) for share, p in one.pictures.items()}
            except Declined as fault:
                if skipped is not None:
                    skipped[str(fault)] += 1
                continue
            for share, picture in one.pictures.items():
                facts = {"prompt": one.prompt, "share": share, "exact": scores[share]}
                name = f"{one.seed}/{share:g}"
                yield make_verdict_record(name, one.prompt, np.asarray(picture), scores[1.0] == 1, facts)

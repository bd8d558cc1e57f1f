"""The part of a run that one process samples."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from pdgen.files import Log
from pdgen.sample.estimate import format_estimate, measure_speed
from pdgen.sample.runs.folder import SampleRun
from pdgen.sample.runs.jobs import read_picture
from pdgen.sample.sampler import Sampler
from pdgen.sample.strategies import table as strategies
from pdgen.sequence.trajectory import Trajectory
from pdgen.teachers.advisers import Advisers


class Share(NamedTuple):
    """The part of a run that one process samples.

    Attributes:
      run: the run of all processes.
      starts: the initial trajectories of this process, by name.
    """

    sampler: Sampler
    run: SampleRun
    advisers: Advisers
    starts: dict[str, Trajectory]


def make_share(sampler: Sampler, run: SampleRun, advisers: Advisers) -> Share:
    """Read the given images of this process's jobs and return its share of the run.

    Raises:
      PromptError, SampleError: a given image cannot be read, or a job cannot be sampled with the run's settings.
    """
    jobs = run.jobs[jax.process_index() :: jax.process_count()]
    if not jobs:
        return Share(sampler, run, advisers, {})
    pictures = {path: read_picture(path) for path in dict.fromkeys(image.path for job in jobs for image in job.images)}
    given = [[pictures[image.path] for image in job.images] for job in jobs]
    starts = sampler.make_starts([job.prompt for job in jobs], [job.seed for job in jobs], run.settings, given)
    return Share(sampler, run, advisers, {job.name: start for job, start in zip(jobs, starts)})


def describe_share(share: Share) -> str:
    """Return lines that say what memory and time the share needs at most; the model's parameters may be shapes."""
    model = share.sampler.model
    speed = measure_speed(model.compute.dtype, bus=model.offload is not None)
    needed = share.sampler.estimate([*share.starts.values()], share.run.settings, speed)
    return "\n".join(format_estimate(model, needed, speed))


def sample_share(share: Share, log: Log, done: Callable[[str, Trajectory], None]) -> None:
    """Sample trajectories from their starts.

    Args:
      log: receives a line for every stage.
      done: called with each name and trajectory as soon as it ends.

    Raises:
      ValueError: sampling fails; any error class of pdgen.
    """
    run, starts, names = share.run, share.starts, list(share.starts)
    if not run.strategy:
        if starts:
            share.sampler.resume_all(
                [*starts.values()], run.settings, log, done=lambda n, trajectory: done(names[n], trajectory)
            )
        return
    strategy = strategies.make_strategy(run.strategy, **run.options)
    for first in range(0, len(names), run.settings.batch_size):
        group = names[first : first + run.settings.batch_size]
        prompts, seeds = [starts[name].prompt for name in group], [starts[name].seed for name in group]
        task = strategies.Task(share.sampler, prompts, seeds, run.settings, share.advisers, log)
        for name, trajectory in zip(group, strategies.run_strategy(strategy, task)):
            done(name, trajectory)

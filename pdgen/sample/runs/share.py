"""The part of a run that one process samples."""

from collections.abc import Callable
from typing import NamedTuple

from pdgen.files import Log
from pdgen.sample.runs.folder import SampleRun
from pdgen.sample.sampler import Sampler
from pdgen.sample.strategies import table as strategies
from pdgen.sequence.trajectory import Trajectory
from pdgen.teachers.advisers import Advisers


class Share(NamedTuple):
    """The part of a run that one process samples.

    Attributes:
      sampler: the sampler.
      run: the run of all processes.
      advisers: the advisers of strategies.
      starts: the initial trajectories by name.
    """

    sampler: Sampler
    run: SampleRun
    advisers: Advisers
    starts: dict[str, Trajectory]


def sample_share(share: Share, log: Log, done: Callable[[str, Trajectory], None]) -> None:
    """Sample trajectories from their starts.

    Args:
      share: the part of the run.
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

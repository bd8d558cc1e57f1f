"""Long jobs in stages; each stage is one of the project's commands in its own process.

A file with the stage's arguments marks a finished stage. A restarted job skips finished stages, and refuses to mix in
results of other arguments. An interrupted stage runs again, since the commands themselves resume. Stages that do not
need each other can run side by side: on a CPU, two small trainings with a core each are faster than one after the other
with both.

    FOLDER/<stage>.log, <stage>.done
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

from pdgen.files import new_file
from pdgen.json_text import load_json
from pdgen.progress_bar import ProgressBar

_TAIL = 300  # characters of a failed command's last line
_POLL = 0.1  # seconds between looks at the running commands


class StageError(ValueError):
    """A stage failed, or was finished with other arguments; one line names its files and the remedy."""


class Stage(NamedTuple):
    """One command: its name, the folder of its log and mark, its arguments, and the marks of the stages it needs."""

    name: str
    folder: pathlib.Path
    arguments: tuple[str, ...]
    needs: tuple[pathlib.Path, ...] = ()

    @property
    def mark(self) -> pathlib.Path:
        """The file that marks the stage as finished."""
        return self.folder / f"{self.name}.done"

    @property
    def log(self) -> pathlib.Path:
        """The file with what the command printed."""
        return self.folder / f"{self.name}.log"

    def command(self, launch: pathlib.Path) -> list[str]:
        """Return the command line; ``launch`` is the folder of the commands."""
        return [sys.executable, str(launch / f"{self.name}.py"), *self.arguments]


def run_stages(stages: Sequence[Stage], launch: pathlib.Path, jobs: int = 1) -> None:
    """Run the unfinished stages in order, or up to ``jobs`` of them side by side, each on its share of the CPUs.

    Args:
      stages: each after those it needs.
      launch: folder of the commands.
      jobs: number of commands at the same time.

    Raises:
      StageError: a stage failed, or was finished with other arguments. The stages that still run are terminated.
      ValueError: there are more jobs than CPUs.
    """
    waiting = [stage for stage in stages if not _is_finished(stage)]
    free, running = _split_cpus(jobs), {}
    with ProgressBar(total=len(stages), initial=len(stages) - len(waiting), unit=" stages") as bar:
        try:
            while waiting or running:
                unfinished = {stage.mark for stage in (*waiting, *(stage for stage, _ in running.values()))}
                ready = [stage for stage in waiting if unfinished.isdisjoint(stage.needs)]
                if free and ready:
                    waiting.remove(ready[0])
                    bar.write(f"{ready[0].folder}: {' '.join(ready[0].command(launch)[1:])}")
                    cpus = free.pop(0)
                    running[_start(ready[0], launch, cpus)] = ready[0], cpus
                    continue
                ended = [process for process in running if process.poll() is not None]
                if not ended:
                    time.sleep(_POLL)
                for process in ended:
                    stage, cpus = running.pop(process)
                    free.append(cpus)
                    _finish(stage, process.returncode)
                    bar.update()
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _is_finished(stage: Stage) -> bool:
    """Return whether the stage is marked. Raises StageError if that was with other arguments."""
    if not stage.mark.exists():
        return False
    if load_json(stage.mark.read_bytes()) != list(stage.arguments):
        raise StageError(
            f"{stage.mark}: was made with other arguments; choose another --output, or remove {stage.mark} and what it "
            "marks"
        )
    return True


def _split_cpus(jobs: int) -> list[set[int]]:
    """Return the CPUs of each job; empty sets where the system cannot bind a process to CPUs."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(jobs)]
    cpus = sorted(os.sched_getaffinity(0))
    if jobs > len(cpus):
        raise ValueError(f"--jobs={jobs}, but this process may use {len(cpus)} CPUs; give at most so many")
    return [set(cpus[job::jobs]) for job in range(jobs)]


def _start(stage: Stage, launch: pathlib.Path, cpus: set[int]) -> subprocess.Popen:
    """Start the command of a stage, with its output in the stage's log."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    with stage.log.open("wb") as output, _bound_to(cpus):
        return subprocess.Popen(stage.command(launch), stdout=output, stderr=subprocess.STDOUT)


@contextlib.contextmanager
def _bound_to(cpus: set[int]) -> Generator[None]:
    """Bind this thread, and so the processes that it starts, to some CPUs; an empty set binds nothing."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _finish(stage: Stage, status: int) -> None:
    """Mark a stage whose command has ended. Raises StageError if it failed."""
    if status:
        lines = stage.log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise StageError(
            f"{stage.folder}: {stage.name} ended with status {status}: {lines[-1][-_TAIL:]} (full log: {stage.log}); "
            "start again to resume"
        )
    with new_file(stage.mark) as partial:
        partial.write_text(json.dumps(stage.arguments) + "\n")

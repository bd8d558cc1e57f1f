"""Long work in stages, each of which is one of the project's own commands in a process of its own.

A stage that has ended is marked by a file that holds its arguments. Work that is started again leaves it out, and
refuses to mix in what was made by other arguments. A stage that was stopped runs again: the commands themselves resume.

    FOLDER/<stage>.log, <stage>.done
"""

import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

from pdgen.files import Log, new_file

_TAIL = 300  # characters of a failed command's last line


class StageError(ValueError):
    """A stage failed, or was made by other arguments; one line names its files and the remedy."""


class Stage(NamedTuple):
    """One command: what it is called, the folder of its log and mark, and its arguments."""

    name: str
    folder: pathlib.Path
    arguments: tuple[str, ...]

    def command(self, launch: pathlib.Path) -> list[str]:
        """The command in words; ``launch`` is the folder of the commands."""
        return [sys.executable, str(launch / f"{self.name}.py"), *self.arguments]


def run(stage: Stage, launch: pathlib.Path, say: Log) -> None:
    """Runs a stage, or leaves it out where it has ended.

    Args:
      stage: what to run.
      launch: folder of the commands.
      say: takes a line for the user: the command, if it runs.

    Raises:
      StageError: it failed, or had ended with other arguments.
    """
    done, log = stage.folder / f"{stage.name}.done", stage.folder / f"{stage.name}.log"
    if done.exists():
        if json.loads(done.read_text()) != list(stage.arguments):
            raise StageError(
                f"{done}: was made by other arguments; choose another --output, or remove {done} and what it marks"
            )
        return
    stage.folder.mkdir(parents=True, exist_ok=True)
    command = stage.command(launch)
    say(f"{stage.folder}: {' '.join(command[1:])}")
    with log.open("wb") as output:
        ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
    if ended.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise StageError(
            f"{stage.folder}: {stage.name} ended with status {ended.returncode}: "
            f"{lines[-1][-_TAIL:]} (all of it in {log}); start again to go on"
        )
    with new_file(done) as partial:
        partial.write_text(json.dumps(stage.arguments) + "\n")

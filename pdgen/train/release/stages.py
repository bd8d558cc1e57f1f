"""Long jobs in stages; each stage is one of the project's commands in its own process.

A file with the stage's arguments marks a finished stage. A restarted job skips finished stages, and refuses to mix in
results of other arguments. An interrupted stage runs again, since the commands themselves resume.

    FOLDER/<stage>.log, <stage>.done
"""

import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

from pdgen.files import Log, new_file
from pdgen.json_text import load_json

_TAIL = 300  # characters of a failed command's last line


class StageError(ValueError):
    """A stage failed, or was finished with other arguments; one line names its files and the remedy."""


class Stage(NamedTuple):
    """One command: its name, the folder of its log and mark, and its arguments."""

    name: str
    folder: pathlib.Path
    arguments: tuple[str, ...]

    def command(self, launch: pathlib.Path) -> list[str]:
        """Return the command line; ``launch`` is the folder of the commands."""
        return [sys.executable, str(launch / f"{self.name}.py"), *self.arguments]


def run_stage(stage: Stage, launch: pathlib.Path, log: Log) -> None:
    """Run a stage unless it is finished; ``launch`` is the folder of the commands.

    Raises:
      StageError: the stage failed, or was finished with other arguments.
    """
    done, log_file = stage.folder / f"{stage.name}.done", stage.folder / f"{stage.name}.log"
    if done.exists():
        if load_json(done.read_bytes()) != list(stage.arguments):
            raise StageError(
                f"{done}: was made with other arguments; choose another --output, or remove {done} and what it marks"
            )
        return
    stage.folder.mkdir(parents=True, exist_ok=True)
    command = stage.command(launch)
    log(f"{stage.folder}: {' '.join(command[1:])}")
    with log_file.open("wb") as output:
        result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
    if result.returncode:
        lines = log_file.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise StageError(
            f"{stage.folder}: {stage.name} ended with status {result.returncode}: "
            f"{lines[-1][-_TAIL:]} (full log: {log_file}); start again to resume"
        )
    with new_file(done) as partial:
        partial.write_text(json.dumps(stage.arguments) + "\n")

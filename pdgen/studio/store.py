"""The studio's folder: a run as ``launch/sample.py`` writes and continues it, with trajectories that grow.

FOLDER/run.json            the model and the default settings; its list of prompts is empty
FOLDER/000/, 000-1/, ...   trajectories and their branches, saved after every stage
FOLDER/corrections/        what people said of stages; see ``corrections``
"""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Generator, Iterator

from pdgen.files import Log, check_writable
from pdgen.sample.model import Model
from pdgen.sample.runs.folder import SampleRun, list_trajectories, name_branch, open_run
from pdgen.sample.runs.gallery import STRIP, STROKES
from pdgen.sample.settings import SampleSettings
from pdgen.sequence.modes import TrajectoryError
from pdgen.sequence.trajectory import Trajectory
from pdgen.sequence.trajectory_folder import extend_trajectory, load_trajectory

NAME = re.compile(r"\d{3,8}(-\d{1,4}){0,40}")  # of a trajectory: no path, and short enough for a folder


class Store:
    """Trajectories in the studio's folder, which ``open_store`` has claimed."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def load(self, log: Log) -> Iterator[tuple[str, Trajectory]]:
        """Yield the names and trajectories of the folder; a damaged one is a line of the log."""
        for name in list_trajectories(self.folder):
            try:
                if NAME.fullmatch(name):
                    yield name, load_trajectory(self.folder / name)
            except TrajectoryError as fault:
                log(f"{fault}; it is not shown")

    def name_root(self) -> str:
        """Return a free name for a trajectory without a parent."""
        taken = [int(path.name[:8].partition("-")[0]) for path in self.folder.iterdir() if NAME.fullmatch(path.name)]
        return f"{max(taken, default=-1) + 1:03d}"

    def name_branch(self, parent: str) -> str:
        """Return a free name for a branch."""
        return name_branch(self.folder, parent)

    def save(self, name: str, trajectory: Trajectory) -> None:
        """Save a trajectory, of which the first stages may be saved already. Raises OSError."""
        for made in (STRIP, STROKES):  # of fewer stages, by a command line that read the folder
            (self.folder / name / made).unlink(missing_ok=True)
        extend_trajectory(self.folder / name, trajectory)

    def remove(self, name: str) -> None:
        """Remove a trajectory. It disappears at once; what a killed process leaves is removed at the next start."""
        gone = self.folder / f".{name}.partial-{os.getpid()}"
        (self.folder / name).rename(gone)
        shutil.rmtree(gone)


@contextlib.contextmanager
def open_store(folder: pathlib.Path, model: Model, settings: SampleSettings) -> Generator[Store]:
    """Claim the studio's folder for this process.

    Raises:
      RunFolderError: it holds something else, trajectories of another model or other default settings, or another
        process works in it.
      FolderError: it cannot be written.
    """
    check_writable(folder)
    run = SampleRun(checkpoint=model.name, model_hash=model.digest, settings=settings, jobs=[])
    with open_run(folder, run):
        yield Store(folder)

"""Views of a run's trajectories: a strip and an animation of each, and one page over all."""

import pathlib
import textwrap

from pdgen.files import new_file
from pdgen.report.animation import save_animation
from pdgen.report.page import Entry, render_trajectories, split_tags
from pdgen.report.strip import make_strip
from pdgen.sample.runs.folder import PAGE, RunFolderError, list_trajectories
from pdgen.sequence.trajectory import TextStage, Trajectory, TrajectoryError
from pdgen.sequence.trajectory_folder import load_trajectory

STRIP, STROKES = "strip.png", "strokes.webp"
_CAPTION_LENGTH = 140  # characters


def make_captions(trajectory: Trajectory) -> list[str]:
    """Make a caption of every image: its stage and, below, the instruction or correction that it was drawn from."""
    captions, cause = [], ""
    for stage in trajectory.stages:
        if isinstance(stage, TextStage):
            spans = dict(split_tags(stage.text))
            cause = spans.get("instruction") or spans.get("refine", "")
        else:
            captions.append(f"{stage.stage}\n{textwrap.shorten(cause, _CAPTION_LENGTH, placeholder=' ...')}")
            cause = ""
    return captions


class RunGallery:
    """The page of a run's folder and the pictures beside its trajectories, with ``animate`` also of their strokes."""

    def __init__(self, folder: pathlib.Path, animate: bool = False) -> None:
        self._folder, self._animate = folder, animate
        self._entries: dict[str, Entry] = {}  # a saved trajectory never changes, so it is read once

    def read(self) -> list[str]:
        """Read the trajectories that are new, make their missing pictures, and return all names.

        Raises:
          RunFolderError: a trajectory is damaged; the message names it.
        """
        names = list_trajectories(self._folder)
        for name in names:
            if name not in self._entries:
                try:
                    self._entries[name] = self._read_entry(name)
                except TrajectoryError as fault:
                    raise RunFolderError(f"{fault}; remove the folder {self._folder / name} and run again") from None
        return names

    def update(self) -> pathlib.Path:
        """Write the page of all trajectories and return its path. Raises RunFolderError as ``read``."""
        names = self.read()
        page = render_trajectories([self._entries[name] for name in names], self._folder.resolve().name)
        with new_file(self._folder / PAGE) as partial:
            partial.write_text(page, "utf-8")
        return self._folder / PAGE

    def _read_entry(self, name: str) -> Entry:
        folder = self._folder / name
        trajectory = load_trajectory(folder)
        captions = make_captions(trajectory)
        if trajectory.images and not (folder / STRIP).is_file():
            with new_file(folder / STRIP) as partial:
                make_strip(trajectory.images, captions).save(partial, "PNG")
        if trajectory.images and self._animate and not (folder / STROKES).is_file():
            with new_file(folder / STROKES) as partial:
                save_animation(partial, trajectory.images, captions)
        files = [file for file in (STRIP, STROKES) if (folder / file).is_file()]
        return Entry(name, trajectory, link=name, files=files).without_images()

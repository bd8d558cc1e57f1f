"""What is made of a run's trajectories to be looked at: a strip and an animation of each, and one page over all."""

import pathlib
import textwrap

from pdgen.files import new_file
from pdgen.report.animation import save_animation
from pdgen.report.page import Entry, render_trajectories, split_tags
from pdgen.report.strip import make_strip
from pdgen.sample.folders import PAGE, RunError, trajectories
from pdgen.sequence.trajectory import TextStage, Trajectory, TrajectoryError
from pdgen.sequence.trajectory_folder import load_trajectory

STRIP, STROKES = "strip.png", "strokes.webp"
_CAPTION = 140  # characters


def captions(trajectory: Trajectory) -> list[str]:
    """For every image its stage and, beneath, the instruction or correction that it was drawn from."""
    lines, wanted = [], ""
    for stage in trajectory.stages:
        if isinstance(stage, TextStage):
            spans = dict(split_tags(stage.text))
            wanted = spans.get("instruction") or spans.get("refine", "")
        else:
            lines.append(f"{stage.stage}\n{textwrap.shorten(wanted, _CAPTION, placeholder=' ...')}")
            wanted = ""
    return lines


class Gallery:
    """The page of a run's folder and the pictures beside its trajectories.

    Args:
      folder: of the run.
      animate: whether trajectories get an animation of their strokes.
    """

    def __init__(self, folder: pathlib.Path, animate: bool = False) -> None:
        self._folder, self._animate = folder, animate
        self._entries: dict[str, Entry] = {}  # a trajectory that is there never changes, so it is read once

    def read(self) -> list[str]:
        """Reads the trajectories that are new, makes what they lack and returns the names of all.

        Raises:
          RunError: a trajectory is damaged; it is named.
        """
        names = trajectories(self._folder)
        for name in names:
            if name not in self._entries:
                try:
                    self._entries[name] = self._read(name)
                except TrajectoryError as fault:
                    raise RunError(f"{fault}; remove the folder {self._folder / name} and run again") from None
        return names

    def update(self) -> pathlib.Path:
        """Writes the page of all that is there and returns its path. Raises RunError as ``read``."""
        names = self.read()
        page = render_trajectories([self._entries[name] for name in names], self._folder.resolve().name)
        with new_file(self._folder / PAGE) as partial:
            partial.write_text(page, "utf-8")
        return self._folder / PAGE

    def _read(self, name: str) -> Entry:
        folder = self._folder / name
        trajectory = load_trajectory(folder)
        makers = {STRIP: strip_of} | ({STROKES: animation_of} if self._animate else {})
        for file, make in makers.items():
            if trajectory.images and not (folder / file).is_file():
                make(folder / file, trajectory)
        files = [file for file in (STRIP, STROKES) if (folder / file).is_file()]
        return Entry(name, trajectory, link=name, files=files).without_images()


def strip_of(path: pathlib.Path, trajectory: Trajectory) -> None:
    """Writes all images in one row, with captions, as PNG."""
    with new_file(path) as partial:
        make_strip(trajectory.images, captions(trajectory)).save(partial, "PNG")


def animation_of(path: pathlib.Path, trajectory: Trajectory) -> None:
    """Writes the images one after the other, with captions, as an animated WebP."""
    with new_file(path) as partial:
        save_animation(partial, trajectory.images, captions(trajectory))

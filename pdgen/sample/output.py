"""What sampling leaves: a folder per trajectory with its images and a strip of them, and one page over all."""

import pathlib
import textwrap
from collections.abc import Sequence

from pdgen.interleave.trajectory import TextStage, Trajectory, save_trajectory
from pdgen.report.page import Entry, split_tags, trajectory_page
from pdgen.report.strip import strip

STRIP, PAGE = "strip.png", "index.html"
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


def is_output(folder: pathlib.Path) -> bool:
    """Whether ``folder`` is one that ``write_output`` has written."""
    return (folder / PAGE).is_file() and any((*folder.glob("trajectory.json"), *folder.glob("*/trajectory.json")))


def write_output(folder: pathlib.Path, drawn: Sequence[Trajectory]) -> None:
    """Fills the new, empty ``folder``: one trajectory directly, several as 000, 001, ..., and ``index.html``.

    Raises:
      TrajectoryError, OSError: it cannot be written.
    """
    single = len(drawn) == 1
    links = ["."] if single else [f"{n:03d}" for n in range(len(drawn))]
    if single:
        folder.rmdir()  # save_trajectory makes its folder itself
    entries = []
    for link, trajectory in zip(links, drawn):
        save_trajectory(folder / link, trajectory)
        strip(trajectory.images, captions(trajectory)).save(folder / link / STRIP)
        entries.append(Entry("trajectory" if single else link, trajectory, link=link))
    (folder / PAGE).write_text(trajectory_page(entries))

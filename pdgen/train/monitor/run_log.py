"""What a training run has left in its folder for readers: config, curves, checkpoints, pictures."""

import dataclasses
import datetime
import json
import pathlib
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float

from pdgen.checkpoints.runs.workdir import CHECKPOINTS, CONFIG_FILE, list_steps, read_exported_step
from pdgen.train.monitor.watch import HELD_OUT, METRICS, STOPPED
from pdgen.train.run_config import RunError

PICTURES = "pictures"
_DECODER = msgspec.json.Decoder(dict[str, float])


@dataclasses.dataclass(frozen=True)
class Log:
    """A JSONL file: one dict of numbers a line, "step" among them.

    Attributes:
      rows: in the file's order; a value that a step does not have is absent.
      cut: whether the last line was half written, and is left out.
    """

    rows: tuple[dict[str, float], ...] = ()
    cut: bool = False

    def series(self, name: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """(steps, values) of the rows that have ``name``."""
        found = [(row["step"], row[name]) for row in self.rows if name in row]
        steps, values = zip(*found) if found else ((), ())
        return np.array(steps), np.array(values)

    @property
    def names(self) -> set[str]:
        """Every name in any row."""
        return {name for row in self.rows for name in row}


@dataclasses.dataclass(frozen=True)
class RunLog:
    """One run.

    Attributes:
      name: its folder's.
      config: the resolved config; plain values.
      metrics, held_out: the curves.
      written: when the last metrics were, in UTC; None before the first.
      stopped: why it has left before its end; "" if it goes on, is done or was killed.
      checkpoints: steps that are kept, ascending.
      exported: step of the run's ``export/``, if there is one.
      pictures: by step and prompt number the folders of sampled trajectories.
    """

    name: str
    config: dict[str, Any]
    metrics: Log
    held_out: Log
    written: datetime.datetime | None
    stopped: str
    checkpoints: list[int]
    exported: int | None
    pictures: dict[int, dict[int, pathlib.Path]]

    @property
    def step(self) -> int:
        """The last one that was logged, 0 before the first."""
        return int(self.metrics.rows[-1]["step"]) if self.metrics.rows else 0


def read_run_log(workdir: pathlib.Path) -> RunLog:
    """Reads a run that goes on, has ended or was killed.

    Raises:
      RunError: ``workdir`` is no run's, or a line other than a half written last one cannot be read.
    """
    config = workdir / CONFIG_FILE
    try:
        values = json.loads(config.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{workdir}: no training run ({CONFIG_FILE} is missing); name the --workdir of launch/train.py"
        ) from None
    except ValueError as fault:
        raise RunError(f"{config}: not valid json ({fault})") from None
    metrics = read_log(workdir / METRICS)
    modified = (workdir / METRICS).stat().st_mtime if metrics.rows else None
    stopped = workdir / STOPPED
    return RunLog(
        name=workdir.resolve().name,
        config=values,
        metrics=metrics,
        held_out=read_log(workdir / HELD_OUT),
        written=None if modified is None else datetime.datetime.fromtimestamp(modified, datetime.UTC),
        stopped=stopped.read_text().strip() if stopped.exists() else "",
        checkpoints=list_steps(workdir / CHECKPOINTS),
        exported=read_exported_step(workdir),
        pictures=_pictures(workdir / PICTURES),
    )


def read_log(path: pathlib.Path) -> Log:
    """The rows of a JSONL file; none if there is no file. Raises RunError naming a broken line."""
    if not path.exists():
        return Log()
    *lines, last = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_DECODER.decode(line))
        except msgspec.DecodeError as fault:
            raise RunError(f"{path}: line {number}: {fault}; remove that line") from None
        if "step" not in rows[-1]:
            raise RunError(f"{path}: line {number}: has no step; remove that line")
    return Log(tuple(rows), cut=bool(last))


def pictures_folder(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Where the trajectories that are sampled after ``step`` lie, one folder of 3 digits for each prompt."""
    return workdir / PICTURES / f"{step:08d}"


def _pictures(folder: pathlib.Path) -> dict[int, dict[int, pathlib.Path]]:
    steps = {int(path.name): path for path in sorted(folder.glob("[0-9]" * 8)) if path.is_dir()}
    prompts = {step: sorted(path.glob("[0-9]" * 3)) for step, path in steps.items()}
    return {step: {int(path.name): path for path in paths} for step, paths in prompts.items() if paths}

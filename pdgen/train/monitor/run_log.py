"""Reading a training run's folder: config, metrics, checkpoints, pictures."""

import dataclasses
import datetime
import pathlib
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float

from pdgen.checkpoints.runs.workdir import CHECKPOINTS, CONFIG_FILE, list_steps, read_exported_step
from pdgen.json_text import load_json
from pdgen.train.monitor.run_monitor import HELD_OUT, METRICS, PICTURES, STOPPED
from pdgen.train.run_config import RunError

_DECODER = msgspec.json.Decoder(dict[str, float])


@dataclasses.dataclass(frozen=True)
class MetricsLog:
    """A JSONL file of metrics: each line is a dict of numbers with a "step".

    Attributes:
      rows: the lines in the order of the file; metrics that a step does not have are absent.
      truncated: whether a half-written last line was ignored.
    """

    rows: tuple[dict[str, float], ...] = ()
    truncated: bool = False

    def series(self, name: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return (steps, values) of the rows that have the metric ``name``."""
        found = [(row["step"], row[name]) for row in self.rows if name in row]
        steps, values = zip(*found) if found else ((), ())
        return np.array(steps, float), np.array(values, float)

    @property
    def names(self) -> set[str]:
        """Names of all metrics in any row, "step" included."""
        return {name for row in self.rows for name in row}


@dataclasses.dataclass(frozen=True)
class RunLog:
    """The contents of a run's folder.

    Attributes:
      name: name of the folder.
      config: the resolved config as plain values.
      metrics, held_out: metrics of training steps and of held-out records.
      last_written: time of the last metrics in UTC; None before the first.
      stop_reason: why the run stopped before its end; "" if it is running, finished or was killed.
      checkpoints: steps of the checkpoints, ascending.
      exported: step of the run's ``export/``, if there is one.
      pictures: folders of sampled trajectories by step and prompt number.
    """

    name: str
    config: dict[str, Any]
    metrics: MetricsLog
    held_out: MetricsLog
    last_written: datetime.datetime | None
    stop_reason: str
    checkpoints: list[int]
    exported: int | None
    pictures: dict[int, dict[int, pathlib.Path]]

    @property
    def step(self) -> int:
        """The last logged step, 0 before the first."""
        return int(self.metrics.rows[-1]["step"]) if self.metrics.rows else 0


def read_run_log(workdir: pathlib.Path) -> RunLog:
    """Read the folder of a run that is running, finished or was killed.

    Raises:
      RunError: ``workdir`` is not a run's, or a line other than a half-written last one cannot be read.
    """
    config = workdir / CONFIG_FILE
    try:
        values = load_json(config.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{workdir}: no training run ({CONFIG_FILE} is missing); name the --workdir of launch/train.py"
        ) from None
    except ValueError as fault:
        raise RunError(f"{config}: not valid json ({fault})") from None
    if not isinstance(values, dict):
        raise RunError(f"{config}: holds no config of a run; name the --workdir of launch/train.py")
    metrics = read_metrics_log(workdir / METRICS)
    modified = (workdir / METRICS).stat().st_mtime if metrics.rows else None
    stopped = workdir / STOPPED
    return RunLog(
        name=workdir.resolve().name,
        config=values,
        metrics=metrics,
        held_out=read_metrics_log(workdir / HELD_OUT),
        last_written=None if modified is None else datetime.datetime.fromtimestamp(modified, datetime.UTC),
        stop_reason=stopped.read_text().strip() if stopped.exists() else "",
        checkpoints=list_steps(workdir / CHECKPOINTS),
        exported=read_exported_step(workdir),
        pictures=_find_pictures(workdir / PICTURES),
    )


def read_metrics_log(path: pathlib.Path) -> MetricsLog:
    """Read a JSONL file of metrics; a missing file is an empty log. Raises RunError that names a broken line."""
    if not path.exists():
        return MetricsLog()
    *lines, last = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_DECODER.decode(line))
        except msgspec.DecodeError as fault:
            raise RunError(f"{path}: line {number}: {fault}; remove that line") from None
        if "step" not in rows[-1]:
            raise RunError(f"{path}: line {number}: has no step; remove that line")
    return MetricsLog(tuple(rows), truncated=bool(last))


def pictures_folder(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Return the folder of the trajectories sampled after ``step``; each prompt has a subfolder of 3 digits."""
    return workdir / PICTURES / f"{step:08d}"


def _find_pictures(folder: pathlib.Path) -> dict[int, dict[int, pathlib.Path]]:
    steps = {int(path.name): path for path in sorted(folder.glob("[0-9]" * 8)) if path.is_dir()}
    prompts = {step: sorted(path.glob("[0-9]" * 3)) for step, path in steps.items()}
    return {step: {int(path.name): path for path in paths} for step, paths in prompts.items() if paths}

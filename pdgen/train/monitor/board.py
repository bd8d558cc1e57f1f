"""A run's curves while it trains: what goes into the JSONL logs goes to TensorBoard and, if asked for, to wandb.

tensorboard --logdir WORKDIR/tensorboard

Training and held-out values are two runs of the same tags there, so that one chart shows them over each other.
"""

import importlib.util
import pathlib
import re
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from tensorboardX import SummaryWriter

from pdgen.files import new_file
from pdgen.train.run_config import RunError

TENSORBOARD, WANDB_ID = "tensorboard", "wandb_id"
Part = Literal["train", "held_out"]
_GROUPED = re.compile(r"(ce|mse|grad_norm|update_norm|param_norm|fill)_(\w+)")


def tag(name: str) -> str:
    """A metric's name with its group before a slash, as boards sort charts: "ce_plan" is "ce/plan"."""
    return _GROUPED.sub(r"\1/\2", name)


def check_wandb(project: str) -> None:
    """Raises RunError where a project is named but wandb is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise RunError(
            f"config: wandb is {project!r}, but wandb is not installed: pip install 'pdgen[wandb]', "
            'or set wandb to ""'
        )


class Board:
    """Writes metrics to ``<workdir>/tensorboard/<part>`` and to wandb. Process 0 alone has one.

    A run that resumes hides what TensorBoard was given after ``start``, which it now repeats. wandb keeps the first
    value of a step and drops the repeated one, which is the same to the bit.

    Args:
      workdir: the run's folder. Its ``wandb_id`` keeps wandb's name of the run, so that a resumed one goes on there.
      start: the step that the run goes on from.
      project: wandb's project; "" for none.
      config: the run's resolved config, shown by wandb.

    Raises:
      RunError: wandb refuses to start (it is not logged in, for instance).
    """

    def __init__(
        self, workdir: pathlib.Path, start: int, project: str = "", config: Mapping[str, Any] | None = None
    ) -> None:
        self._wandb = _wandb_run(workdir, project, config or {}) if project else None
        self._writers = {
            # the suffix: files are named by the second they are made in
            part: SummaryWriter(str(workdir / TENSORBOARD / part), purge_step=start + 1, filename_suffix=f".{start}")
            for part in ("train", "held_out")
        }

    def write(self, values: Mapping[str, float], part: Part = "train") -> None:
        """Adds what one line of a JSONL log holds: "step" and numbers."""
        step = int(values["step"])
        tagged = {tag(name): value for name, value in values.items() if name != "step"}
        for name, value in tagged.items():
            self._writers[part].add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({f"{part}/{name}": value for name, value in tagged.items()}, step=step)

    def close(self, failed: bool = False) -> None:
        """Writes what is still waiting, and tells wandb how the run has left."""
        for writer in self._writers.values():
            writer.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))


def _wandb_run(workdir: pathlib.Path, project: str, config: Mapping[str, Any]) -> Any:
    import wandb  # an extra

    path = workdir / WANDB_ID
    if not path.exists():
        with new_file(path) as partial:
            partial.write_text(uuid.uuid4().hex)
    try:
        return wandb.init(
            project=project,
            id=path.read_text(),
            name=workdir.name,
            dir=str(workdir),
            config=dict(config),
            resume="allow",
        )
    except wandb.Error as fault:
        raise RunError(
            f"config: wandb {project!r}: {fault}; log in with `wandb login`, or set WANDB_MODE=offline and "
            "`wandb sync` the run later"
        ) from None

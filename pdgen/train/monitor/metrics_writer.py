"""Writing a run's metrics to TensorBoard and, on request, to wandb.

tensorboard --logdir WORKDIR/tensorboard

The training and the held-out metrics are two TensorBoard runs with the same tags, so one chart shows both.
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
Split = Literal["train", "held_out"]
_GROUPED = re.compile(r"(ce|mse|grad_norm|update_norm|param_norm|fill)_(\w+)")


def format_tag(name: str) -> str:
    """Return a metric's name with a slash after its group, by which boards sort charts: "ce_plan" is "ce/plan"."""
    return _GROUPED.sub(r"\1/\2", name)


def check_wandb(project: str) -> None:
    """Raise RunError if a project is given but wandb is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise RunError(
            f"config: wandb is {project!r}, but wandb is not installed: pip install 'pdgen[wandb]', "
            'or set wandb to ""'
        )


class MetricsWriter:
    """Writes metrics to ``<workdir>/tensorboard/<split>`` and to wandb, in the first process only.

    In a resumed run TensorBoard hides the earlier values of the steps after ``start``, which are written again. wandb
    keeps the first value of a step; the repeated one has the same bits.

    Args:
      workdir: the run's folder. Its ``wandb_id`` holds wandb's id of the run, so that a resumed run continues there.
      start: the step from which the run continues.
      project: wandb's project; "" for none.
      config: the run's resolved config, for wandb.

    Raises:
      RunError: wandb cannot start, for instance because it is not logged in.
    """

    def __init__(
        self, workdir: pathlib.Path, start: int, project: str = "", config: Mapping[str, Any] | None = None
    ) -> None:
        self._wandb = _init_wandb(workdir, project, config or {}) if project else None
        self._writers = {
            # tensorboardX names files by the second, so two runs within one need different suffixes.
            split: SummaryWriter(str(workdir / TENSORBOARD / split), purge_step=start + 1, filename_suffix=f".{start}")
            for split in ("train", "held_out")
        }

    def write(self, values: Mapping[str, float], split: Split = "train") -> None:
        """Write one line of a JSONL log: "step" and the metrics by name."""
        step = int(values["step"])
        tagged = {format_tag(name): value for name, value in values.items() if name != "step"}
        for name, value in tagged.items():
            self._writers[split].add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in tagged.items()}, step=step)

    def close(self, failed: bool = False) -> None:
        """Flush all writers and report to wandb whether the run has failed."""
        for writer in self._writers.values():
            writer.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))


def _init_wandb(workdir: pathlib.Path, project: str, config: Mapping[str, Any]) -> Any:
    import wandb  # an optional dependency

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

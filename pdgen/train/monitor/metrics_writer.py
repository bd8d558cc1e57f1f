"""Writing a run's metrics to TensorBoard and, on request, to wandb.

tensorboard --logdir WORKDIR/tensorboard

The training and the held-out metrics are two TensorBoard runs with the same tags, so one chart shows both.
"""

import functools
import importlib.util
import pathlib
import re
import threading
import typing
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pdgen.files import new_file
from pdgen.train.monitor.watchers import Watchers
from pdgen.train.run_config import RunError

if TYPE_CHECKING:
    from pdgen.train.monitor.event_file import EventFile

TENSORBOARD, WANDB_ID = "tensorboard", "wandb_id"
_WANDB = "wandb"  # name of the watcher
FINISH_SECONDS = 60.0  # that a run waits at its end until wandb has sent everything
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
      watchers: drop TensorBoard or wandb when it fails.
      project: wandb's project; "" for none.
      config: the run's resolved config, for wandb.

    Raises:
      RunError: wandb cannot start, for instance because it is not logged in.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        start: int,
        watchers: Watchers,
        project: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._watchers, self._board = watchers, workdir / TENSORBOARD
        try:
            self._wandb = _init_wandb(workdir, project, config or {}) if project else None
        except OSError as fault:
            self._wandb = None
            watchers.drop(_WANDB, fault)
        self._files: dict[Split, EventFile] = {}
        watchers.call(str(self._board), self._begin, start)

    def write(self, values: Mapping[str, float], split: Split = "train") -> None:
        """Write one line of a JSONL log: "step" and the metrics by name."""
        step = int(values["step"])
        tagged = {format_tag(name): value for name, value in values.items() if name != "step"}
        self._watchers.call(str(self._board), self._append, split, step, tagged)
        if self._wandb is not None:
            named = {f"{split}/{name}": value for name, value in tagged.items()}
            self._watchers.call(_WANDB, functools.partial(self._wandb.log, named, step=step))

    def close(self, failed: bool = False) -> None:
        """Report to wandb whether the run has failed, and wait ``FINISH_SECONDS`` at most until it has everything."""
        for file in self._files.values():
            self._watchers.call(str(self._board), file.close)
        if self._wandb is None:
            return
        finish = functools.partial(self._wandb.finish, exit_code=int(failed))
        # Without a network it may never return. The run must still be exported, and a daemon does not keep the process.
        thread = threading.Thread(target=self._watchers.call, args=(_WANDB, finish), daemon=True)
        thread.start()
        thread.join(FINISH_SECONDS)
        if thread.is_alive():
            late = f"not everything is sent after {FINISH_SECONDS:g} s, `wandb sync` sends the rest later"
            self._watchers.drop(_WANDB, TimeoutError(late))

    def _begin(self, start: int) -> None:
        from pdgen.train.monitor.event_file import EventFile  # imports PyTorch, which takes seconds

        for split in typing.get_args(Split):
            self._files[split] = EventFile(self._board / split, start)

    def _append(self, split: Split, step: int, values: Mapping[str, float]) -> None:
        self._files[split].write(step, values)


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
            # wandb waits for its process once more when the interpreter ends.
            settings=wandb.Settings(finish_timeout=FINISH_SECONDS),
        )
    except wandb.Error as fault:
        raise RunError(
            f"config: wandb {project!r}: {fault}; log in with `wandb login`, or set WANDB_MODE=offline and "
            "`wandb sync` the run later"
        ) from None

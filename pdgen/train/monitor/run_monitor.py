"""What a run reports while it trains: a progress bar, ``metrics.jsonl``, held-out losses, pictures.

All processes compute; only the first one writes and shows. What cannot be written is dropped in one line, see
``pdgen.train.monitor.watchers``.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Generator
from typing import Any

import jax

from pdgen.data.loader import Batches
from pdgen.files import Log, new_file
from pdgen.json_text import load_json
from pdgen.progress_bar import ProgressBar
from pdgen.train.held_out import HeldOutEvaluator
from pdgen.train.monitor.meter import Meter, NotFiniteError
from pdgen.train.monitor.metrics_writer import MetricsWriter
from pdgen.train.monitor.watchers import Watchers
from pdgen.train.run_config import RunConfig, RunError
from pdgen.train.state import StepConfig, TrainState, combine_params

METRICS, HELD_OUT = "metrics.jsonl", "held_out.jsonl"
PICTURES = "pictures"
STOPPED = "stopped.txt"  # why a run stopped before its end; absent if it is running, finished or was killed

SamplePictures = Callable[[int, dict[str, Any]], None]  # (step, the model's parameters)


class RunMonitor:
    """A context manager that shows the progress and is called after every step. Create it under the run's mesh.

    Args:
      run, config: the run's config and the static settings of its steps.
      workdir: folder to write to.
      log: receives lines for the user.
      batches: batches of the steps, to name the records of a failed one.
      held_out: computes the held-out losses; None if the run holds nothing out.
      sample_pictures: samples pictures, see ``pdgen.train.loop.train``.

    Attributes:
      meter: measures the steps.
    """

    def __init__(
        self,
        run: RunConfig,
        config: StepConfig,
        workdir: pathlib.Path,
        log: Log,
        batches: Batches,
        held_out: HeldOutEvaluator | None,
        sample_pictures: SamplePictures | None = None,
    ) -> None:
        self.meter = Meter(list(jax.sharding.get_mesh().devices.flat))
        self._run, self._workdir, self._batches, self._held_out = run, workdir, batches, held_out
        self._sample_pictures = sample_pictures if run.pictures_every and jax.process_count() == 1 else None
        self._combine_params = jax.jit(functools.partial(combine_params, config))
        self._watchers = Watchers(log)
        self._writer: MetricsWriter | None = None  # in the first process, after ``start``
        self._bar: Any = None  # after ``start``

    def __enter__(self) -> "RunMonitor":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close(failed=fault is not None)
            if fault is not None:
                stopped = self._workdir / STOPPED
                self._watchers.call(str(stopped), stopped.write_text, f"{fault or type(fault).__name__}\n")

    def start(self, step: int) -> None:
        """Start after ``step`` and remove later lines from the logs, since these steps are repeated."""
        self._bar = ProgressBar(
            total=self._run.num_steps, initial=step, desc="training", unit=" steps", disable=jax.process_index() > 0
        )
        if not jax.process_index():
            stopped = self._workdir / STOPPED
            self._watchers.call(str(stopped), stopped.unlink, True)
            for path in (self._workdir / METRICS, self._workdir / HELD_OUT):
                self._watchers.call(str(path), truncate_log, path, step)
            config = dataclasses.asdict(self._run)
            self._writer = MetricsWriter(self._workdir, step, self._watchers, self._run.wandb, config)

    def after_step(self, step: int, state: TrainState) -> bool:
        """Log, evaluate and sample what is due after ``step``. Raises RunError, see ``check``.

        Returns:
          Whether a line of metrics was logged.
        """
        run = self._run
        if step == self.meter.first_step:
            self._bar.unpause()  # compilation must not enter the estimate of the remaining time
        if is_logged := self._is_due(step, run.log_every):
            self.check()
            self._log_metrics(self.meter.measure(step))
        if self._held_out and self._is_due(step, run.held_out_every):
            with self._pause_training():
                self._write_line(HELD_OUT, {"step": step, **self._held_out(state)})
        if self._sample_pictures and self._is_due(step, run.pictures_every):
            with self._pause_training():
                params = self._combine_params(state.ema or state.trained, state.frozen)
                self._watchers.call(str(self._workdir / PICTURES), self._sample_pictures, step, params)
        self._bar.update()
        return is_logged

    @contextlib.contextmanager
    def _pause_training(self) -> Generator[None, None, None]:
        """Check the state, then exclude the block from timing and allow transfers in it."""
        self.check()
        with self.meter.pause(), jax.transfer_guard("allow"):
            yield

    def check(self) -> None:
        """Raise RunError if a step since the last check was not finite. Call it before a state is saved."""
        try:
            self.meter.check_finite()
        except NotFiniteError as fault:
            records = ", ".join(self._batches.list_record_ids(fault.step - 1))
            raise RunError(
                f"{fault}; its batch holds the records {records}; the checkpoints in {self._workdir} were saved "
                "before; inspect these records, or lower optimizer.learning_rate"
            ) from None

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._run.num_steps

    def _log_metrics(self, line: dict[str, Any]) -> None:
        self._write_line(METRICS, line)
        shown = [f"{name} {line[name]:.3f}" for name in ("loss", "ce", "mse") if name in line]
        if "tokens_per_second" in line:
            shown.append(f"{line['tokens_per_second']:,.0f} tokens/s, {line['images_per_second']:,.0f} images/s")
        shown.append(f"MFU {line['mfu']:.1%}" if "mfu" in line else f"MFU unknown for {self.meter.device_kind}")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def _write_line(self, name: str, line: dict[str, Any]) -> None:
        if self._writer is not None:
            path = self._workdir / name
            self._watchers.call(str(path), _append_line, path, line)
            self._writer.write(line, "train" if name == METRICS else "held_out")


def _append_line(path: pathlib.Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def truncate_log(path: pathlib.Path, step: int) -> None:
    """Remove lines after ``step`` and a half-written last line from a JSONL log, if the file exists.

    Raises:
      RunError: another line cannot be read; the message names it.
    """
    if not path.exists():
        return
    kept = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            if load_json(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError) as fault:
            raise RunError(f"{path}: line {number} is no line of a log ({fault!r}); remove that line") from None
    with new_file(path) as partial:
        partial.write_bytes(b"".join(kept))

"""What a run shows and writes while it trains: a progress line, ``metrics.jsonl``, held-out losses, pictures.

Only the first process writes and shows. All computing is done in every process alike.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Generator
from typing import Any

import jax
from tqdm import tqdm

from pdgen.data.loader import Batches
from pdgen.files import new_file
from pdgen.train.held_out import HeldOut
from pdgen.train.monitor.board import Board
from pdgen.train.monitor.meter import Meter, NotFiniteError
from pdgen.train.run_config import RunConfig, RunError
from pdgen.train.state import StepConfig, TrainState, model_params

METRICS, HELD_OUT = "metrics.jsonl", "held_out.jsonl"
STOPPED = "stopped.txt"  # why a run has left before its end; absent if it goes on, is done or was killed

Draw = Callable[[int, dict[str, Any]], None]


class Watch:
    """Called after every step; a context manager that shows the progress line, to be made under the run's mesh.

    Args:
      run: the config.
      config: what is static in its steps.
      workdir: to write to.
      batches: that the steps see.
      held_out: gives the held-out losses of a state; None if the run holds nothing out.
      draw: draws pictures, see ``loop.train``.
    """

    def __init__(
        self,
        run: RunConfig,
        config: StepConfig,
        workdir: pathlib.Path,
        batches: Batches,
        held_out: HeldOut | None,
        draw: Draw | None = None,
    ) -> None:
        self.meter = Meter(list(jax.sharding.get_mesh().devices.flat))
        self._run, self._workdir, self._batches, self._held_out = run, workdir, batches, held_out
        self._draw = draw if run.pictures_every and jax.process_count() == 1 else None
        self._params = jax.jit(functools.partial(model_params, config))
        self._board: Board | None = None
        self._bar: Any = None  # the progress line, from ``start`` on

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close(failed=fault is not None)
            if fault is not None:
                (self._workdir / STOPPED).write_text(f"{fault or type(fault).__name__}\n")

    def start(self, step: int) -> None:
        """Cuts from the files what is past ``step``, after which the run goes on."""
        self._bar = tqdm(
            total=self._run.num_steps, initial=step, desc="training", unit=" steps", disable=jax.process_index() > 0
        )
        if not jax.process_index():
            (self._workdir / STOPPED).unlink(missing_ok=True)
            for name in (METRICS, HELD_OUT):
                cut(self._workdir / name, step)
            self._board = Board(self._workdir, step, self._run.wandb, dataclasses.asdict(self._run))

    def after(self, step: int, state: TrainState) -> bool:
        """Writes and draws what is due after ``step``; whether a line was logged. Raises RunError, see ``check``."""
        run = self._run
        if step == self.meter.first:
            self._bar.unpause()  # compiling tells nothing of the time that is left
        if logged := self._due(step, run.log_every):
            self.check()
            self._log(self.meter.line(step))
        if self._held_out and self._due(step, run.held_out_every):
            with self._aside():
                self._write(HELD_OUT, {"step": step, **self._held_out(state)})
        if self._draw and self._due(step, run.pictures_every):
            with self._aside():
                self._draw(step, self._params(state.ema or state.trained, state.frozen))
        self._bar.update()
        return logged

    @contextlib.contextmanager
    def _aside(self) -> Generator[None, None, None]:
        """For what is no part of training: with a state that is good, and not timed."""
        self.check()
        with self.meter.paused(), jax.transfer_guard("allow"):
            yield

    def check(self) -> None:
        """Raises RunError where a step since the last check was not finite: its state must not be saved."""
        try:
            self.meter.check()
        except NotFiniteError as fault:
            records = ", ".join(self._batches.list_record_ids(fault.step - 1))
            raise RunError(
                f"{fault}; its batch holds the records {records}; what {self._workdir} keeps was saved "
                "before; look at these, or lower optimizer.learning_rate"
            ) from None

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._run.num_steps

    def _log(self, line: dict[str, Any]) -> None:
        self._write(METRICS, line)
        shown = [f"{name} {line[name]:.3f}" for name in ("loss", "ce", "mse") if name in line]
        if "tokens_per_second" in line:
            shown.append(f"{line['tokens_per_second']:,.0f} tokens/s, {line['images_per_second']:,.0f} images/s")
        shown.append(f"MFU {line['mfu']:.1%}" if "mfu" in line else f"MFU unknown for {self.meter.device}")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def _write(self, name: str, line: dict[str, Any]) -> None:
        if self._board is not None:  # the first process's
            with (self._workdir / name).open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._board.write(line, "train" if name == METRICS else "held_out")


def cut(path: pathlib.Path, step: int) -> None:
    """Leaves out what was written after ``step``, which the run now repeats, and a half written line."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    with new_file(path) as partial:
        partial.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))

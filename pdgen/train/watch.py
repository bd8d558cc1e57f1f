"""What a run shows and writes while it trains: a progress line, ``metrics.jsonl``, held-out losses, pictures.

Only the first process writes and shows. All computing is done in every process alike.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from tqdm import tqdm

from pdgen.data.loader import Batches
from pdgen.files import new_file
from pdgen.train.meter import Meter, NotFiniteError
from pdgen.train.run_config import RunConfig, RunError
from pdgen.train.state import StepConfig, TrainState, model_params

METRICS = "metrics.jsonl"

Draw = Callable[[int, dict[str, Any]], None]


class Watch:
    """Called after every step; a context manager that shows the progress line.

    Args:
      run: the config.
      config: what is static in its steps.
      workdir: to write to.
      batches: that the steps see.
      devices: that the run computes on.
      draw: draws pictures, see ``loop.train``.
    """

    def __init__(
        self,
        run: RunConfig,
        config: StepConfig,
        workdir: pathlib.Path,
        batches: Batches,
        devices: Sequence[jax.Device],
        draw: Draw | None = None,
    ) -> None:
        self.meter = Meter(devices)
        self._run, self._config, self._workdir, self._batches = run, config, workdir, batches
        self._draw = draw if jax.process_count() == 1 else None
        self._params = jax.jit(lambda trained, frozen: model_params(config, trained, frozen))
        self._bar = tqdm(total=run.num_steps, desc="training", unit=" steps", disable=jax.process_index() > 0)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start(self, step: int) -> None:
        """Cuts from the files what is past ``step``, after which the run goes on."""
        self._bar.update(step)
        if not jax.process_index():
            cut(self._workdir / METRICS, step)

    def after(self, step: int, state: TrainState) -> bool:
        """Writes and draws what is due after ``step``; whether a line was logged. Raises RunError, see ``check``."""
        logged = self._due(step, self._run.log_every)
        if logged:
            self.check()
            self._log(self.meter.line(step))
        if self._draw and self._run.pictures_every and self._due(step, self._run.pictures_every):
            with self.meter.paused(), jax.transfer_guard("allow"):
                self._draw(step, self._params(state.ema or state.trained, state.frozen))
        self._bar.update()
        return logged

    def check(self) -> None:
        """Raises RunError where a step since the last check was not finite: its state must not be saved."""
        try:
            self.meter.check()
        except NotFiniteError as fault:
            records = ", ".join(self._batches.record_ids(fault.step - 1))
            raise RunError(f"{fault}; its batch holds the records {records}; what {self._workdir} keeps was saved "
                           "before; look at these, or lower optimizer.learning_rate") from None  # fmt: skip

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._run.num_steps

    def _log(self, line: dict[str, Any]) -> None:
        if jax.process_index():
            return
        append(self._workdir / METRICS, line)
        shown = [f"{name} {line[name]:.3f}" for name in ("loss", "ce", "mse") if name in line]
        if "tokens_per_second" in line:
            shown.append(f"{line['tokens_per_second']:,.0f} tokens/s")
        shown.append(f"MFU {line['mfu']:.1%}" if "mfu" in line else f"MFU unknown for {self.meter.device}")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)


def append(path: pathlib.Path, line: dict[str, Any]) -> None:
    """Adds a line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def cut(path: pathlib.Path, step: int) -> None:
    """Leaves out what was written after ``step``, which the run now repeats, and a half written line."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    with new_file(path) as partial:
        partial.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))

"""A training run from its config to its exported checkpoint: set up, resume, step, log, save.

Where parameters come from: the newest whole checkpoint of the workdir, else ``init``, else fresh ones.
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from pdgen.convert.pdgen_checkpoint import load_checkpoint
from pdgen.data.loader import loader
from pdgen.files import new_file
from pdgen.models import bagel
from pdgen.sharding import RULES, parameter_shardings
from pdgen.train.checkpoint import Checkpoints, meet
from pdgen.train.export import EXPORT, export_newest, resolved_by_all
from pdgen.train.preflight import preflight
from pdgen.train.run_config import RunConfig, RunError
from pdgen.train.state import (
    StepConfig,
    TrainState,
    abstract_state,
    init_state,
    start_state,
    state_shardings,
)
from pdgen.train.step import compiled_step, run_key
from pdgen.train.stop import Stopped, StopSignals

METRICS = "metrics.jsonl"
TIMED = ("tokens_per_second",)  # metrics that differ from run to run

Say = Callable[[str], None]


def train(
    run: RunConfig, workdir: pathlib.Path, say: Say, devices: Sequence[jax.Device] | None = None
) -> pathlib.Path:
    """Trains to ``run.num_steps``, resuming what ``workdir`` holds, and exports a pdgen checkpoint.

    Args:
      run: the config.
      workdir: gets ``config.json``, ``metrics.jsonl``, ``checkpoints/`` and, in the end, ``export/``.
      say: takes a line for the reader.
      devices: to train on; all there are by default.

    Returns:
      The exported checkpoint's folder.

    Raises:
      RunError, and what else ``preflight`` raises: the run cannot start; or the loss is not finite, or the last
        checkpoint cannot be saved.
      Stopped: a signal has asked the run to save and leave.
    """
    run = resolved_by_all(run, say)
    base, source, mesh, config = preflight(run, workdir, jax.devices() if devices is None else devices)
    shardings = state_shardings(config, mesh)
    with jax.set_mesh(mesh), Checkpoints(workdir, run.keep, run.keep_every, say) as checkpoints:
        state = _first_state(run, config, shardings, checkpoints, say)
        start = int(state.step)
        if not jax.process_index():
            cut_metrics(workdir / METRICS, start)
        batches = loader(base.config, source, base.tokenizer, run.loader, start, run.num_steps)
        _steps(run, workdir, _on_mesh(batches, mesh), compiled_step(config), state, checkpoints)
        if batches.skipped:
            say(f"{len(batches.skipped)} broken records were left out")
        checkpoints.finish()
    return _export(workdir, say)


def _first_state(
    run: RunConfig, config: StepConfig, shardings: TrainState, checkpoints: Checkpoints, say: Say
) -> TrainState:
    """Resume > init > fresh."""
    if (state := checkpoints.restore(abstract_state(config), shardings)) is not None:
        return state
    key = jax.random.key(run.seed)
    if not run.init:
        return jax.jit(functools.partial(init_state, config), out_shardings=shardings)(key)
    say(f"starting from {run.init}")
    places = parameter_shardings(bagel.abstract_params(config.model), shardings.step.mesh)
    targets = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        nn.unbox(bagel.abstract_params(config.model, config.compute.param_dtype)), places,
    )  # fmt: skip
    params = load_checkpoint(run.init, {"model": targets}, parts=("model",))[1]["model"]
    start = functools.partial(start_state, config)
    return jax.jit(start, out_shardings=shardings, donate_argnums=0)(params, key)


def _on_mesh(batches: Any, mesh: Mesh) -> Any:
    """Each process's rows as global arrays."""
    sharding = NamedSharding(mesh, RULES.spec("batch"))
    for batch in batches:
        yield jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def _steps(
    run: RunConfig, workdir: pathlib.Path, batches: Any, step: Callable, state: TrainState, checkpoints: Checkpoints
) -> None:
    """Every remaining step, under a progress bar; metrics are fetched every ``log_every`` steps only."""
    key = run_key(run.seed, jax.sharding.get_mesh())
    start = int(state.step)
    tokens = run.rows * run.budgets.total
    began = time.perf_counter()
    with (
        StopSignals() as signals,
        tqdm(total=run.num_steps, initial=start, desc="training", unit=" steps") as bar,
        (workdir / METRICS).open("a") as log,
    ):
        for number in range(start + 1, run.num_steps + 1):
            state, metrics = step(state, next(batches), key)
            if number % run.log_every == 0 or number == run.num_steps:
                values = {name: float(value) for name, value in metrics.items()}
                _stop_if_not_finite(number, values, workdir)
                seconds, began = time.perf_counter() - began, time.perf_counter()
                done = number - max(start, (number - 1) // run.log_every * run.log_every)
                values |= {"step": number, "tokens_per_second": tokens * done / seconds}
                log.write(json.dumps(values) + "\n")
                log.flush()
                losses = ", ".join(f"{name} {values[name]:.3f}" for name in ("loss", "ce", "mse"))
                bar.set_postfix_str(f"{losses}, {values['tokens_per_second']:,.0f} tokens/s", refresh=False)
                checkpoints.check()
            bar.update()
            name = signals.asked(number)
            if name or number % run.save_every == 0 or number == run.num_steps:
                checkpoints.save(number, state)
            if name and number < run.num_steps:
                checkpoints.finish()
                raise Stopped(f"{name}: saved step {number} of {run.num_steps} to {workdir}; start again to go on")


def _stop_if_not_finite(step: int, values: dict[str, float], workdir: pathlib.Path) -> None:
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise RunError(
            f"step {step}: {', '.join(broken)} not finite; the newest checkpoint in {workdir / 'checkpoints'} is good; "
            "lower optimizer.learning_rate or change the seed"
        )


def cut_metrics(path: pathlib.Path, step: int) -> None:
    """Leaves out what was logged after ``step``, which the run now repeats, and a half written line."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    with new_file(path) as partial:
        partial.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


def _export(workdir: pathlib.Path, say: Say) -> pathlib.Path:
    """The pdgen checkpoint of the last step, which sampling and conversion read; the first process writes it."""
    if not jax.process_index():
        export_newest(workdir, say)
    meet()
    return workdir / EXPORT

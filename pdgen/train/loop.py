"""A training run from its config to its exported checkpoint: set up, resume, step, log, save.

Where parameters come from: the newest whole checkpoint of the workdir, else ``init``, else fresh ones.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint
from pdgen.checkpoints.runs.base import Base
from pdgen.checkpoints.runs.workdir import EXPORT
from pdgen.data.loader import Loader, make_loader
from pdgen.files import Log
from pdgen.models import bagel
from pdgen.sequence.layout import Pack
from pdgen.sharding import RULES, parameter_shardings
from pdgen.train.checkpoint import Checkpoints, meet
from pdgen.train.export import export_newest, resolved_by_all
from pdgen.train.held_out import HeldOut
from pdgen.train.monitor.watch import Draw, Watch
from pdgen.train.preflight import claimed, preflight
from pdgen.train.run_config import RunConfig
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


def train(
    run: RunConfig,
    workdir: pathlib.Path,
    say: Log,
    pictures: Callable[[Base], Draw] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> pathlib.Path:
    """Trains to ``run.num_steps``, resuming what ``workdir`` holds, and exports a pdgen checkpoint.

    Args:
      run: the config.
      workdir: gets ``config.json``, ``metrics.jsonl``, ``held_out.jsonl``, ``tensorboard/``, ``checkpoints/`` and, in
        the end, ``export/``; it is locked while this lasts.
      say: takes a line for the reader.
      pictures: makes, of what the run builds on, a function that is called every ``run.pictures_every`` steps with the
        step and the model's parameters (the moving average, if one is kept), which it must not keep: the next step
        takes their memory.
      devices: to train on; all there are by default.

    Returns:
      The exported checkpoint's folder.

    Raises:
      RunError, and what else ``preflight`` raises: the run cannot start; or a step is not finite, or the last
        checkpoint cannot be saved.
      Stopped: a signal has asked the run to save and leave.
    """
    run = resolved_by_all(run, say)
    base, source, mesh, config = preflight(run, workdir, jax.devices() if devices is None else devices)
    draw = pictures(base) if pictures and run.pictures_every else None
    shardings = state_shardings(config, mesh)
    with (
        claimed(run, workdir, say),
        jax.set_mesh(mesh),
        Checkpoints(workdir, run.keep, run.keep_every, say) as checkpoints,
    ):
        state = _first_state(run, config, shardings, checkpoints, say)
        start = int(state.step)
        batches = make_loader(base.config, source, base.tokenizer, run.loader, start, run.num_steps)
        key = run_key(run.seed, mesh)
        step = functools.partial(compiled_step(config), key=key)
        held_out = HeldOut(config, batches.batches, key, mesh) if run.held_out else None
        with Watch(run, config, workdir, batches.batches, held_out, draw) as watch, StopSignals() as signals:
            watch.start(start)
            _steps(run, state, _on_mesh(batches, mesh), step, watch, signals, checkpoints)
        if batches.skipped:
            say(f"{len(batches.skipped)} broken records were left out")
        checkpoints.finish()
    return _export(workdir, say)


def _first_state(
    run: RunConfig, config: StepConfig, shardings: TrainState, checkpoints: Checkpoints, say: Log
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
        nn.unbox(bagel.abstract_params(config.model, config.compute.param_dtype)),
        places,
    )
    params = load_checkpoint(run.init, {"model": targets}, parts=("model",))[1]["model"]
    start = functools.partial(start_state, config)
    return jax.jit(start, out_shardings=shardings, donate_argnums=0)(params, key)


def _on_mesh(batches: Loader, mesh: Mesh) -> Iterator[Pack]:
    """Each process's rows as global arrays, on their way to the devices."""
    sharding = NamedSharding(mesh, RULES.spec("batch"))
    for batch in batches:
        with jax.transfer_guard("allow"):  # of several processes JAX takes this for an implicit transfer
            placed = jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
        yield placed


def _steps(
    run: RunConfig,
    state: TrainState,
    batches: Iterator[Pack],
    step: Callable,
    watch: Watch,
    signals: StopSignals,
    checkpoints: Checkpoints,
) -> None:
    """Every remaining step. The next batch goes to the devices while a step runs; nothing is fetched unasked."""
    start, batch = int(state.step), next(batches, None)
    with jax.transfer_guard("disallow"):
        for number in range(start + 1, run.num_steps + 1):
            state, metrics = step(state, batch)
            watch.meter.add(number, metrics)
            batch = watch.meter.next_batch(batches)
            if watch.after(number, state):
                checkpoints.check()
            name = signals.asked(number)
            if name or number % run.save_every == 0 or number == run.num_steps:
                watch.check()
                with jax.transfer_guard("allow"):
                    checkpoints.save(number, state)
            if name and number < run.num_steps:
                checkpoints.finish()
                raise Stopped(
                    f"{name}: saved step {number} of {run.num_steps} to {checkpoints.folder.parent}; start "
                    "again to go on"
                )


def _export(workdir: pathlib.Path, say: Log) -> pathlib.Path:
    """The pdgen checkpoint of the last step, which sampling and conversion read; the first process writes it."""
    if not jax.process_index():
        export_newest(workdir, say)
    meet()
    return workdir / EXPORT

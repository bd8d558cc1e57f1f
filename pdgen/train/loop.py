"""A training run from its config to its exported checkpoint: set up, resume, step, log, save.

Parameters come from the newest undamaged checkpoint of the workdir, else from ``init``, else from a random
initialisation.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint
from pdgen.checkpoints.runs.base import Base
from pdgen.checkpoints.runs.layout import LAYOUT, write_layout
from pdgen.checkpoints.runs.workdir import EXPORT
from pdgen.data.image_layout import measure_layout
from pdgen.data.loader import Loader, make_loader
from pdgen.files import Log
from pdgen.models import bagel
from pdgen.sequence.layout import Pack
from pdgen.sharding import RULES, parameter_shardings
from pdgen.train.checkpoint import Checkpoints, barrier
from pdgen.train.export import export_newest, resolve_init_everywhere
from pdgen.train.held_out import HeldOutEvaluator
from pdgen.train.lora import read_initial_adapters
from pdgen.train.monitor.run_monitor import RunMonitor, SamplePictures
from pdgen.train.preflight import claim_workdir, continue_schedule, preflight
from pdgen.train.run_config import RunConfig
from pdgen.train.state import (
    Params,
    StepConfig,
    TrainState,
    abstract_state,
    add_shardings,
    init_state,
    make_state,
    state_shardings,
)
from pdgen.train.step import jit_step, make_run_key
from pdgen.train.stop import Stopped, StopSignals


def train(
    run: RunConfig,
    workdir: pathlib.Path,
    log: Log,
    make_picture_sampler: Callable[[Base], SamplePictures] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> pathlib.Path:
    """Train to ``run.num_steps``, resuming from ``workdir`` if possible, and export a pdgen checkpoint.

    A run whose ``num_steps`` is raised continues from its last checkpoint, see ``continue_schedule``.

    Args:
      run: the config.
      workdir: folder for ``config.json``, ``training_layout.json``, ``metrics.jsonl``, ``held_out.jsonl``,
        ``tensorboard/``, ``checkpoints/`` and, at the end, ``export/``. It is locked while the run lasts.
      log: receives one-line messages for the user.
      make_picture_sampler: makes a function from the base model of the run. It is called every ``run.pictures_every``
        steps with the step and the model's parameters (the moving average, if the run keeps one). It must not keep
        them: the next step reuses their memory.
      devices: devices to train on; all by default.

    Returns:
      The folder of the exported checkpoint.

    Raises:
      RunError: the run cannot start, a step is not finite, or the last checkpoint cannot be saved. ``preflight`` lists
        further errors.
      Stopped: a signal stopped the run, which has saved its state.
    """
    run = continue_schedule(resolve_init_everywhere(run, log), workdir, log)
    base, source, mesh, config = preflight(run, workdir, jax.devices() if devices is None else devices)
    sample_pictures = make_picture_sampler(base) if make_picture_sampler and run.pictures_every else None
    shardings = state_shardings(config, mesh)
    with (
        claim_workdir(run, workdir, log),
        jax.set_mesh(mesh),
        Checkpoints(workdir, run.keep, run.keep_every, log) as checkpoints,
    ):
        if not jax.process_index() and not (workdir / LAYOUT).exists():
            write_layout(workdir, measure_layout(source, run.dropout, base.config))
        state = _restore_or_init(run, config, shardings, checkpoints, log)
        loader = make_loader(base.config, source, base.tokenizer, run.loader_config, int(state.step), run.num_steps)
        with contextlib.closing(loader) as batches:
            key = make_run_key(run.seed, mesh)
            reference = _load_init(run, config, mesh) if config.needs_reference else None
            step = functools.partial(jit_step(config), key=key, reference=reference)
            held_out = HeldOutEvaluator(config, batches.batches, key, mesh, reference) if run.held_out else None
            with (
                RunMonitor(run, config, workdir, log, batches.batches, held_out, sample_pictures) as monitor,
                StopSignals() as signals,
            ):
                monitor.start(int(state.step))
                _run_steps(run, state, _put_on_mesh(batches, mesh), step, monitor, signals, checkpoints)
            if batches.skipped:
                log(f"{len(batches.skipped)} broken records were skipped")
        checkpoints.finish()
    if not jax.process_index():
        export_newest(workdir, log)
    barrier()
    return workdir / EXPORT


def _restore_or_init(
    run: RunConfig, config: StepConfig, shardings: TrainState, checkpoints: Checkpoints, log: Log
) -> TrainState:
    """Return the newest saved state, else the state of ``init``, else a fresh one."""
    if (state := checkpoints.restore(abstract_state(config), shardings)) is not None:
        return state
    key = jax.random.key(run.seed)
    adapters = read_initial_adapters(config.lora, config.model) if config.lora.init else {}
    log(_describe_start(run, config, adapters))
    if run.fresh or not run.init:
        return jax.jit(functools.partial(init_state, config), out_shardings=shardings)(key)
    params = _load_init(run, config, shardings.step.mesh)
    make = functools.partial(make_state, config)
    return jax.jit(make, out_shardings=shardings, donate_argnums=0)(params, key, adapters)


def _load_init(run: RunConfig, config: StepConfig, mesh: Mesh) -> Params:
    """Load the model's parameters from ``init`` onto the mesh."""
    places = parameter_shardings(bagel.abstract_params(config.model), mesh)
    targets = add_shardings(nn.unbox(bagel.abstract_params(config.model, config.compute.param_dtype)), places)
    return load_checkpoint(run.init, {"model": targets}, parts=("model",))[1]["model"]


def _describe_start(run: RunConfig, config: StepConfig, adapters: Mapping[str, np.ndarray]) -> str:
    """Return a line that says how many parameters come from ``init`` and ``lora.init``, which gives ``adapters``."""
    state = abstract_state(config)
    model = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(bagel.abstract_params(config.model))))
    total = sum(leaf.size for leaf in jax.tree.leaves((state.trained, state.frozen)))
    loaded = (model if run.init and not run.fresh else 0) + sum(values.size for values in adapters.values())
    origin = " and ".join(filter(None, (run.init, run.lora.init))) or "no checkpoint"
    return f"{loaded:,} of {total:,} parameters from {origin}, {total - loaded:,} fresh"


def _put_on_mesh(batches: Loader, mesh: Mesh) -> Iterator[Pack]:
    """Yield batches as global arrays made of each process's rows; the transfer to the devices is asynchronous."""
    sharding = NamedSharding(mesh, RULES.spec("batch"))
    for batch in batches:
        with jax.transfer_guard("allow"):  # with several processes JAX counts this as an implicit transfer
            sharded = jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
        yield sharded


def _run_steps(
    run: RunConfig,
    state: TrainState,
    batches: Iterator[Pack],
    step: Callable,
    monitor: RunMonitor,
    signals: StopSignals,
    checkpoints: Checkpoints,
) -> None:
    """Run the remaining steps. The next batch is transferred while a step runs; implicit transfers raise."""
    start, batch = int(state.step), next(batches, None)
    with jax.transfer_guard("disallow"):
        for number in range(start + 1, run.num_steps + 1):
            state, metrics = step(state, batch)
            monitor.meter.add(number, metrics)
            batch = monitor.meter.next_batch(batches)
            if monitor.after_step(number, state):
                checkpoints.check()
            signal_name = signals.poll(number)
            if signal_name or number % run.save_every == 0 or number == run.num_steps:
                monitor.check()
                with jax.transfer_guard("allow"):
                    checkpoints.save(number, state)
            if signal_name and number < run.num_steps:
                checkpoints.finish()
                raise Stopped(
                    f"{signal_name}: saved step {number} of {run.num_steps} to {checkpoints.folder.parent}; start "
                    "again to resume"
                )

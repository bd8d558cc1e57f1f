"""A training run from its config to its exported checkpoint: set up, resume, step, log, save.

Where parameters come from: the newest checkpoint of the workdir, else ``init``, else fresh ones.
"""

import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from pdgen.assets import shapes_folder
from pdgen.config import ModelConfig, preset
from pdgen.convert.pdgen_checkpoint import load_checkpoint, open_checkpoint, write_checkpoint
from pdgen.convert.torch_checkpoint import read_autoencoder
from pdgen.data.latents import autoencoder_fingerprint
from pdgen.data.loader import loader
from pdgen.data.records import RecordSource
from pdgen.interleave.tokenizer import Tokenizer, load_tokenizer
from pdgen.models import bagel
from pdgen.sharding import RULES, make_mesh, parameter_shardings
from pdgen.train.checkpoint import Checkpoints
from pdgen.train.run_config import RunConfig, RunError, run_json
from pdgen.train.state import (
    StepConfig,
    TrainState,
    abstract_state,
    export_params,
    init_state,
    start_state,
    state_shardings,
)
from pdgen.train.step import compiled_step, run_key

Say = Callable[[str], None]


class Base(NamedTuple):
    """What a run builds on: sizes, tokenizer, the autoencoder its latents come from, a BAGEL folder's json files."""

    config: ModelConfig
    tokenizer: Tokenizer
    autoencoder: dict[str, Any]
    source_json: Mapping[str, bytes]


def load_model(run: RunConfig) -> tuple[ModelConfig, Tokenizer]:
    """Sizes and tokenizer of the model to train: ``run.init``'s, or the preset's with shapes world's tokenizer."""
    if run.init:
        return open_checkpoint(run.init).config, load_tokenizer(pathlib.Path(run.init) / "tokenizer")
    return preset(run.model), load_tokenizer(shapes_folder())


def load_base(run: RunConfig) -> Base:
    """The model to train: ``run.init``'s, or the preset with shapes world's tokenizer and autoencoder."""
    config, tokenizer = load_model(run)
    if run.init:
        params = load_checkpoint(run.init, parts=("autoencoder",))[1]
        return Base(config, tokenizer, params["autoencoder"], open_checkpoint(run.init).content().source_json)
    return Base(config, tokenizer, read_autoencoder(shapes_folder(), config.autoencoder), {})


def run_mesh(run: RunConfig, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of ``run`` over ``devices``. Raises RunError or ShardingError naming the numbers."""
    known = math.prod(size for size in run.mesh if size != -1)
    shape = tuple(len(devices) // known if size == -1 else size for size in run.mesh)
    mesh = make_mesh(shape, devices)
    rows = run.accumulate * shape[0] * shape[1]
    if run.rows % rows:
        raise RunError(f"config: rows is {run.rows}, expected a multiple of accumulate * data * fsdp = {rows}")
    return mesh


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
      RunError: another run's workdir, data of another tokenizer, a loss that is not finite.
    """
    base = load_base(run)
    source = _open_data(run, base)
    mesh = run_mesh(run, jax.devices() if devices is None else devices)
    config = run.step(base.config)
    shardings = state_shardings(config, mesh)
    _claim(workdir, run)
    with jax.set_mesh(mesh), Checkpoints(workdir, run.keep) as checkpoints:
        state = _first_state(run, config, shardings, checkpoints, say)
        start = int(state.step)
        batches = loader(base.config, source, base.tokenizer, run.loader, start, run.num_steps)
        state = _steps(run, workdir, _on_mesh(batches, mesh), compiled_step(config), state, checkpoints)
        if batches.skipped:
            say(f"{len(batches.skipped)} broken records were left out")
        return _export(workdir, base, export_params(config, state, "raw"), say)


def _open_data(run: RunConfig, base: Base) -> RecordSource:
    source = RecordSource(run.data)
    origin = source.dataset.origin
    if origin.tokenizer not in (None, base.tokenizer.fingerprint):
        raise RunError(f"{run.data}: was built for another tokenizer than the model's; build it again")
    if origin.autoencoder not in (None, autoencoder_fingerprint(base.autoencoder)):
        raise RunError(f"{run.data}: its latents are another autoencoder's than the model's; build it again")
    return source


def _claim(workdir: pathlib.Path, run: RunConfig) -> None:
    """Writes the resolved config, or refuses a folder that another config's run has used."""
    path = workdir / "config.json"
    text = run_json(run)
    if path.exists() and path.read_text() != text:
        old, new = json.loads(path.read_text()), json.loads(text)
        changed = ", ".join(key for key in new if new[key] != old.get(key))
        raise RunError(f"{path}: holds a run with other values of {changed}; name another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def _first_state(
    run: RunConfig, config: StepConfig, shardings: TrainState, checkpoints: Checkpoints, say: Say
) -> TrainState:
    """Resume > init > fresh."""
    if (latest := checkpoints.latest()) is not None:
        say(f"resuming from step {latest}")
        return checkpoints.restore(latest, abstract_state(config), shardings)
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
) -> TrainState:
    """Every remaining step, under a progress bar; metrics are fetched every ``log_every`` steps only."""
    key = run_key(run.seed, jax.sharding.get_mesh())
    start = int(state.step)
    tokens = run.rows * run.budgets.total
    began = time.perf_counter()
    with (
        tqdm(total=run.num_steps, initial=start, desc="training", unit=" steps") as bar,
        (workdir / "metrics.jsonl").open("a") as log,
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
            bar.update()
            if number % run.save_every == 0 or number == run.num_steps:
                checkpoints.save(number, state)
    return state


def _stop_if_not_finite(step: int, values: dict[str, float], workdir: pathlib.Path) -> None:
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise RunError(
            f"step {step}: {', '.join(broken)} not finite; the newest checkpoint in {workdir / 'checkpoints'} is good; "
            "lower optimizer.learning_rate or change the seed"
        )


def _export(workdir: pathlib.Path, base: Base, trained: dict[str, Any], say: Say) -> pathlib.Path:
    """Writes the trained model as a pdgen checkpoint, which sampling and conversion read."""
    target = workdir / "export"
    params = {"model": trained, "autoencoder": base.autoencoder}
    write_checkpoint(
        target, base.config, params, tokenizer_files=base.tokenizer.files, source_json=base.source_json,
        overwrite=target.exists(),
    )  # fmt: skip
    say(f"exported {target}")
    return target

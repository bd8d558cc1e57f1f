"""Checks of a run before anything is compiled.

Every training starts with ``preflight``. Each error is one line that names the key of the config or the file, and the
remedy.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.runs.base import Base, load_base
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, CONFIG_FILE, list_steps
from pdgen.config import SHAPES_AUTOENCODER, ModelConfig, get_preset
from pdgen.data.documents import expand_ranges
from pdgen.data.latents import fingerprint_autoencoder
from pdgen.data.loader import Batches
from pdgen.data.records import RecordSource
from pdgen.files import Log, check_writable, file_lock, new_file
from pdgen.json_text import load_json
from pdgen.messages import name_some, shorten
from pdgen.sequence.segments import NOISED
from pdgen.sequence.tokenizer import Tokenizer
from pdgen.sequence.trajectory import Record, Text
from pdgen.sharding import MESH_AXES, make_mesh
from pdgen.train.lora import read_initial_adapters
from pdgen.train.monitor.metrics_writer import check_wandb
from pdgen.train.planning.processes import synchronize
from pdgen.train.run_config import RunConfig, RunError, read_run_config, run_to_json
from pdgen.train.state import StepConfig, abstract_state, state_shardings

LOCK = "lock"
# Keys that may change when a run resumes: none of them changes the mathematics.
CHANGEABLE_KEYS = (
    "mesh",
    "accumulate",
    "workers",
    "save_every",
    "log_every",
    "keep",
    "keep_every",
    "held_out_every",
    "pictures_every",
    "prompts",
    "wandb",
)


class PreparedRun(NamedTuple):
    """What ``preflight`` has loaded: the base model, the data set, the mesh and the static settings of a step."""

    base: Base
    source: RecordSource
    mesh: Mesh
    step: StepConfig


def preflight(run: RunConfig, workdir: pathlib.Path, devices: Sequence[jax.Device]) -> PreparedRun:
    """Check a run, whose ``init`` is resolved (``pdgen.train.export.resolve_init``), without writing anything.

    The workdir need not exist; ``devices`` are those of all processes.

    Raises:
      RunError: the mesh, the batch, the checkpoint, the data set or the folder does not fit the run.
      CheckpointError, TokenizerError, RecordError, PackingError, LoaderError, ValueError: raised by the
        parts; every line names the key or file and the remedy.
    """
    check_writable(workdir, RunError)
    check_monitoring(run)
    check_init(run)
    mesh = make_run_mesh(run, devices)
    base = load_base(run.init, run.model)
    check_model(run, base.config, base.tokenizer)
    step = run.step_config(base.config)
    check_sharding(step, mesh)
    check_workdir(run, workdir)
    check_adapters(run, base.config, workdir)
    source = open_data(run, base)
    process = jax.process_index(), jax.process_count()
    batches = Batches(base.config, source, base.tokenizer, run.loader_config, process, run.num_steps)
    if not run.preference.beta:  # every side of a pair has a target, but maybe of one kind only
        check_targets(run, batches)
    return PreparedRun(base, source, mesh, step)


def check_monitoring(run: RunConfig) -> None:
    """Raise RunError if the config asks for wandb or pictures that are not available."""
    check_wandb(run.wandb)
    if run.pictures_every and jax.process_count() > 1:
        raise RunError(
            f"config: pictures_every is {run.pictures_every}, but no process of {jax.process_count()} holds "
            "the whole model; set it to 0 and sample from the workdir (launch/sample.py)"
        )


def resolve_mesh_shape(run: RunConfig, devices: int) -> tuple[int, int, int]:
    """Return the sizes of (data, fsdp, tensor) for a number of devices, with -1 replaced.

    Raises:
      RunError: they do not multiply to the number of devices, or do not divide the rows.
    """
    known = math.prod(size for size in run.mesh if size != -1)
    data, fsdp, tensor = (devices // known if size == -1 else size for size in run.mesh)
    shape = (data, fsdp, tensor)
    if math.prod(shape) != devices:
        named = ", ".join(f"{name} {size}" for name, size in zip(MESH_AXES, run.mesh))
        raise RunError(
            f"config: mesh is {named}, which {devices} devices do not make; set sizes whose product is "
            f"{devices}, for example (1, {devices}, 1), or one of them to -1"
        )
    parts = run.accumulate * shape[0] * shape[1]
    if run.rows % parts:
        raise RunError(
            f"config: rows is {run.rows}, expected a multiple of accumulate * data * fsdp = {parts}; "
            f"set rows to {math.ceil(run.rows / parts) * parts}"
        )
    return shape


def make_run_mesh(run: RunConfig, devices: Sequence[jax.Device]) -> Mesh:
    """Make the mesh of ``run`` over ``devices``. Raises RunError, see ``resolve_mesh_shape``."""
    return make_mesh(resolve_mesh_shape(run, len(devices)), devices)


def check_init(run: RunConfig) -> None:
    """Raise RunError if fresh parameters lack an autoencoder: only shapes world's comes with a preset."""
    if not run.init and get_preset(run.model).autoencoder != SHAPES_AUTOENCODER:
        raise RunError(
            f"config: init is empty, so {run.model} would start from fresh parameters, without its autoencoder and "
            "tokenizer; name a checkpoint with --config.init=CHECKPOINT (to train fresh parameters with its "
            "autoencoder and tokenizer, add --config.fresh)"
        )


def check_model(run: RunConfig, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raise RunError if ``init`` holds another model than ``model``, or the tokenizer exceeds the vocabulary."""
    if run.init and run.model:
        stated = get_preset(run.model)
        parts = [
            part
            for part in ("language", "vision", "autoencoder", "latent_patch_size", "max_latent_size")
            if getattr(stated, part) != getattr(config, part)
        ]
        if parts:
            raise RunError(
                f"config: init {run.init} holds another model than {run.model!r} ({', '.join(parts)} "
                'differ); set model to "" to train what init holds, or name another checkpoint'
            )
    vocabulary = config.language.vocab_size
    if tokenizer.vocab_size > vocabulary:
        raise RunError(
            f"config: the tokenizer of {run.init or run.model} has {tokenizer.vocab_size} ids, the model's "
            f"vocabulary {vocabulary}; use the tokenizer that the model was trained with"
        )


def check_sharding(step: StepConfig, mesh: Mesh) -> None:
    """Raise RunError if the mesh does not divide a parameter, ValueError if the optimizer's keys are invalid."""
    state, shardings = abstract_state(step), state_shardings(step, mesh)

    def check(path: tuple, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> None:
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            name, sizes = jax.tree_util.keystr(path, simple=True, separator="/"), tuple(mesh.shape.values())
            raise RunError(
                f"config: mesh {sizes} (data, fsdp, tensor) does not divide {name} {leaf.shape}, split as "
                f"{sharding.spec}; choose sizes that divide the model's width and heads"
            ) from None

    jax.tree_util.tree_map_with_path(check, state, shardings)


def open_data(run: RunConfig, base: Base) -> RecordSource:
    """Open the data set. Raises RunError if it was built for another tokenizer or autoencoder than the model's."""
    source = RecordSource(run.data)
    origin = source.dataset.origin
    if origin.tokenizer not in (None, base.tokenizer.fingerprint):
        raise RunError(
            f"config: data {run.data} was built for another tokenizer than the model's ({origin.tokenizer[:8]}, not "
            f"{base.tokenizer.fingerprint[:8]}), perhaps by another version of pdgen; build it again"
        )
    own = fingerprint_autoencoder(base.autoencoder)
    if origin.autoencoder not in (None, own):
        raise RunError(
            f"config: data {run.data} has another autoencoder's latents than the model's ({origin.autoencoder[:8]}, "
            f"not {own[:8]}); encode it again (launch/build_data.py encode)"
        )
    return source


def check_targets(run: RunConfig, batches: Batches) -> None:
    """Raise RunError if no document of the mixture has an image target, or none has a text target.

    Such a run would silently train on one half of the objective. With ``ce_weight`` 0 text targets are not required,
    nor image targets of a data set that only asks questions about pictures.
    """
    documents, shares = batches.documents, batches.packer.stream.shares
    mixed_documents = np.concatenate([batches.subsets[name] for name in shares])
    fault = f"config: mixture: no document of {', '.join(map(repr, shares))}"
    first, end = documents.starts[mixed_documents], documents.starts[mixed_documents + 1]
    units, _ = expand_ranges(first, end - first)
    draws = bool((documents.kinds[units] == NOISED).any())
    # Only then are records read: a large data set begins with one that draws.
    if not draws and any(batches.source[n].mode != "understand" for n in np.unique(documents.record).tolist()):
        raise RunError(f"{fault} draws an image, so there is no flow to learn; give a subset that does a weight")
    records = (batches.source[number] for number in np.unique(documents.record[mixed_documents]))
    if run.ce_weight and not any(_has_text_target(record) for record in records):
        raise RunError(
            f"{fault} has a text to learn, so there is nothing but switch tokens in the cross-entropy; give "
            "a subset that has one a weight, or set ce_weight to 0"
        )


def _has_text_target(record: Record) -> bool:
    return any(isinstance(segment, Text) and segment.target for segment in record.segments)


def continue_schedule(run: RunConfig, workdir: pathlib.Path, log: Log) -> RunConfig:
    """Return ``run`` with the learning rate schedule of the run in ``workdir``, if it is given more steps.

    A cosine schedule that ends later would have had other learning rates in the steps that are done. So it keeps its
    end, and the further steps have its last learning rate. A constant schedule just continues. ``log`` receives a line
    about the further steps. The workdir need not exist.

    Raises:
      RunError: the run is given fewer steps than it was begun with, or its config cannot be read.
    """
    old = _read_old_config(workdir)
    begun = old.get("num_steps")
    if not isinstance(begun, int) or not isinstance(old.get("optimizer"), dict):
        return run
    if run.num_steps < begun:
        raise RunError(
            f"config: num_steps is {run.num_steps}, but the run in {workdir} was begun with {begun}; they can only be "
            "raised, or name another --workdir"
        )
    optimizer = run.optimizer
    end = old["optimizer"].get("decay_steps") or begun
    if optimizer.schedule == "cosine" and not optimizer.decay_steps and end < run.num_steps:
        run = dataclasses.replace(run, optimizer=dataclasses.replace(optimizer, decay_steps=end))
    if run.num_steps > begun:
        kept = "the constant learning rate continues"
        if optimizer.schedule == "cosine":
            kept = f"those after step {run.optimizer.decay_steps} have the cosine schedule's last learning rate"
        log(f"{workdir}: num_steps is raised from {begun} to {run.num_steps}; {kept}")
    return run


def _read_old_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Read the config of the run in ``workdir`` with today's defaults of missing keys; {} if there is none."""
    path = workdir / CONFIG_FILE
    try:
        values = load_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as fault:
        raise RunError(f"{path}: not valid json ({fault}); name another --workdir") from None
    if not isinstance(values, dict):
        raise RunError(f"{path}: holds no config of a run; name another --workdir")
    try:
        return json.loads(run_to_json(read_run_config(values)))
    except RunError:  # of another version
        return values


def check_adapters(run: RunConfig, config: ModelConfig, workdir: pathlib.Path) -> None:
    """Raise RunError or CheckpointError if a new run cannot start from the adapters of ``lora.init``."""
    if not run.lora.init or list_steps(workdir / CHECKPOINTS):
        return
    if not run.init:
        raise RunError("config: lora.init needs init, the checkpoint that was adapted")
    try:
        read_initial_adapters(run.lora, config)
    except CheckpointError:
        raise
    except ValueError as fault:
        raise RunError(f"config: {fault}") from None


def check_workdir(run: RunConfig, workdir: pathlib.Path) -> None:
    """Raise RunError if the folder holds a run that differs in keys outside ``CHANGEABLE_KEYS``."""
    path = workdir / CONFIG_FILE
    old, new = (_flatten_config(values) for values in (_read_old_config(workdir), json.loads(run_to_json(run))))
    if not old:
        return
    if isinstance(old.get("num_steps"), int) and run.num_steps > old["num_steps"]:
        old["num_steps"] = run.num_steps  # see continue_schedule
    names = [key for key in {**new, **old} if key.partition(".")[0] not in CHANGEABLE_KEYS]
    if changed := [key for key in names if new.get(key) != old.get(key)]:
        values = name_some(f"{key} ({_shorten(old.get(key))}, now {_shorten(new.get(key))})" for key in changed)
        raise RunError(f"{path}: holds a run with other values of {values}; name another --workdir")


def _flatten_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values by dotted key, with the step at which the schedule ends as the one that applies."""
    flat: dict[str, Any] = traverse_util.flatten_dict(config, sep=".")
    if flat.get("optimizer.schedule") == "constant":
        flat.pop("optimizer.decay_steps", None)
    elif flat:
        flat["optimizer.decay_steps"] = flat.get("optimizer.decay_steps") or flat.get("num_steps")
    return flat


def _shorten(value: object) -> str:
    return shorten(json.dumps(value), 30)


@contextlib.contextmanager
def claim_workdir(run: RunConfig, workdir: pathlib.Path, log: Log) -> Generator[None, None, None]:
    """Lock the run's folder and write the resolved config into it, in the first process.

    The operating system releases the lock when the process ends, however it ends.

    Raises:
      RunError: another run holds the lock. The other processes raise a ValueError with the same message.
    """
    with contextlib.ExitStack() as stack:
        synchronize(lambda: None if jax.process_index() else _claim_workdir(stack, run, workdir, log))
        yield


def _claim_workdir(stack: contextlib.ExitStack, run: RunConfig, workdir: pathlib.Path, log: Log) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        if not stack.enter_context(file_lock(workdir / LOCK)):
            raise RunError(f"{workdir}: another run is training here; wait for its end, or name another --workdir")
    except OSError as fault:
        log(f"{workdir}: cannot be locked ({fault.strerror}); make sure that no other run starts here")
    with new_file(workdir / CONFIG_FILE) as partial:
        partial.write_text(run_to_json(run))

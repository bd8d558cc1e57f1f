"""Everything that can be known to be wrong with a run before anything is compiled.

``preflight`` runs first in every training: each fault is one line that names the config's key or the file, and
what to do.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Generator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pdgen.checkpoints.runs.base import Base, load_base
from pdgen.checkpoints.runs.workdir import CONFIG_FILE
from pdgen.config import ModelConfig, get_preset
from pdgen.data.documents import expand_ranges
from pdgen.data.latents import fingerprint_autoencoder
from pdgen.data.loader import Batches
from pdgen.data.records import RecordSource
from pdgen.files import Log, file_lock, new_file
from pdgen.sequence.segments import NOISED
from pdgen.sequence.tokenizer import Tokenizer
from pdgen.sequence.trajectory import Record, Text
from pdgen.sharding import MESH_AXES, make_mesh
from pdgen.train.monitor.board import check_wandb
from pdgen.train.run_config import RunConfig, RunError, run_json
from pdgen.train.state import StepConfig, abstract_state, state_shardings

LOCK = "lock"
# What a run may change when it goes on: none of these keys changes the mathematics.
MAY_CHANGE = (
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


class Checked(NamedTuple):
    """What ``preflight`` has opened on the way."""

    base: Base
    source: RecordSource
    mesh: Mesh
    step: StepConfig


def preflight(run: RunConfig, workdir: pathlib.Path, devices: Sequence[jax.Device]) -> Checked:
    """Checks a run from its mesh to its data. Nothing is written.

    Args:
      run: the config.
      workdir: the run's folder; it need not exist.
      devices: to train on, over all processes.

    Raises:
      RunError: the mesh, the batch, the checkpoint, the data set or the folder does not suit the run.
      CheckpointError, TokenizerError, RecordError, PackingError, LoaderError, ValueError: as the parts raise
        them; every line names the key or file and the remedy.
    """
    check_watching(run)
    mesh = run_mesh(run, devices)
    base = load_base(run.init, run.model)
    check_model(run, base.config, base.tokenizer)
    step = run.step(base.config)
    check_divides(step, mesh)
    check_workdir(run, workdir)
    source = open_data(run, base)
    process = jax.process_index(), jax.process_count()
    batches = Batches(base.config, source, base.tokenizer, run.loader, process, run.num_steps)
    check_targets(run, batches)
    return Checked(base, source, mesh, step)


def check_watching(run: RunConfig) -> None:
    """Raises RunError where pictures or wandb are asked for that cannot be had."""
    check_wandb(run.wandb)
    if run.pictures_every and jax.process_count() > 1:
        raise RunError(
            f"config: pictures_every is {run.pictures_every}, but no process of {jax.process_count()} holds "
            "the whole model; set it to 0 and sample from the workdir (launch/sample.py)"
        )


def mesh_shape(run: RunConfig, devices: int) -> tuple[int, int, int]:
    """Sizes of (data, fsdp, tensor) with -1 filled in.

    Raises:
      RunError: they do not multiply to the number of devices, or the rows do not divide among them.
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


def run_mesh(run: RunConfig, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of ``run`` over ``devices``; see ``mesh_shape``."""
    return make_mesh(mesh_shape(run, len(devices)), devices)


def check_model(run: RunConfig, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raises RunError where ``init`` is another model than ``model``, or the tokenizer has more ids than the model."""
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
            f"vocabulary {vocabulary}; use the tokenizer that the model was made with"
        )


def check_divides(step: StepConfig, mesh: Mesh) -> None:
    """Raises RunError where the mesh does not divide a parameter; ValueError where the optimiser's keys are wrong."""
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
    """The data set. Raises RunError if it was made for another tokenizer or autoencoder than the model's."""
    source = RecordSource(run.data)
    origin = source.dataset.origin
    if origin.tokenizer not in (None, base.tokenizer.fingerprint):
        raise RunError(
            f"config: data {run.data} was built for another tokenizer than the model's "
            f"({origin.tokenizer[:8]}, not {base.tokenizer.fingerprint[:8]}), perhaps by another version of "
            "pdgen; build it again"
        )
    own = fingerprint_autoencoder(base.autoencoder)
    if origin.autoencoder not in (None, own):
        raise RunError(
            f"config: data {run.data} has another autoencoder's latents than the model's "
            f"({origin.autoencoder[:8]}, not {own[:8]}); encode it again "
            "(launch/build_data.py encode)"
        )
    return source


def check_targets(run: RunConfig, batches: Batches) -> None:
    """Raises RunError where no document of the mixture bears a loss of one of the two kinds.

    Such a run would train on one half of the objective and never say so. With ``ce_weight`` 0 texts need none.
    """
    documents, shares = batches.documents, batches.packer.stream.shares
    chosen = np.concatenate([batches.subsets[name] for name in shares])
    mixed = f"config: mixture: no document of {', '.join(map(repr, shares))}"
    first, end = documents.starts[chosen], documents.starts[chosen + 1]
    units, _ = expand_ranges(first, end - first)
    if not (documents.kinds[units] == NOISED).any():
        raise RunError(f"{mixed} draws an image, so there is no flow to learn; give a subset that does a weight")
    records = (batches.source[number] for number in np.unique(documents.record[chosen]))
    if run.ce_weight and not any(_has_text_target(record) for record in records):
        raise RunError(
            f"{mixed} has a text to learn, so there is nothing but switch tokens in the cross-entropy; give "
            "a subset that has one a weight, or set ce_weight to 0"
        )


def _has_text_target(record: Record) -> bool:
    return any(isinstance(segment, Text) and segment.target for segment in record.segments)


def check_workdir(run: RunConfig, workdir: pathlib.Path) -> None:
    """Raises RunError where the folder holds a run with other values of keys that change the mathematics."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise RunError(f"{path}: not valid json ({fault}); name another --workdir") from None
    new = json.loads(run_json(run))
    changed = [key for key in {**new, **old} if key not in MAY_CHANGE and new.get(key) != old.get(key)]
    if changed:
        values = ", ".join(f"{key} ({_short(old.get(key))}, now {_short(new.get(key))})" for key in changed)
        raise RunError(f"{path}: holds a run with other values of {values}; name another --workdir")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextlib.contextmanager
def claimed(run: RunConfig, workdir: pathlib.Path, say: Log) -> Generator[None, None, None]:
    """Writes the resolved config into the run's folder and keeps other runs out of it; the first process does.

    The lock is the operating system's: it ends with the process, however that ends.

    Raises:
      RunError: another run is in the folder; in every process.
    """
    if jax.process_index():
        _agree("")
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            if not stack.enter_context(file_lock(workdir / LOCK)):
                _agree(f"{workdir}: another run is training here; wait for its end, or name another --workdir")
        except OSError as fault:
            say(f"{workdir}: cannot be locked ({fault.strerror}); see to it that no other run is started here")
        _agree("")
        with new_file(workdir / CONFIG_FILE) as partial:
            partial.write_text(run_json(run))
        yield


def _agree(fault: str) -> None:
    """Raises RunError in every process where the first one has found a fault."""
    if jax.process_count() > 1:
        line = np.frombuffer(fault.encode()[:512].ljust(512), np.uint8)
        fault = bytes(multihost_utils.broadcast_one_to_all(line)).decode(errors="replace").strip()
    if fault:
        raise RunError(fault)

"""Loads a model from any path: a pdgen checkpoint, the name of a shipped model, or the folder of a training run.

Loading writes nothing: the parameters of a run are read from its newest intact step, array by array.
"""

import pathlib
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from pdgen.checkpoints import stream
from pdgen.checkpoints.adapters.peft import is_adapter
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.manifest import MANIFEST
from pdgen.checkpoints.pdgen_checkpoint import (
    TOKENIZER,
    Params,
    is_checkpoint,
    load_checkpoint,
    make_content,
    open_checkpoint,
)
from pdgen.checkpoints.runs.base import Base, load_base
from pdgen.checkpoints.runs.layout import LAYOUT, TrainingLayout, read_layout
from pdgen.checkpoints.runs.step import LazyArray, Weights, is_step, open_params, read_facts
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, EXPORT, find_corruption, find_newest_step, is_run
from pdgen.checkpoints.shipped import SHIPPED, shipped_checkpoint, shipped_name
from pdgen.checkpoints.sources.weights import holds_weights
from pdgen.checkpoints.torch_checkpoint import is_bagel_folder
from pdgen.config import ModelConfig
from pdgen.files import Log, log_stderr, sha256
from pdgen.models import autoencoder, bagel
from pdgen.models.linear import is_int8
from pdgen.models.mot import EXPERTS
from pdgen.sequence.tokenizer import WHOLE_TOKENIZER, Tokenizer, holds_tokenizer, load_tokenizer
from pdgen.sharding import (
    ShardingError,
    count_host_bytes,
    parameter_shardings,
    read_available_bytes,
    to_host_memory,
)


class LoadedModel(NamedTuple):
    """A model in memory.

    Attributes:
      config: sizes.
      params: ``{"model": tree, "autoencoder": tree}``.
      tokenizer: the model's tokenizer.
      name: the folder of the checkpoint, or a shipped model's name; "" for parameters that were made in memory.
      digest: SHA-256 (hex) of the manifest, which identifies the model; "" for parameters that were made in memory.
      layout: how training laid out images; None if that is not recorded.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    name: str = ""
    digest: str = ""
    layout: TrainingLayout | None = None


class RunStep(NamedTuple):
    """A step of a run: the base of the run, and ``{"model": tree, "autoencoder": tree}``, whose model is lazy."""

    base: Base
    params: dict[str, Any]


def find(path: str | pathlib.Path, log: Log = log_stderr) -> pathlib.Path:
    """Find the checkpoint that ``path`` means.

    Args:
      path: a pdgen checkpoint, the name of a shipped model, the workdir of a training run, or one of its steps,
        ``WORKDIR/checkpoints/STEP``.
      log: receives a line for each damaged step.

    Returns:
      The folder of a pdgen checkpoint or of a step. For a run it is its newest intact step, or ``export/`` if that is
      at least as new.

    Raises:
      CheckpointError: there is no checkpoint, or it has no tokenizer.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        if name := shipped_name(path):
            return shipped_checkpoint(name)
        raise CheckpointError(
            f"{path}: no such folder; name a pdgen checkpoint, the workdir of a training run, or {' or '.join(SHIPPED)}"
        )
    if is_bagel_folder(path):
        raise CheckpointError(
            f"{path}: is a BAGEL folder; convert it first: python launch/convert.py --source={path} --target=NEW_FOLDER"
        )
    if is_adapter(path):
        raise CheckpointError(
            f"{path}: is a PEFT adapter; merge it first: python launch/convert.py --source={path} --base=CHECKPOINT "
            "--target=NEW_FOLDER"
        )
    if is_step(path):
        return path
    if not is_checkpoint(path) and is_run(path) and (step := find_newest_step(path, log)) is not None:
        return path / CHECKPOINTS / str(step)
    folder = next((f for f in (path, path / EXPORT) if is_checkpoint(f)), None)
    if folder is None and holds_weights(path):
        raise CheckpointError(
            f"{path}: holds a PyTorch model; convert it first: python launch/convert.py --source={path} "
            "--base=BAGEL-7B-MoT --target=NEW_FOLDER"
        )
    if folder is None:
        raise CheckpointError(
            f"{path}: is no pdgen checkpoint and no workdir of a training run; "
            "launch/convert.py and launch/train.py make them"
        )
    if not holds_tokenizer(folder / TOKENIZER):
        raise CheckpointError(f"{folder}: has no tokenizer; convert again from a folder that holds {WHOLE_TOKENIZER}")
    return folder


def load(
    path: str | pathlib.Path, mesh: Mesh | None = None, log: Log = log_stderr, offload: str | None = None
) -> LoadedModel:
    """Load a model with the stored dtypes; of a run, load the raw parameters.

    Args:
      path, log: see ``find``.
      mesh, offload: the devices that hold the parameters, and the expert whose layers are in host memory, see
        ``make_shardings``.

    Raises:
      CheckpointError, ConfigError, TokenizerError: the checkpoint is missing or damaged.
      ShardingError: see ``make_shardings``; or the host has less memory than the parameters need there.
    """
    folder = find(path, log)
    if is_step(folder):
        return _load_step(folder, mesh, offload)
    model = describe(folder, log)
    shardings = make_shardings(model.config, mesh, is_int8(model.params["model"]), offload)
    _check_host_memory(model.name, model.params, shardings, offload)
    return model._replace(params=load_checkpoint(folder, shardings)[1])


def describe(path: str | pathlib.Path, log: Log = log_stderr) -> LoadedModel:
    """Open a model without reading its weights: shapes in place of the parameters, and no digest of a run's step.

    Arguments and errors as ``load``.
    """
    folder = find(path, log)
    if is_step(folder):
        step = open_step(folder)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), step.params)
        layout = read_layout(step.base.source_json)
        return LoadedModel(step.base.config, shapes, step.base.tokenizer, str(folder), layout=layout)
    content, tokenizer = open_checkpoint(folder).content(), load_tokenizer(folder / TOKENIZER)
    shapes, layout = traverse_util.unflatten_dict(content.shapes(), sep="/"), read_layout(content.source_json)
    name = shipped_name(folder) or str(folder)
    return LoadedModel(content.config, shapes, tokenizer, name, compute_digest(folder), layout)


def load_autoencoder(path: str | pathlib.Path, log: Log = log_stderr) -> tuple[ModelConfig, Params]:
    """Load the sizes and the autoencoder's parameters onto the default device; arguments and errors as ``load``."""
    folder = find(path, log)
    if is_step(folder):
        base = _base(folder)
        return base.config, base.autoencoder
    config, params = load_checkpoint(folder, parts=("autoencoder",))
    return config, params["autoencoder"]


def compute_digest(folder: pathlib.Path) -> str:
    """Return the SHA-256 (hex) of the manifest of the model in ``folder``, a result of ``find``.

    For a step of a run it is the manifest of its export, and all parameters are read to compute it.
    """
    if is_checkpoint(folder):
        return sha256((folder / MANIFEST).read_bytes())
    return _step_digest(open_step(folder), str(folder))


def open_step(folder: pathlib.Path, weights: Weights = "raw") -> RunStep:
    """Open a saved step of a run.

    Args:
      folder: ``WORKDIR/checkpoints/STEP``.
      weights: "raw", or "ema" for the moving average of the trained parameters.

    Raises:
      CheckpointError: the run's config, its base or an array of the step cannot be read, or the run keeps no average.
    """
    base = _base(folder)
    model = open_params(base.config, read_facts(_workdir(folder)), folder, weights)
    return RunStep(base, {"model": model, "autoencoder": base.autoencoder})


def make_shardings(
    config: ModelConfig, mesh: Mesh | None, int8: bool = False, offload: str | None = None
) -> dict[str, Any]:
    """Return the shardings of all parameters.

    Args:
      config, int8: sizes; whether it is an int8 model.
      mesh: splits the model's parameters and has a copy of the autoencoder's on each device; None: the default device.
      offload: the expert, "und" or "gen", whose layers are in host memory; None: all parameters are on the devices.

    Raises:
      ShardingError: the tensor axis does not divide the key/value heads, there is no such expert, or the devices cannot
        read host memory.
    """
    if offload is not None and offload not in EXPERTS:
        raise ShardingError(f"offload={offload}: there is no such expert; choose {' or '.join(EXPERTS)}")
    abstract = bagel.abstract_params(config, int8=int8)
    replicated: Sharding = SingleDeviceSharding(jax.local_devices()[0])
    if mesh is None:
        model = jax.tree.map(lambda _: replicated, nn.unbox(abstract))
    else:
        _check_heads(config, mesh)
        replicated, model = NamedSharding(mesh, PartitionSpec()), parameter_shardings(abstract, mesh)
    if offload is not None:
        layers = model["language"]["layers"]
        layers[offload] = jax.tree.map(to_host_memory, layers[offload])
    shapes = autoencoder.abstract_params(config.autoencoder)
    return {"model": model, "autoencoder": jax.tree.map(lambda _: replicated, shapes)}


def _check_heads(config: ModelConfig, mesh: Mesh) -> None:
    tensor, heads = mesh.shape["tensor"], config.language.num_kv_heads
    if heads % tensor:
        raise ShardingError(
            f"mesh (data, fsdp, tensor) with tensor={tensor}: must divide the model's {heads} "
            "key/value heads; choose a smaller one"
        )


def _check_host_memory(name: str, shapes: Params, shardings: Params, offload: str | None) -> None:
    """Raise ShardingError where the host has too little memory: without this check the system kills the process."""
    needed, free = count_host_bytes(shapes, shardings), read_available_bytes()
    if needed <= free:
        return
    remedies = ["free some", *["leave out offload"] * (offload is not None)]
    remedies += [] if is_int8(shapes["model"]) else ["round it with launch/convert.py --quantize=int8"]
    raise ShardingError(
        f"{name}: parameters need {needed:,} bytes of the host's memory, {free:,} are available; "
        + ", or ".join(remedies)
    )


def _workdir(folder: pathlib.Path) -> pathlib.Path:
    return folder.absolute().parent.parent


def _base(folder: pathlib.Path) -> Base:
    """Load the base of the run that has the step ``folder``."""
    facts = read_facts(_workdir(folder))
    if facts.init:
        origin = find(facts.init)
        base = _base(origin) if is_step(origin) else load_base(str(origin), "")
    else:
        base = load_base("", facts.model)
    layout = _workdir(folder) / LAYOUT
    return base._replace(source_json={**base.source_json, LAYOUT: layout.read_bytes()}) if layout.is_file() else base


def _load_step(folder: pathlib.Path, mesh: Mesh | None, offload: str | None) -> LoadedModel:
    if fault := find_corruption(folder):
        raise CheckpointError(f"{folder}: the step is damaged, {fault}; name an older one, or the workdir")
    step = open_step(folder)
    shardings = make_shardings(step.base.config, mesh, offload=offload)
    _check_host_memory(str(folder), step.params, shardings, offload)
    params = jax.tree.map(_put, step.params, shardings)
    layout = read_layout(step.base.source_json)
    digest = _step_digest(step, str(folder))
    return LoadedModel(step.base.config, params, step.base.tokenizer, str(folder), digest, layout)


def _put(leaf: LazyArray | jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    """Put an array onto devices; each device reads its own part of a lazy one."""
    if isinstance(leaf, jax.Array):
        return jax.device_put(leaf, sharding)
    whole = (slice(None),) * len(leaf.shape)  # jax may pass None for it
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[whole if index is None else index])


def _step_digest(step: RunStep, source: str) -> str:
    files = step.base.tokenizer.files
    content, read = make_content("", step.base.config, step.params, files, step.base.source_json)
    digests = stream.move(content.jobs(), read, None, title="reading", source=source)
    return sha256(content.manifest(digests, content.files()).text().encode())

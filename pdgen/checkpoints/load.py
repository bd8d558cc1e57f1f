"""One way from a path to a model: a pdgen checkpoint, a shipped model's name, or a training run's folder.

Nothing is written: the parameters of a run are read from its newest whole step, array by array.
"""

import pathlib
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdgen.checkpoints import stream
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
from pdgen.checkpoints.runs.step import Stored, Weights, is_step, open_params, read_facts
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, EXPORT, find_corruption, is_run, newest_whole
from pdgen.checkpoints.shipped import SHIPPED, shipped_checkpoint, shipped_name
from pdgen.checkpoints.torch_checkpoint import WHOLE_TOKENIZERS, is_bagel_folder
from pdgen.config import ModelConfig
from pdgen.files import Say, sha256, to_stderr
from pdgen.models import autoencoder, bagel
from pdgen.sequence.tokenizer import Tokenizer, load_tokenizer
from pdgen.sharding import ShardingError, parameter_shardings


class Loaded(NamedTuple):
    """A model in memory.

    Attributes:
      config: sizes.
      params: ``{"model": tree, "autoencoder": tree}``.
      tokenizer: the model's own.
      name: the folder that it was read from, or a shipped model's name; "" for parameters made in memory.
      digest: SHA-256 (hex) that tells any two models apart, that of the manifest; "" for parameters made in memory.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    name: str = ""
    digest: str = ""


class Step(NamedTuple):
    """A step of a run: what the run builds on, and ``{"model": tree, "autoencoder": tree}``, read lazily."""

    base: Base
    params: dict[str, Any]


def find(path: str | pathlib.Path, say: Say = to_stderr) -> pathlib.Path:
    """The folder that ``path`` leads to; ``load`` and ``digest_of`` take it too.

    Args:
      path: a pdgen checkpoint, the name of a shipped model, the workdir of a training run, or one of its steps,
        ``WORKDIR/checkpoints/STEP``.
      say: takes a line about each damaged step of a run.

    Returns:
      A pdgen checkpoint; or of a run its newest whole step, or ``export/`` if that is of the same step.

    Raises:
      CheckpointError: there is none, or it has no tokenizer; one line says what to do.
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
    if is_step(path):
        return path
    if not is_checkpoint(path) and is_run(path) and (step := newest_whole(path, say)) is not None:
        return path / CHECKPOINTS / str(step)
    folder = next((f for f in (path, path / EXPORT) if is_checkpoint(f)), None)
    if folder is None:
        raise CheckpointError(
            f"{path}: is no pdgen checkpoint, and no workdir of a training run; "
            "launch/convert.py and launch/train.py make them"
        )
    if not any((folder / TOKENIZER / name).is_file() for name in WHOLE_TOKENIZERS):
        raise CheckpointError(
            f"{folder}: has no tokenizer; convert again from a folder that holds {' or '.join(WHOLE_TOKENIZERS)}"
        )
    return folder


def load(path: str | pathlib.Path, mesh: Mesh | None = None, say: Say = to_stderr) -> Loaded:
    """Reads a model onto ``mesh`` or the default device, values as stored; of a run the raw parameters.

    Args:
      path: see ``find``.

    Raises:
      CheckpointError, ConfigError, TokenizerError: there is no checkpoint, or it is damaged.
      ShardingError: as ``shardings``.
    """
    folder = find(path, say)
    if is_step(folder):
        return _load_step(folder, mesh)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    config, params = load_checkpoint(folder, shardings(open_checkpoint(folder).config, mesh) if mesh else None)
    return Loaded(config, params, tokenizer, shipped_name(folder) or str(folder), digest_of(folder))


def load_autoencoder(path: str | pathlib.Path, say: Say = to_stderr) -> tuple[ModelConfig, Params]:
    """Sizes and the autoencoder's parameters alone, on the default device; arguments and errors as ``load``."""
    folder = find(path, say)
    if is_step(folder):
        base = _base(folder)
        return base.config, base.autoencoder
    config, params = load_checkpoint(folder, parts=("autoencoder",))
    return config, params["autoencoder"]


def digest_of(folder: pathlib.Path) -> str:
    """SHA-256 (hex) of the manifest of the model in ``folder``, which ``find`` has found.

    A step of a run has the manifest that its export would have; all of its parameters are read for it.
    """
    return sha256((folder / MANIFEST).read_bytes()) if is_checkpoint(folder) else _step_digest(open_step(folder))


def open_step(folder: pathlib.Path, weights: Weights = "raw") -> Step:
    """A saved step of a run.

    Args:
      folder: ``WORKDIR/checkpoints/STEP``.
      weights: "raw", or "ema" for the moving average of what is trained.

    Raises:
      CheckpointError: the run's config, what it builds on, or an array of the step cannot be read; or the run keeps
        no average.
    """
    base = _base(folder)
    model = open_params(base.config, read_facts(_workdir(folder)), folder, weights)
    return Step(base, {"model": model, "autoencoder": base.autoencoder})


def shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """How the parameters are split over ``mesh``: the autoencoder's are not, every device holds them.

    Raises:
      ShardingError: the tensor axis does not divide the key/value heads.
    """
    tensor, heads = mesh.shape["tensor"], config.language.num_kv_heads
    if heads % tensor:
        raise ShardingError(
            f"mesh (data, fsdp, tensor) with tensor={tensor}: must divide the model's {heads} "
            "key/value heads; choose a smaller one"
        )
    whole = NamedSharding(mesh, PartitionSpec())
    return {
        "model": parameter_shardings(bagel.abstract_params(config), mesh),
        "autoencoder": jax.tree.map(lambda _: whole, autoencoder.abstract_params(config.autoencoder)),
    }


def _workdir(folder: pathlib.Path) -> pathlib.Path:
    return folder.absolute().parent.parent


def _base(folder: pathlib.Path) -> Base:
    """What the run of a step builds on."""
    facts = read_facts(_workdir(folder))
    if not facts.init:
        return load_base("", facts.model)
    origin = find(facts.init)
    return _base(origin) if is_step(origin) else load_base(str(origin), "")


def _load_step(folder: pathlib.Path, mesh: Mesh | None) -> Loaded:
    if fault := find_corruption(folder):
        raise CheckpointError(f"{folder}: the step is damaged, {fault}; name an older one, or the workdir")
    step = open_step(folder)
    if mesh is None:
        places: Any = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: places, step.params)
    else:
        places = shardings(step.base.config, mesh)
    params = jax.tree.map(_on_devices, step.params, places)
    return Loaded(step.base.config, params, step.base.tokenizer, str(folder), _step_digest(step))


def _on_devices(leaf: Stored | jax.Array, place: jax.sharding.Sharding) -> jax.Array:
    """Each device reads its own part."""
    if isinstance(leaf, jax.Array):
        return jax.device_put(leaf, place)
    return jax.make_array_from_callback(leaf.shape, place, leaf.__getitem__)


def _step_digest(step: Step) -> str:
    files = step.base.tokenizer.files
    content, read = make_content("", step.base.config, step.params, files, step.base.source_json)
    digests = stream.move(content.jobs(), read, None, title="reading")
    return sha256(content.manifest(digests, content.files()).text().encode())

"""The checkpoint that is sampled from: a pdgen checkpoint, or the newest step of a training run."""

import pathlib
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdgen.checkpoints.manifest import MANIFEST
from pdgen.checkpoints.pdgen_checkpoint import TOKENIZER, load_checkpoint, open_checkpoint
from pdgen.checkpoints.shipped import shipped_name
from pdgen.config import ModelConfig
from pdgen.files import sha256
from pdgen.models import autoencoder, bagel
from pdgen.sequence.tokenizer import Tokenizer, load_tokenizer
from pdgen.sharding import ShardingError, parameter_shardings
from pdgen.train.export import find_checkpoint


class Loaded(NamedTuple):
    """Sizes, ``{"model": tree, "autoencoder": tree}`` and tokenizer of one checkpoint, its name and digest.

    The name is the folder, or that of a model that the package brings along.
    """

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    name: str
    model_hash: str


def shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """How the parameters are split over ``mesh``: the autoencoder's are not, every device holds them.

    Raises:
      ShardingError: the tensor axis does not divide the key/value heads.
    """
    tensor, heads = mesh.shape["tensor"], config.language.num_kv_heads
    if heads % tensor:
        raise ShardingError(f"mesh (data, fsdp, tensor) with tensor={tensor}: must divide the model's {heads} "
                            "key/value heads; choose a smaller one")  # fmt: skip
    whole = NamedSharding(mesh, PartitionSpec())
    return {
        "model": parameter_shardings(bagel.abstract_params(config), mesh),
        "autoencoder": jax.tree.map(lambda _: whole, autoencoder.abstract_params(config.autoencoder)),
    }


def load(path: str | pathlib.Path, mesh: Mesh | None = None) -> Loaded:
    """Reads a checkpoint onto ``mesh`` or the default device, values as stored.

    Args:
      path: see ``pdgen.train.export.find_checkpoint``.

    Raises:
      CheckpointError, ConfigError, TokenizerError, RunError: there is no checkpoint, or it is damaged.
      ShardingError: as ``shardings``.
    """
    folder = find_checkpoint(path)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    config, params = load_checkpoint(folder, shardings(open_checkpoint(folder).config, mesh) if mesh else None)
    name = shipped_name(folder) or str(folder)
    return Loaded(config, params, tokenizer, name, sha256((folder / MANIFEST).read_bytes()))

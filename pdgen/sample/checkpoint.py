"""The checkpoint that is sampled from: a pdgen checkpoint, or the newest step of a training run."""

import pathlib
from typing import Any, NamedTuple

from pdgen.config import ModelConfig
from pdgen.convert.pdgen_checkpoint import TOKENIZER, load_checkpoint
from pdgen.interleave.tokenizer import Tokenizer, load_tokenizer
from pdgen.train.export import find_checkpoint


class Loaded(NamedTuple):
    """Sizes, ``{"model": tree, "autoencoder": tree}`` and tokenizer of one checkpoint, and its folder."""

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    folder: pathlib.Path


def load(path: str | pathlib.Path) -> Loaded:
    """Reads a checkpoint onto the default device, values as stored.

    Args:
      path: see ``pdgen.train.export.find_checkpoint``.

    Raises:
      CheckpointError, ConfigError, TokenizerError, RunError: there is no checkpoint, or it is damaged.
    """
    folder = find_checkpoint(path)
    config, params = load_checkpoint(folder)
    return Loaded(config, params, load_tokenizer(folder / TOKENIZER), folder)

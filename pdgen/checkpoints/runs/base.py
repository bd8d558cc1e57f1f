"""The base of a training run: the model's sizes, its tokenizer, and the autoencoder that encoded the data."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pdgen.assets import shapes_folder
from pdgen.checkpoints.pdgen_checkpoint import TOKENIZER, Checkpoint, load_checkpoint, open_checkpoint
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import ModelConfig, get_preset
from pdgen.sequence.tokenizer import Tokenizer, load_tokenizer


class Base(NamedTuple):
    """Sizes, tokenizer, autoencoder parameters, and the json files of the original BAGEL folder, if any."""

    config: ModelConfig
    tokenizer: Tokenizer
    autoencoder: dict[str, Any]
    source_json: Mapping[str, bytes]


def load_model(init: str, model: str) -> tuple[ModelConfig, Tokenizer]:
    """Load sizes and tokenizer of the model to train.

    Args:
      init: the pdgen checkpoint from which the run starts; "" for new parameters.
      model: the preset of new parameters; their tokenizer is that of shapes world.

    Raises:
      CheckpointError, ConfigError, TokenizerError: ``init`` is not a complete checkpoint, or the preset is unknown.
    """
    if init:
        return open_init(init).config, load_tokenizer(pathlib.Path(init) / TOKENIZER)
    return get_preset(model), load_tokenizer(shapes_folder())


def open_init(init: str) -> Checkpoint:
    """Open the checkpoint from which a run starts. Raises CheckpointError, also where it is int8."""
    checkpoint = open_checkpoint(init)
    checkpoint.require_floats("a training step changes weights by less than int8 can hold")
    return checkpoint


def load_base(init: str, model: str) -> Base:
    """Load the base with the autoencoder of ``init`` or of shapes world; arguments and errors as ``load_model``."""
    config, tokenizer = load_model(init, model)
    if init:
        params = load_checkpoint(init, parts=("autoencoder",))[1]
        return Base(config, tokenizer, params["autoencoder"], open_init(init).content().source_json)
    return Base(config, tokenizer, read_autoencoder(shapes_folder(), config.autoencoder), {})

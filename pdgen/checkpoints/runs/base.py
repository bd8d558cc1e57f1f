"""What a run builds on: the model's sizes, its tokenizer, and the autoencoder that its data's latents come from."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pdgen.assets import shapes_folder
from pdgen.checkpoints.pdgen_checkpoint import TOKENIZER, load_checkpoint, open_checkpoint
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import ModelConfig, preset
from pdgen.sequence.tokenizer import Tokenizer, load_tokenizer


class Base(NamedTuple):
    """Sizes, tokenizer, autoencoder parameters, and the json files of the BAGEL folder it came from (or none)."""

    config: ModelConfig
    tokenizer: Tokenizer
    autoencoder: dict[str, Any]
    source_json: Mapping[str, bytes]


def load_model(init: str, model: str) -> tuple[ModelConfig, Tokenizer]:
    """Sizes and tokenizer of the model to train.

    Args:
      init: the pdgen checkpoint that the run starts from; "" for fresh parameters.
      model: without ``init`` the preset, whose tokenizer is shapes world's.

    Raises:
      CheckpointError, ConfigError, TokenizerError: ``init`` is no whole checkpoint; or there is no such preset.
    """
    if init:
        return open_checkpoint(init).config, load_tokenizer(pathlib.Path(init) / TOKENIZER)
    return preset(model), load_tokenizer(shapes_folder())


def load_base(init: str, model: str) -> Base:
    """``load_model`` with the autoencoder on the default device: that of ``init``, or shapes world's."""
    config, tokenizer = load_model(init, model)
    if init:
        params = load_checkpoint(init, parts=("autoencoder",))[1]
        return Base(config, tokenizer, params["autoencoder"], open_checkpoint(init).content().source_json)
    return Base(config, tokenizer, read_autoencoder(shapes_folder(), config.autoencoder), {})

"""What a run builds on: the model's sizes, its tokenizer, and the autoencoder that its data's latents come from."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pdgen.assets import shapes_folder
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint, open_checkpoint
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import ModelConfig, preset
from pdgen.sequence.tokenizer import Tokenizer, load_tokenizer
from pdgen.train.run_config import RunConfig


class Base(NamedTuple):
    """Sizes, tokenizer, autoencoder parameters, and the json files of the BAGEL folder it came from (or none)."""

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

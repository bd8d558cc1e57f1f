"""The checkpoint that is sampled from: a pdgen checkpoint, or a training run's export of one."""

import pathlib
from typing import Any, NamedTuple

from pdgen.config import ModelConfig
from pdgen.convert.errors import CheckpointError
from pdgen.convert.pdgen_checkpoint import TOKENIZER, is_checkpoint, load_checkpoint
from pdgen.convert.torch_checkpoint import WHOLE_TOKENIZERS, is_bagel_folder
from pdgen.interleave.tokenizer import Tokenizer, load_tokenizer

EXPORT = "export"  # a training run writes its checkpoint under this name in its workdir


class Loaded(NamedTuple):
    """Sizes, ``{"model": tree, "autoencoder": tree}`` and tokenizer of one checkpoint, and its folder."""

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    folder: pathlib.Path


def find_checkpoint(path: str | pathlib.Path) -> pathlib.Path:
    """The pdgen checkpoint at ``path``: the folder itself, or the export of the training run in it.

    Raises:
      CheckpointError: there is none, or it has no tokenizer; one line says what to do.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; name a pdgen checkpoint or the workdir of a training run")
    if is_bagel_folder(path):
        raise CheckpointError(f"{path}: is a BAGEL folder; convert it first: "
                              f"python launch/convert.py --source={path} --target=NEW_FOLDER")  # fmt: skip
    folder = next((f for f in (path, path / EXPORT) if is_checkpoint(f)), None)
    if folder is None:
        raise CheckpointError(f"{path}: is no pdgen checkpoint, and no training run has written {EXPORT}/ into it; "
                              "launch/convert.py and launch/train.py make them")  # fmt: skip
    if not any((folder / TOKENIZER / name).is_file() for name in WHOLE_TOKENIZERS):
        raise CheckpointError(f"{folder}: has no tokenizer; convert again from a folder that holds "
                              f"{' or '.join(WHOLE_TOKENIZERS)}")  # fmt: skip
    return folder


def load(path: str | pathlib.Path) -> Loaded:
    """Reads a checkpoint onto the default device, values as stored.

    Args:
      path: see ``find_checkpoint``.

    Raises:
      CheckpointError, ConfigError, TokenizerError: there is no checkpoint, or it is damaged.
    """
    folder = find_checkpoint(path)
    config, params = load_checkpoint(folder)
    return Loaded(config, params, load_tokenizer(folder / TOKENIZER), folder)

"""BAGEL folders for the tests: the golden one, and copies of it with something changed."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bagel-nano"
LANGUAGE = "language_model.model."
WEIGHTS, AUTOENCODER = "ema.safetensors", "ae.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")

Tensors = dict[str, torch.Tensor]


def copy_of_golden(folder: pathlib.Path) -> pathlib.Path:
    """A copy without the expected numbers."""
    return pathlib.Path(shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("expected.*")))


def edit_tensors(file: pathlib.Path, edit: Callable[[Tensors], Any]) -> None:
    """Applies ``edit`` to the dict of a file's tensors and saves them as the reference library does."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata)


def edit_json(file: pathlib.Path, **values: Any) -> None:
    """Sets keys of a json file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def shard(folder: pathlib.Path, count: int) -> None:
    """Replaces ema.safetensors by ``count`` files and an index, as transformers lays them out."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def all_bytes(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

"""BAGEL folders for the tests: the golden one, and changed copies of it."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flax import traverse_util
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pdgen.checkpoints.mapping import array_shapes, places
from pdgen.checkpoints.torch_checkpoint import open_bagel_folder
from pdgen.config import ModelConfig, read_config

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bagel-nano"
LANGUAGE = "language_model.model."
WEIGHTS, AUTOENCODER = "ema.safetensors", "ae.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")

Tensors = dict[str, torch.Tensor]


def copy_of_golden(folder: pathlib.Path) -> pathlib.Path:
    """A copy without the expected numbers."""
    return pathlib.Path(shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("expected.*")))


def edit_tensors(file: pathlib.Path, edit: Callable[[Tensors], Any]) -> None:
    """Apply ``edit`` to the dict of a file's tensors and save them as the reference library does."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata)


def edit_json(file: pathlib.Path, **values: Any) -> None:
    """Set keys of a json file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def shard(folder: pathlib.Path, count: int, source: str = WEIGHTS, stem: str = "model") -> None:
    """Replace ``source`` by ``count`` files and an index, as transformers lays them out."""
    tensors = load_file(folder / source)
    (folder / source).unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def step_folder(folder: pathlib.Path, without: tuple[str, ...] = ()) -> tuple[Tensors, Tensors]:
    """Write what BAGEL's trainer saves: two sets of float32 weights and pickles; return the raw and the ema tensors.

    All values differ from the golden ones. ``without`` names modules that the training left out.
    """
    folder.mkdir()
    golden = {n: t.float() for n, t in load_file(GOLDEN / WEIGHTS).items() if n.partition(".")[0] not in without}
    raw, ema = ({n: t + shift for n, t in golden.items()} for shift in (0.5, 0.25))
    save_file(raw, folder / "model.safetensors")
    save_file(ema, folder / WEIGHTS)
    for name in ("optimizer.00000-of-00002.pt", "optimizer.00001-of-00002.pt", "scheduler.pt", "data_status.pt"):
        torch.save({"step": 1}, folder / name)
    return raw, ema


def all_bytes(folder: pathlib.Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_bagel_folder(folder: pathlib.Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the sizes of a folder and its tree of numpy arrays, as a conversion reads them."""
    opened = open_bagel_folder(folder)
    read, shapes, flat = opened.reader(), array_shapes(opened.config), {}
    for place, dtype, _ in opened.content().tensors:
        array = flat.setdefault(place.path, np.empty(shapes[place.path], dtype))
        read(place, 0, array if place.layer is None else array[place.layer])
    return opened.config, traverse_util.unflatten_dict(flat, sep="/")


def expected_arrays(folder: pathlib.Path, tensors: Tensors | None = None) -> dict[str, torch.Tensor]:
    """Every array by path, stacked from ``tensors``, or from those that the reference library reads in a folder."""
    if tensors is None:
        tensors = load_file(folder / WEIGHTS) | load_file(folder / AUTOENCODER)
    arrays: dict[str, list[torch.Tensor]] = {}
    for place in places(read_config(folder)).values():
        arrays.setdefault(place.path, []).append(tensors[place.name].reshape(place.slot))
    shapes = array_shapes(read_config(folder))
    return {path: torch.stack(found).reshape(shapes[path]) for path, found in arrays.items()}


def assert_equal(tree: Any, expected: Tensors) -> None:
    """Compare a tree of arrays with ``expected_arrays``: paths, dtypes, values."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    assert set(flat) == set(expected)
    for path, value in flat.items():
        assert str(value.dtype) == str(expected[path].dtype).removeprefix("torch."), path
        np.testing.assert_array_equal(np.asarray(value, np.float32), expected[path].float().numpy(), path)

"""BAGEL's folder of safetensors and json files: finds the files, checks them strictly, reads values."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from pdgen.checkpoints import safetensors_file, stream
from pdgen.checkpoints.bagel_json import MODEL_JSON, compare_configs, find_unsupported
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import Place, autoencoder_places, places, stacked_shapes
from pdgen.checkpoints.pdgen_checkpoint import Content
from pdgen.checkpoints.runs.layout import LAYOUT
from pdgen.checkpoints.safetensors_file import SafetensorsFile, read_header
from pdgen.checkpoints.sizes import config_from_tensors
from pdgen.config import AutoencoderConfig, ModelConfig, read_config

INDEX, AUTOENCODER, EMA = "model.safetensors.index.json", "ae.safetensors", "ema.safetensors"
OTHER_JSON = ("generation_config.json", "preprocessor_config.json", INDEX, LAYOUT)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
WHOLE_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class BagelFolder:
    """An open folder.

    Attributes:
      path: the folder.
      config: the sizes of the tensors.
      files: the safetensors files, the model's before the autoencoder's.
      notes: lines for the user.
    """

    path: pathlib.Path
    config: ModelConfig
    files: Sequence[SafetensorsFile]
    notes: Sequence[str]

    def content(self, dtype: np.dtype | None = None) -> Content:
        """Return the content of its checkpoint, the model's values as stored or cast to ``dtype``."""
        where = places(self.config)
        tensors = [
            (where[name], cast_dtype(where[name], info.dtype, dtype), file.path.name)
            for file in self.files
            for name, info in file.tensors.items()
        ]
        source_json = self._present((*MODEL_JSON, *OTHER_JSON))
        headers = {file.path.name: file.metadata for file in self.files}
        return Content(self.config, tensors, headers, source_json, self._present(TOKENIZER_FILES))

    def _present(self, names: Sequence[str]) -> dict[str, bytes]:
        return {name: (self.path / name).read_bytes() for name in names if (self.path / name).is_file()}

    def reader(self, dtype: np.dtype | None = None) -> stream.Read:
        """Return a ``read`` for ``stream.move``, with the model's values as stored or cast to ``dtype``."""
        file_of = {name: file for file in self.files for name in file.tensors}

        def read(place: Place, start: int, rows: np.ndarray) -> None:
            file, offset = file_of[place.name], start * math.prod(place.slot[1:])
            stored = file.tensors[place.name].dtype
            if cast_dtype(place, stored, dtype) == stored:
                file.read(place.name, offset, rows)
                return
            values = np.empty(rows.shape, stored)
            file.read(place.name, offset, values)
            rows[...] = values

        return read


def cast_dtype(place: Place, stored: np.dtype, dtype: np.dtype | None) -> np.dtype:
    """Return a tensor's dtype if the model's values are cast to ``dtype`` (None: not); the autoencoder's never are."""
    return dtype if dtype is not None and place.path.startswith("model/") else stored


def is_bagel_folder(path: pathlib.Path) -> bool:
    """Return whether ``path`` looks like a BAGEL folder."""
    return all((path / name).is_file() for name in MODEL_JSON)


def open_bagel_folder(path: str | pathlib.Path, *, cast: bool = False) -> BagelFolder:
    """Open a folder and check everything except the values.

    Args:
      path: the folder.
      cast: whether the model's values will be cast to one dtype. Otherwise all layers of an array must have the same.

    Raises:
      CheckpointError: a file is missing, truncated or a pickle; tensors are unknown, missing, misshapen or of mixed
        dtypes (the message names all of them); or the json files describe a model that is not supported.
      ConfigError: a json file is missing or malformed.
    """
    path = pathlib.Path(path)
    _refuse_pickles(path)
    stated = read_config(path)
    _raise_all(path, find_unsupported(path))
    names, index, notes = _model_files(path)
    files, faults = [], []
    for name in (*names, AUTOENCODER):
        try:
            files.append(read_header(path / name))
        except CheckpointError as fault:
            faults.append(str(fault))
    if faults:
        raise CheckpointError("; ".join(faults))
    config = config_from_tensors(stated, {name: info.shape for file in files for name, info in file.tensors.items()})
    where = places(config)
    faults = [*_index_faults(index, files), *_tensor_faults(where, files), *_head_faults(config)]
    _raise_all(path, faults + ([] if cast else _dtype_faults(where, files)))
    for (file, key), (in_file, actual) in compare_configs(stated, config).items():
        notes.append(
            f"{path / file}: {key} is {json.dumps(in_file)}, but the tensors say {json.dumps(actual)}; the tensors win"
        )
    return BagelFolder(path, config, files, [*notes, *_file_notes(path, files)])


def _raise_all(path: pathlib.Path, faults: Sequence[str]) -> None:
    if len(faults) > 1:
        raise CheckpointError(f"{path}: {len(faults)} faults: " + "; ".join(faults))
    if faults:
        raise CheckpointError(f"{path}: {faults[0]}")


def _refuse_pickles(path: pathlib.Path) -> None:
    if path.is_file() and path.suffix in safetensors_file.PICKLE_SUFFIXES:
        raise CheckpointError(f"{path}: {safetensors_file.PICKLE_REASON}")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    pickles = [file for file in sorted(path.iterdir()) if file.suffix in safetensors_file.PICKLE_SUFFIXES]
    if pickles and not any(file.suffix == ".safetensors" and file.name != AUTOENCODER for file in path.iterdir()):
        raise CheckpointError(f"{pickles[0]}: {safetensors_file.PICKLE_REASON}")


def _weight_map(path: pathlib.Path) -> dict[str, str]:
    """Read the index's map from tensor to file, without the autoencoder's; empty without an index."""
    if not path.is_file():
        return {}
    try:
        weight_map = dict(json.loads(path.read_text())["weight_map"])
        wrong = [file for file in weight_map.values() if pathlib.PurePath(file).name != file]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: holds no weight_map of tensor to file; fetch it again") from None
    if wrong:
        raise CheckpointError(f"{path}: names files outside the folder: {', '.join(sorted(set(wrong)))}")
    return {tensor: file for tensor, file in weight_map.items() if file != AUTOENCODER}


def _model_files(path: pathlib.Path) -> tuple[list[str], dict[str, str], list[str]]:
    """Return the names of the model's files, the index's map from tensor to file (empty if not needed), and notes.

    ema.safetensors is preferred, as in PyTorch's code, unless the index names it as one of several files.
    """
    weight_map = _weight_map(path / INDEX)
    named = sorted(set(weight_map.values()))
    found = sorted(file.name for file in path.glob("model*.safetensors"))
    if (path / EMA).is_file() and not (EMA in named and len(named) > 1):
        return [EMA], {}, [f"{path}: {EMA} is converted, {', '.join(found)} is not"] if found else []
    if named:
        return named, weight_map, []
    if len(found) > 1:
        raise CheckpointError(f"{path / INDEX}: missing; {len(found)} files model*.safetensors need it")
    return found or [EMA], {}, []


def _index_faults(index: Mapping[str, str], files: Sequence[SafetensorsFile]) -> list[str]:
    found = {(name, file.path.name) for file in files for name in file.tensors}
    return [
        f"{INDEX} puts {name} into {file}, which does not hold it"
        for name, file in index.items()
        if (name, file) not in found
    ]


def _tensor_faults(where: Mapping[str, Place], files: Iterable[SafetensorsFile]) -> list[str]:
    """Check that every tensor has exactly one place, and every place exactly one tensor of the right shape."""
    seen, faults = {}, []
    for file in files:
        for name, info in file.tensors.items():
            if name in seen:
                faults.append(f"tensor {name} is in {seen[name]} and in {file.path.name}")
            elif name not in where:
                faults.append(f"tensor {name} is unknown ({file.path.name})")
            elif info.shape != where[name].shape:
                faults.append(f"tensor {name} is {list(info.shape)}, expected {list(where[name].shape)}")
            seen[name] = file.path.name
    return faults + [f"tensor {name} is missing" for name in where if name not in seen]


def _dtype_faults(where: Mapping[str, Place], files: Iterable[SafetensorsFile]) -> list[str]:
    found: dict[str, set[str]] = {}
    for file in files:
        for name, info in file.tensors.items():
            if name in where:
                found.setdefault(where[name].path, set()).add(info.dtype.name)
    return [
        f"layers of {path} are stored as {' and '.join(sorted(kinds))}; choose one with --dtype"
        for path, kinds in found.items()
        if len(kinds) > 1
    ]


def _head_faults(config: ModelConfig) -> list[str]:
    language, vision = config.language, config.vision
    faults = []
    if vision.hidden_size % vision.num_heads:
        faults.append(
            f"vit_config.json: num_attention_heads {vision.num_heads} does not divide the width {vision.hidden_size}"
        )
    if language.num_heads % language.num_kv_heads:
        faults.append(
            f"llm_config.json: num_key_value_heads {language.num_kv_heads} does not divide "
            f"num_attention_heads {language.num_heads}"
        )
    return faults


def _file_notes(path: pathlib.Path, files: Iterable[SafetensorsFile]) -> list[str]:
    notes = []
    if not any((path / name).is_file() for name in WHOLE_TOKENIZERS):
        notes.append(f"{path}: no tokenizer files; sampling will need {' or '.join(WHOLE_TOKENIZERS)}")
    taken = {file.path.name for file in files} | {*MODEL_JSON, *OTHER_JSON, *TOKENIZER_FILES}
    left = sorted(file.name for file in path.iterdir() if file.name not in taken)
    return [*notes, f"{path}: not part of the checkpoint, so not carried over: {', '.join(left)}"] if left else notes


def _read_tree(where: Mapping[str, Place], files: Iterable[SafetensorsFile]) -> dict[str, Any]:
    """Read all tensors as a tree of arrays."""
    flat: dict[str, np.ndarray] = {}
    shapes = stacked_shapes(where.values())
    for file in files:
        for name, info in file.tensors.items():
            place = where[name]
            array = flat.setdefault(place.path, np.empty(shapes[place.path], info.dtype))
            file.read(name, 0, array if place.layer is None else array[place.layer])
    return traverse_util.unflatten_dict(flat, sep="/")


def read_bagel_folder(path: str | pathlib.Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a folder into memory: the sizes and ``{"model": .., "autoencoder": ..}``, numpy arrays as stored.

    This is for small models. Convert a large one (``pdgen.checkpoints.conversion``) and restore it onto its devices.

    Raises:
      CheckpointError, ConfigError: see ``open_bagel_folder``.
    """
    folder = open_bagel_folder(path)
    return folder.config, _read_tree(places(folder.config), folder.files)


def read_autoencoder(folder: str | pathlib.Path, config: AutoencoderConfig) -> dict[str, Any]:
    """Read ae.safetensors only: the autoencoder's tree of numpy arrays as stored.

    Raises:
      CheckpointError: the file is missing or damaged, or tensors do not fit ``config``; the message names all of them.
    """
    file = read_header(pathlib.Path(folder) / AUTOENCODER)
    where = autoencoder_places(config)
    _raise_all(file.path, _tensor_faults(where, [file]))
    return _read_tree(where, [file])["autoencoder"]

"""BAGEL's folder of safetensors and json files: finds the files, checks them strictly, reads values."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from pdgen.checkpoints import safetensors_file, stream
from pdgen.checkpoints.bagel_json import MODEL_JSON, compare_configs, find_unsupported, read_tied, set_keys
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import Place, autoencoder_places, places
from pdgen.checkpoints.pdgen_checkpoint import Content, is_checkpoint
from pdgen.checkpoints.runs.layout import LAYOUT
from pdgen.checkpoints.runs.step import Weights
from pdgen.checkpoints.safetensors_file import CASTS, SafetensorsFile, read_header
from pdgen.checkpoints.sizes import config_from_tensors
from pdgen.checkpoints.sources.distance import Distance
from pdgen.checkpoints.sources.faults import (
    find_dtype_faults,
    find_head_faults,
    find_index_faults,
    find_tensor_faults,
    raise_all,
)
from pdgen.checkpoints.sources.foreign import refuse_layout, refuse_placeholder
from pdgen.checkpoints.sources.tensors import (
    StoredTensor,
    cast_dtype,
    describe_wrappers,
    list_tensors,
    take_modules,
    tie_embeddings,
)
from pdgen.checkpoints.sources.weights import (
    AUTOENCODER,
    EMA,
    INDEXES,
    WeightFiles,
    choose_weights,
    holds_weights,
    read_index,
)
from pdgen.config import AutoencoderConfig, ModelConfig, read_config
from pdgen.json_text import load_json
from pdgen.messages import name_some
from pdgen.sequence.tokenizer import TOKENIZER_FILES, WHOLE_TOKENIZER, find_tokenizer

OTHER_JSON = ("generation_config.json", "preprocessor_config.json", LAYOUT)


@dataclasses.dataclass(frozen=True)
class BagelFolder:
    """An open folder.

    Attributes:
      path: the folder.
      config: the sizes of the tensors.
      tensors: the tensors by PyTorch's name, the model's before the autoencoder's, in the order of their bytes.
      headers: ``__metadata__`` of the safetensors files, by name.
      source_json: the json files, by name.
      tokenizer: the tokenizer's files, by name.
      chosen: the files of the model's weights.
      other: the folder's other weights by PyTorch's name, which are not converted; empty if there are none.
      notes: lines for the user.
    """

    path: pathlib.Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    headers: Mapping[str, Mapping[str, str]]
    source_json: Mapping[str, bytes]
    tokenizer: Mapping[str, bytes]
    chosen: WeightFiles
    other: Mapping[str, StoredTensor]
    notes: Sequence[str]

    def content(self, dtype: np.dtype | None = None) -> Content:
        """Return the content of its checkpoint, the model's values as stored or cast to ``dtype``."""
        where = places(self.config)
        tensors = [
            (where[name], cast_dtype(where[name], tensor.dtype, dtype), tensor.target)
            for name, tensor in self.tensors.items()
        ]
        origins: dict[str, set[pathlib.Path]] = {}
        for tensor in self.tensors.values():
            origins.setdefault(tensor.target, set()).add(tensor.file.path)
        order = list(dict.fromkeys(file for *_, file in tensors))

        def position(item: tuple[Place, np.dtype, str]) -> tuple[int, ...] | tuple[int, int, str]:
            place, stored, file = item
            # A file with tensors of two others has the order in which the safetensors library writes.
            mixed = len(origins[file]) > 1
            return (order.index(file), -stored.itemsize, place.name) if mixed else (order.index(file),)

        tensors.sort(key=position)
        source_json = {**self.source_json, **self._index(tensors)}
        return Content(self.config, tensors, self.headers, source_json, self.tokenizer)

    def _index(self, tensors: Sequence[tuple[Place, np.dtype, str]]) -> dict[str, bytes]:
        """Return the index that fits ``tensors``, by its name, where the folder's own does not; empty otherwise."""
        stored = [item for item in tensors if item[0].path.startswith("model/") and item[2]]
        weight_map = {place.name: file for place, _, file in stored}
        cast = any(dtype != self.tensors[place.name].dtype for place, dtype, _ in stored)
        if not self.chosen.index or (weight_map == self.chosen.index and not cast):
            return {}
        total = sum(math.prod(place.shape) * dtype.itemsize for place, dtype, _ in stored)
        name, changes = INDEXES[self.chosen.kind], {"weight_map": weight_map, "metadata.total_size": total}
        return {name: set_keys(self.source_json[name], changes)}

    def reader(self) -> stream.Read:
        """Return a ``read`` for ``stream.move`` that casts the values to the dtype of its rows."""

        def read(place: Place, start: int, rows: np.ndarray) -> None:
            self.tensors[place.name].read(start * math.prod(place.slot[1:]), rows)

        return read

    def distance(self) -> Distance | None:
        """Return a comparison of the moving average with the raw weights; None if the folder has only one of them."""
        if not self.other:
            return None
        pair = (self.tensors, self.other) if self.chosen.kind == "ema" else (self.other, self.tensors)
        return Distance(*pair)

    def describe_casts(self, dtype: np.dtype | None = None) -> list[str]:
        """Return a line for each dtype that is only read, and the dtype to which its tensors are cast."""
        where, counts = places(self.config), {}
        for name, tensor in self.tensors.items():
            if tensor.dtype in CASTS:
                kinds = (tensor.dtype.name, cast_dtype(where[name], tensor.dtype, dtype).name)
                counts[kinds] = counts.get(kinds, 0) + 1
        return [
            f"{self.path}: {count:,} tensors are stored as {stored} and are cast to {wanted}"
            for (stored, wanted), count in counts.items()
        ]


def is_bagel_folder(path: pathlib.Path) -> bool:
    """Return whether ``path`` looks like a BAGEL folder."""
    return all((path / name).is_file() for name in MODEL_JSON)


def open_bagel_folder(
    path: str | pathlib.Path,
    *,
    cast: bool = False,
    base: str | pathlib.Path | None = None,
    weights: Weights | None = None,
) -> BagelFolder:
    """Open a folder and check everything except the values.

    Args:
      path: the folder to open.
      cast: whether the model's values will be cast to one dtype. Otherwise all layers of an array must have the same.
      base: a whole BAGEL folder, from which modules, json files and the tokenizer are taken that ``path`` lacks; None:
        ``path`` must have all of them.
      weights: the weights to read, "raw" (``model.safetensors``) or "ema"; None: "ema" if the folder has them.

    Raises:
      CheckpointError: a file is missing, truncated, a pickle or of a kind that does not convert; tensors are unknown,
        missing, misshapen or of mixed dtypes (the message counts them by kind and names some); or the json files
        describe a model that is not supported.
      ConfigError: a json file is missing or malformed.
    """
    path = pathlib.Path(path)
    refuse_others(path)
    supplement = None if base is None else _open_base(pathlib.Path(base))
    json_folder = _json_folder(path, supplement)
    for name in MODEL_JSON:
        refuse_placeholder(json_folder / name)
    stated = read_config(json_folder)
    raise_all(json_folder, find_unsupported(json_folder))
    chosen, other = choose_weights(path, weights)
    names = [*chosen.names]
    if supplement is None or (path / AUTOENCODER).is_file():
        names.append(AUTOENCODER)
    files = _read_headers(path / name for name in names)
    listed = list_tensors(files)
    tensors, taken = {tensor.name: tensor for tensor in listed}, {}
    if supplement is not None:
        tensors, taken = take_modules(tensors, supplement.tensors, chosen.names[-1])
    if read_tied(json_folder):
        tensors = tie_embeddings(tensors)
    config = config_from_tensors(stated, {name: tensor.shape for name, tensor in tensors.items()})
    raise_all(path, find_head_faults(config))  # no tensors fit such sizes, and their faults would hide the cause
    where = places(config)
    faults = find_index_faults(INDEXES[chosen.kind], chosen.index, files) + find_tensor_faults(where, listed, tensors)
    raise_all(path, faults + ([] if cast else find_dtype_faults(where, tensors)))
    others, notes = _open_others(path, chosen, other)
    notes += _describe_tensors(path, listed, tensors, taken, base)
    notes += [
        f"{json_folder / file}: {key} is {json.dumps(in_file)}, but the tensors say {json.dumps(actual)}; "
        "the tensors win"
        for (file, key), (in_file, actual) in compare_configs(stated, config).items()
    ]
    source_json = _read_json(path, json_folder, chosen, supplement, notes)
    tokenizer = _read_tokenizer(path, supplement, notes)
    headers = {file.path.name: file.metadata for file in files}
    if supplement is not None:
        headers = {AUTOENCODER: supplement.headers[AUTOENCODER]} | headers
    notes += _describe_rest(path, {*headers, *source_json, *(other.names if other else ())})
    return BagelFolder(path, config, tensors, headers, source_json, tokenizer, chosen, others, notes)


def refuse_others(path: pathlib.Path) -> None:
    """Raise CheckpointError if ``path`` is no folder, or a folder without the weights of a BAGEL model."""
    if path.is_file() and path.suffix in safetensors_file.PICKLE_SUFFIXES:
        raise CheckpointError(f"{path}: {safetensors_file.PICKLE_REASON}")
    refuse_placeholder(path)
    if path.is_file() and path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: is a file; name its folder, {path.parent}")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    if holds_weights(path):
        return
    refuse_layout(path)
    left = [file for file in sorted(path.glob("*.safetensors")) if file.name != AUTOENCODER]
    for file in left:
        read_header(file)  # weights that are quantized or damaged are named as such
    if left:
        raise CheckpointError(
            f"{path}: holds {left[0].name}, but neither {EMA} nor model.safetensors; rename the file if it holds "
            "the model's weights"
        )
    pickles = [file for file in sorted(path.iterdir()) if file.suffix in safetensors_file.PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(f"{pickles[0]}: {safetensors_file.PICKLE_REASON}")


def _open_base(base: pathlib.Path) -> BagelFolder:
    if is_checkpoint(base):
        raise CheckpointError(
            f"{base}: is a pdgen checkpoint; --base takes a BAGEL folder, which --reverse writes from it"
        )
    return open_bagel_folder(base, cast=True)


def _json_folder(path: pathlib.Path, supplement: BagelFolder | None) -> pathlib.Path:
    """Return the folder whose json files describe the model: ``path`` if it has all of them, otherwise the base."""
    if is_bagel_folder(path):
        return path
    if supplement is not None:
        return supplement.path
    if holds_weights(path) and not any((path / name).is_file() for name in MODEL_JSON):
        raise CheckpointError(
            f"{path}: holds weights without json files, as a step folder of BAGEL's trainer; add --base=FOLDER with "
            "the BAGEL folder from which the training began"
        )
    return path


def _read_headers(paths: Iterable[pathlib.Path]) -> list[SafetensorsFile]:
    """Read the headers of files. Raises CheckpointError that names some of those which cannot be read."""
    files, faults = [], []
    for path in paths:
        try:
            files.append(read_header(path))
        except CheckpointError as fault:
            lacks = path.name == AUTOENCODER and not path.exists()
            faults.append(f"{fault}; --base=FOLDER takes it from a whole BAGEL folder" if lacks else str(fault))
    if faults:
        raise CheckpointError(name_some(faults, "; "))
    return files


def _open_others(
    path: pathlib.Path, chosen: WeightFiles, other: WeightFiles | None
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Open the weights that are not converted, for a comparison. Return them by name, and lines for the user."""
    if other is None:
        return {}, []
    line = f"{path}: {chosen} is converted, {other} is not (--weights={other.kind} converts it)"
    try:
        files = _read_headers(path / name for name in other.names)
    except CheckpointError as fault:
        return {}, [f"{line} and cannot be compared: {fault}"]
    return {tensor.name: tensor for tensor in list_tensors(files)}, [line]


def _describe_tensors(
    path: pathlib.Path,
    listed: Sequence[StoredTensor],
    tensors: Mapping[str, StoredTensor],
    taken: Mapping[str, int],
    base: str | pathlib.Path | None,
) -> list[str]:
    """Return lines about names that were changed, and about tensors that come from others."""
    lines = [f"{path}: {line}" for line in describe_wrappers(listed)]
    lines += [
        f"{path}: {name} is missing and tied, so {tensor.stored_name} serves as it"
        for name, tensor in tensors.items()
        if not tensor.target
    ]
    counts = ((module, f"{count:,} tensor{'s' if count > 1 else ''}") for module, count in taken.items())
    return lines + [f"{path}: module {module} ({count}) is taken from {base}" for module, count in counts]


def _read_json(
    path: pathlib.Path, json_folder: pathlib.Path, chosen: WeightFiles, supplement: BagelFolder | None, notes: list[str]
) -> dict[str, bytes]:
    """Read the json files by name, those that ``path`` lacks from the base; add lines for the user to ``notes``."""
    source_json = _read_files(path, (*MODEL_JSON, *OTHER_JSON))
    if supplement is not None and json_folder != path:
        own = [name for name in MODEL_JSON if name in source_json]
        unused = f"; its own {' and '.join(own)} {'are' if len(own) > 1 else 'is'} not used" if own else ""
        notes.append(f"{path}: {', '.join(MODEL_JSON)} are taken from {supplement.path}{unused}")
        names = (*MODEL_JSON, *(name for name in OTHER_JSON if name not in source_json))
        source_json |= {name: data for name, data in supplement.source_json.items() if name in names}
    elif supplement is not None:  # trained without a module, which the checkpoint now has
        stated = load_json(source_json["config.json"])
        off = {key: True for key in ("visual_gen", "visual_und") if stated.get(key) is False}
        source_json["config.json"] = set_keys(source_json["config.json"], off)
    for name in INDEXES.values():  # an index of the weights that are not converted would be wrong
        if set(read_index(path / name).values()) <= set(chosen.names):
            source_json |= _read_files(path, (name,))
    return source_json


def _read_tokenizer(path: pathlib.Path, supplement: BagelFolder | None, notes: list[str]) -> Mapping[str, bytes]:
    """Read the tokenizer's files by name, or take the base's; add lines for the user to ``notes``."""
    folder = find_tokenizer(path)
    if folder is None and supplement is not None and supplement.tokenizer:
        notes.append(f"{path}: the tokenizer is taken from {supplement.path}")
        return supplement.tokenizer
    if folder is None:
        notes.append(f"{path}: no tokenizer files; sampling will need {WHOLE_TOKENIZER}")
    elif folder != path:
        notes.append(f"{path}: the tokenizer is read from the folder {folder.name}")
    return _read_files(folder or path, TOKENIZER_FILES)


def _read_files(folder: pathlib.Path, names: Iterable[str]) -> dict[str, bytes]:
    """Read the files that exist. Raises CheckpointError if one is a Git LFS pointer or an HTML page."""
    found = [folder / name for name in names if (folder / name).is_file()]
    for file in found:
        refuse_placeholder(file)
    return {file.name: file.read_bytes() for file in found}


def _describe_rest(path: pathlib.Path, taken: Collection[str]) -> list[str]:
    """Return a line about files of the folder that are not carried over, if there are any."""
    known, tokenizer = {*taken, *MODEL_JSON, *OTHER_JSON, *TOKENIZER_FILES, *INDEXES.values()}, find_tokenizer(path)
    left = sorted(file.name for file in path.iterdir() if file.name not in known and file != tokenizer)
    if not left:
        return []
    return [f"{path}: not part of the checkpoint, so not carried over: {name_some(left)}"]


def read_autoencoder(folder: str | pathlib.Path, config: AutoencoderConfig) -> dict[str, Any]:
    """Read ae.safetensors only: the autoencoder's tree of numpy arrays as stored.

    Raises:
      CheckpointError: the file is missing or damaged, or tensors do not fit ``config``; the message counts them.
    """
    file = read_header(pathlib.Path(folder) / AUTOENCODER)
    listed, where = list_tensors([file]), autoencoder_places(config)
    tensors, flat = {tensor.name: tensor for tensor in listed}, {}
    raise_all(file.path, find_tensor_faults(where, listed, tensors))
    for name, place in where.items():
        flat[place.path] = np.empty(place.shape, cast_dtype(place, tensors[name].dtype, None))
        tensors[name].read(0, flat[place.path])
    return traverse_util.unflatten_dict(flat, sep="/")["autoencoder"]

"""Faults of a folder's tensors, a line for each."""

import collections
import pathlib
from collections.abc import Mapping, Sequence

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import Place
from pdgen.checkpoints.safetensors_file import SafetensorsFile
from pdgen.checkpoints.sources.tensors import HEAD, StoredTensor, cast_dtype, module_of
from pdgen.config import ModelConfig


def raise_all(path: pathlib.Path, faults: Sequence[str]) -> None:
    """Raise CheckpointError that names ``path`` and all ``faults``, if there are any."""
    if len(faults) > 1:
        raise CheckpointError(f"{path}: {len(faults)} faults: " + "; ".join(faults))
    if faults:
        raise CheckpointError(f"{path}: {faults[0]}")


def find_index_faults(index_name: str, index: Mapping[str, str], files: Sequence[SafetensorsFile]) -> list[str]:
    """Check that every tensor is in the file in which the index puts it."""
    found = {(name, file.path.name) for file in files for name in file.tensors}
    return [
        f"{index_name} puts {name} into {file}, which does not hold it"
        for name, file in index.items()
        if (name, file) not in found
    ]


def find_tensor_faults(
    where: Mapping[str, Place], listed: Sequence[StoredTensor], tensors: Mapping[str, StoredTensor]
) -> list[str]:
    """Check that every tensor has exactly one place, and every place exactly one tensor of the right shape."""
    seen, faults = {}, []
    names = {tensor.name for tensor in listed}
    for tensor in (*listed, *(tensor for name, tensor in tensors.items() if name not in names)):
        name, file = tensor.name, tensor.file.path.name
        if name in seen:
            faults.append(f"tensor {name} is in {seen[name]} and in {file}")
        elif name not in where:
            faults.append(f"tensor {name} is unknown ({file})")
        elif tensor.shape != where[name].shape:
            faults.append(f"tensor {name} is {list(tensor.shape)}, expected {list(where[name].shape)}")
        seen[name] = file
    modules = {module_of(name) for name in seen}
    missing = [name for name in where if name not in seen]
    whole = collections.Counter(module for module in map(module_of, missing) if module not in modules)
    faults += [
        f"module {module} is missing ({count} tensors); --base=FOLDER takes it from a whole BAGEL folder"
        for module, count in whole.items()
    ]
    tie = "; if it is the embedding, set tie_word_embeddings to true in llm_config.json"
    return faults + [
        f"tensor {name} is missing{tie if name == HEAD else ''}" for name in missing if module_of(name) not in whole
    ]


def find_dtype_faults(where: Mapping[str, Place], tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Check that all layers of an array have the same dtype."""
    found: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        if name in where:
            found.setdefault(where[name].path, set()).add(cast_dtype(where[name], tensor.dtype, None).name)
    return [
        f"layers of {path} are stored as {' and '.join(sorted(kinds))}; choose one with --dtype"
        for path, kinds in found.items()
        if len(kinds) > 1
    ]


def find_head_faults(config: ModelConfig) -> list[str]:
    """Check the numbers of heads, which no tensor determines."""
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

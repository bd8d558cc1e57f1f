"""Faults of a folder's tensors."""

import collections
import pathlib
from collections.abc import Mapping, Sequence

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import Place
from pdgen.checkpoints.safetensors_file import SafetensorsFile
from pdgen.checkpoints.sources.tensors import HEAD, StoredTensor, cast_dtype, module_of
from pdgen.config import ModelConfig
from pdgen.messages import MAX_NAMES, Fault, describe_faults


def raise_all(path: pathlib.Path, faults: Sequence[Fault]) -> None:
    """Raise CheckpointError that names ``path`` and describes ``faults``, if there are any."""
    if faults:
        advice = "; take tensors and json files from one model" if len(faults) > MAX_NAMES else ""
        raise CheckpointError(f"{path}: {describe_faults(faults)}{advice}")


def find_index_faults(index_name: str, index: Mapping[str, str], files: Sequence[SafetensorsFile]) -> list[Fault]:
    """Check that every tensor is in the file in which the index puts it."""
    found = {(name, file.path.name) for file in files for name in file.tensors}
    return [
        Fault("in no file that the index names", name, f"{index_name} puts {name} into {file}, which does not hold it")
        for name, file in index.items()
        if (name, file) not in found
    ]


def find_tensor_faults(
    where: Mapping[str, Place], listed: Sequence[StoredTensor], tensors: Mapping[str, StoredTensor]
) -> list[Fault]:
    """Check that every tensor has exactly one place, and every place exactly one tensor of the right shape.

    Args:
      where: the places by PyTorch's name.
      listed: all tensors of the folder's files.
      tensors: the tensors to convert by name: those of the folder, and those that complete it.
    """
    seen, faults = {}, []
    names = {tensor.name for tensor in listed}
    for tensor in (*listed, *(tensor for name, tensor in tensors.items() if name not in names)):
        name, file = tensor.name, tensor.file.path.name
        if name in seen:
            faults.append(Fault("in two files", name, f"tensor {name} is in {seen[name]} and in {file}"))
        elif name not in where:
            faults.append(Fault("unknown", name, f"tensor {name} is unknown ({file})"))
        elif tensor.shape != where[name].shape:
            text = f"tensor {name} is {list(tensor.shape)}, expected {list(where[name].shape)}"
            faults.append(Fault("of another shape", name, text))
        seen[name] = file
    return faults + _find_missing(where, seen)


def _find_missing(where: Mapping[str, Place], seen: Mapping[str, str]) -> list[Fault]:
    """Return a fault for each missing module, and for each missing tensor of the other modules."""
    modules = {module_of(name) for name in seen}
    missing = [name for name in where if name not in seen]
    whole = collections.Counter(module for module in map(module_of, missing) if module not in modules)
    remedy = "--base=FOLDER takes it from a whole BAGEL folder"
    faults = [
        Fault(f"missing as a module ({remedy})", module, f"module {module} is missing ({count} tensors); {remedy}")
        for module, count in whole.items()
    ]
    tie = "; if it is the embedding, set tie_word_embeddings to true in llm_config.json"
    return faults + [
        Fault("missing", name, f"tensor {name} is missing{tie if name == HEAD else ''}")
        for name in missing
        if module_of(name) not in whole
    ]


def find_dtype_faults(where: Mapping[str, Place], tensors: Mapping[str, StoredTensor]) -> list[Fault]:
    """Check that all layers of an array have the same dtype."""
    found: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        if name in where:
            found.setdefault(where[name].path, set()).add(cast_dtype(where[name], tensor.dtype, None).name)
    return [
        Fault(
            "of mixed dtypes (choose one with --dtype)",
            path,
            f"layers of {path} are stored as {' and '.join(sorted(kinds))}; choose one with --dtype",
        )
        for path, kinds in found.items()
        if len(kinds) > 1
    ]


def find_head_faults(config: ModelConfig) -> list[Fault]:
    """Check the numbers of heads and of groups, which no tensor determines."""
    language, vision, autoencoder = config.language, config.vision, config.autoencoder
    checks = (
        ("vit_config.json: num_attention_heads", vision.num_heads, "the width", vision.hidden_size),
        ("llm_config.json: num_key_value_heads", language.num_kv_heads, "num_attention_heads", language.num_heads),
        ("config.json: vae_config.num_groups", autoencoder.num_groups, "ch", autoencoder.channels),
    )
    return [
        Fault("unsupported", key, f"{key} {divisor} does not divide {name} {number}")
        for key, divisor, name, number in checks
        if number % divisor
    ]

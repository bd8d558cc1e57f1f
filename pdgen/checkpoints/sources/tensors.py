"""The tensors of a folder by PyTorch's names: without wrappers' names, completed from a base, with tied embeddings."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pdgen.checkpoints.mapping import Place
from pdgen.checkpoints.safetensors_file import CASTS, SafetensorsFile

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
# Names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing insert into a tensor's name.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a folder.

    Attributes:
      name: PyTorch's name, without wrappers' names.
      file: the file that stores its values.
      stored_name: its name in the file.
      target: name of the safetensors file to which a conversion back writes it; "" if it is written to none, since
        another tensor serves for it.
    """

    name: str
    file: SafetensorsFile
    stored_name: str
    target: str

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the stored values."""
        return self.file.tensors[self.stored_name].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """PyTorch's shape."""
        return self.file.tensors[self.stored_name].shape

    def read(self, offset: int, values: np.ndarray) -> None:
        """Read values from number ``offset`` on into ``values`` (contiguous), cast to its dtype; see ``file.read``."""
        if values.dtype == self.dtype:
            self.file.read(self.stored_name, offset, values)
            return
        stored = np.empty(values.shape, self.dtype)
        self.file.read(self.stored_name, offset, stored)
        values[...] = stored


def cast_dtype(place: Place, stored: np.dtype, dtype: np.dtype | None) -> np.dtype:
    """Return a tensor's dtype in a checkpoint.

    The model's values are cast to ``dtype`` (None: they are not), the autoencoder's never. Dtypes that are only read
    become those of ``safetensors_file.CASTS``.
    """
    return dtype if dtype is not None and place.path.startswith("model/") else CASTS.get(stored, stored)


def list_tensors(files: Iterable[SafetensorsFile]) -> list[StoredTensor]:
    """Return all tensors of the files, in the order of the files and of their bytes."""
    tensors = []
    for file in files:
        for name in file.tensors:
            own = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
            tensors.append(StoredTensor(own, file, name, file.path.name))
    return tensors


def describe_wrappers(tensors: Sequence[StoredTensor]) -> list[str]:
    """Return a line that says which wrappers' names were left out, if any were."""
    wrapped = [tensor.stored_name for tensor in tensors if tensor.stored_name != tensor.name]
    if not wrapped:
        return []
    inserted = sorted({part for name in wrapped for part in name.split(".")} & _WRAPPERS)
    return [f"{' and '.join(f'{part}.' for part in inserted)} left out of the names of {len(wrapped):,} tensors"]


def module_of(name: str) -> str:
    """Return the module of BAGEL's code to which a tensor belongs, such as "vit_model", or "autoencoder"."""
    first = name.partition(".")[0]
    return "autoencoder" if first in ("encoder", "decoder") else first


def take_modules(
    tensors: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor], target: str
) -> tuple[dict[str, StoredTensor], dict[str, int]]:
    """Complete tensors by the whole modules that they lack.

    Args:
      tensors, base: the tensors by name, and all those of another model.
      target: name of the file to which a conversion back writes the model's added tensors; the autoencoder's keep
        their own file.

    Returns:
      The tensors with the added ones, and the number of added tensors by module.
    """
    present = {module_of(name) for name in tensors}
    result, counts = dict(tensors), {}
    for name, tensor in base.items():
        module = module_of(name)
        if module not in present:
            kept = module == "autoencoder" or not tensor.target
            result[name] = tensor if kept else dataclasses.replace(tensor, target=target)
            counts[module] = counts.get(module, 0) + 1
    return result, counts


def tie_embeddings(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors with the embedding as the head, or the head as the embedding, if one of the two is missing."""
    result = dict(tensors)
    for name, other in ((HEAD, EMBEDDING), (EMBEDDING, HEAD)):
        if name not in tensors and other in tensors:
            result[name] = dataclasses.replace(tensors[other], name=name, target="")
    return result

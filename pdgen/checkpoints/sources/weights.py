"""The files of a folder that hold the model's weights: the moving average (``ema``) and the raw weights (``model``)."""

import dataclasses
import pathlib
from collections.abc import Mapping

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.runs.step import Weights
from pdgen.checkpoints.sources.foreign import refuse_placeholder
from pdgen.files import is_plain_name
from pdgen.json_text import load_json
from pdgen.messages import name_some

EMA, AUTOENCODER = "ema.safetensors", "ae.safetensors"
INDEXES: dict[Weights, str] = {"raw": "model.safetensors.index.json", "ema": "ema.safetensors.index.json"}
_STEMS: dict[Weights, str] = {"raw": "model", "ema": "ema"}


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of one set of weights.

    Attributes:
      kind: "raw" or "ema".
      names: names of the files.
      index: the index's map from tensor to file; empty if there is no index.
    """

    kind: Weights
    names: tuple[str, ...]
    index: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """Return the name of the file, or of the first of several and how many follow it."""
        return self.names[0] + (f" (and {len(self.names) - 1} more)" if len(self.names) > 1 else "")


def holds_weights(path: pathlib.Path) -> bool:
    """Return whether the folder ``path`` has safetensors files of a model."""
    return any(True for stem in _STEMS.values() for _ in path.glob(f"{stem}*.safetensors"))


def find_weights(path: pathlib.Path) -> dict[Weights, WeightFiles]:
    """Find the sets of weights in the folder ``path``.

    A published folder may have an index of raw weights that names ``ema.safetensors`` alone; those are the ``ema``.

    Raises:
      CheckpointError: an index is malformed or names files outside the folder.
    """
    found = {kind: files for kind in _STEMS if (files := _find_kind(path, kind))}
    if "raw" in found and EMA in found["raw"].names:  # one of the several files of an index, so no set of its own
        found.pop("ema", None)
    return found


def choose_weights(path: pathlib.Path, weights: Weights | None) -> tuple[WeightFiles, WeightFiles | None]:
    """Choose the weights to convert, and return the other set too, if there is one.

    ``weights`` is "raw", "ema", or None for "ema" if there is one, as in PyTorch's code.

    Raises:
      CheckpointError: the folder lacks these weights, or they are several files without an index; or see
        ``find_weights``.
    """
    found = find_weights(path)
    if not found:
        return WeightFiles("ema", (EMA,)), None
    if weights is not None and weights not in found:
        raise CheckpointError(
            f"{path}: holds {', '.join(map(str, found.values()))} and no {_STEMS[weights]}.safetensors; "
            f"leave --weights={weights} out"
        )
    kind = weights or ("ema" if "ema" in found else "raw")
    chosen = found.pop(kind)
    if len(chosen.names) > 1 and not chosen.index:
        raise CheckpointError(
            f"{path / INDEXES[kind]}: missing; {len(chosen.names)} files {_STEMS[kind]}*.safetensors need it"
        )
    return chosen, next(iter(found.values()), None)


def _find_kind(path: pathlib.Path, kind: Weights) -> WeightFiles | None:
    single = path / f"{_STEMS[kind]}.safetensors"
    if kind == "ema" and single.is_file():
        return WeightFiles(kind, (single.name,))
    index = read_index(path / INDEXES[kind])
    if index and set(index.values()) != {EMA}:
        return WeightFiles(kind, tuple(sorted(set(index.values()))), index)
    names = tuple(sorted(file.name for file in path.glob(f"{_STEMS[kind]}*.safetensors")))
    return WeightFiles(kind, names) if names else None


def read_index(path: pathlib.Path) -> dict[str, str]:
    """Read an index's map from tensor to file, without the autoencoder's; empty without an index.

    Raises:
      CheckpointError: the index is malformed, no index at all, or names files outside its folder.
    """
    if not path.is_file():
        return {}
    refuse_placeholder(path)
    try:
        weight_map = dict(load_json(path.read_bytes())["weight_map"])
        wrong = [file for file in weight_map.values() if not is_plain_name(file)]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: holds no weight_map of tensor to file; fetch it again") from None
    if wrong:
        raise CheckpointError(
            f"{path}: names files outside the folder: {name_some(sorted(set(wrong)))}; fetch it again"
        )
    return {tensor: file for tensor, file in weight_map.items() if file != AUTOENCODER}

"""PEFT's folder of a LoRA adapter, read and written.

adapter_config.json          rank, alpha, and what the adapter changes
adapter_model.safetensors    for every kernel ``lora_A`` [r, inputs] and ``lora_B`` [outputs, r]

The adapted model computes with W + scale * B A, where scale is alpha / r, or alpha / sqrt(r) with ``use_rslora``. See
https://huggingface.co/docs/peft/developer_guides/checkpoint for the names.
"""

import json
import math
import pathlib
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import safetensors.numpy

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import Place, places
from pdgen.checkpoints.safetensors_file import PICKLE_REASON, SafetensorsFile, read_header
from pdgen.config import ModelConfig
from pdgen.files import Log, log_stderr, new_folder
from pdgen.json_text import decode_json, load_json
from pdgen.messages import Fault, describe_faults, name_some

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_WRAPPER = "base_model.model."  # what PEFT calls the model that it adapts
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_ROOTS = ("", "language_model.")  # an adapter of the language model alone has names without the second one
# Adapters with one of these do more than add B A to linear kernels.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
# With any other initialisation PEFT also changes the base's kernels, so that B A fits only the changed ones.
_KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")


class Factors(NamedTuple):
    """The adapter of one kernel W [out, in], which becomes W + scale * B A; float32.

    Attributes:
      a: A, [r, in].
      b: B, [out, r].
      scale: the factor of the product.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float


class _Config(msgspec.Struct):
    """The keys of adapter_config.json that the product depends on."""

    r: int
    lora_alpha: float
    peft_type: str
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """Return the rank of a module's adapter and the factor of its product B A."""
        rank = _find_pattern(self.rank_pattern or {}, module, self.r)
        alpha = _find_pattern(self.alpha_pattern or {}, module, self.lora_alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)


def is_adapter(path: pathlib.Path) -> bool:
    """Return whether ``path`` looks like the folder of a PEFT adapter."""
    return any((path / name).is_file() for name in (CONFIG, TENSORS, PICKLE))


def read_adapter(path: str | pathlib.Path, config: ModelConfig) -> dict[str, Factors]:
    """Read the folder of an adapter of a model with these sizes.

    Returns:
      The factors of every adapted kernel, by PyTorch's name, such as
      "language_model.model.layers.0.self_attn.q_proj.weight".

    Raises:
      CheckpointError: a file is missing, damaged or a pickle, the adapter does more than add B A to linear kernels, a
        tensor fits no kernel of the model or has another shape, or values are not finite.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; name the folder of a PEFT adapter, which holds {CONFIG}")
    if (path / PICKLE).is_file() and not (path / TENSORS).is_file():
        raise CheckpointError(f"{path / PICKLE}: {PICKLE_REASON}")
    settings, file = _read_config(path / CONFIG), read_header(path / TENSORS)
    kernels = {place.name: place for place in places(config, ("model",)).values() if place.path.endswith("/kernel")}
    found = _match_keys(file, kernels)
    faults: list[Fault] = []
    factors = {name: _read_factors(file, settings, pair, kernels[name], faults) for name, pair in found.items()}
    if faults:
        raise CheckpointError(f"{file.path}: {describe_faults(faults)}; it is damaged or of another model")
    return factors


def _read_config(path: pathlib.Path) -> _Config:
    try:
        text = path.read_bytes()
        values, settings = load_json(text), decode_json(text, _Config)
        for key in [*(settings.rank_pattern or {}), *(settings.alpha_pattern or {})]:
            _compile_pattern(key)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; PEFT's save_pretrained writes it beside {TENSORS}") from None
    except (ValueError, re.error) as fault:
        raise CheckpointError(f"{path}: cannot be read ({' '.join(str(fault).split())[:200]}); save it again") from None
    if settings.peft_type != "LORA":
        raise CheckpointError(f"{path}: peft_type is {settings.peft_type[:50]!r}, only 'LORA' is supported")
    numbers = (settings.lora_alpha, *(settings.alpha_pattern or {}).values())
    ranks = (settings.r, *(settings.rank_pattern or {}).values())
    if not all(0 < rank < 2**31 for rank in ranks) or not all(map(math.isfinite, numbers)):
        raise CheckpointError(
            f"{path}: r and rank_pattern must be at least 1 and below 2^31, and every alpha finite; save it again"
        )
    extra = [key for key in _UNSUPPORTED if values.get(key)] + ["bias"] * (settings.bias != "none")
    if extra:
        raise CheckpointError(
            f"{path}: {name_some(extra)} in use, so the adapter does more than add B A to linear kernels; merge it "
            "with PEFT (merge_and_unload) and convert the result"
        )
    if settings.init_lora_weights not in _KEEPS_BASE:
        raise CheckpointError(
            f"{path}: init_lora_weights is {str(settings.init_lora_weights)[:50]!r}, which changes the base too; save "
            "the adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    return settings


def _compile_pattern(key: str) -> re.Pattern[str]:
    """Return the pattern of the modules that a key of rank_pattern or alpha_pattern means: they end with it."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of brackets that a later Python may nest
        return re.compile(rf"(.*\.)?({key})$")


def _find_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches a module's name."""
    return next((value for key, value in patterns.items() if _compile_pattern(key).match(module)), default)


class _Pair(NamedTuple):
    """The tensors of one kernel: the module's name in the file, and the names of A and B; "" if one is missing."""

    module: str
    a: str = ""
    b: str = ""


def _match_keys(file: SafetensorsFile, kernels: Collection[str]) -> dict[str, _Pair]:
    """Return the tensors of every adapted kernel. Raises CheckpointError for keys that fit none."""
    pairs: dict[str, _Pair] = {}
    strangers, adapters = [], set()
    for key in file.tensors:
        match = _KEY.fullmatch(key)
        names = [f"{root}{match['module']}.weight" for root in _ROOTS] if match else []
        name = next((name for name in names if name in kernels), None)
        if match is None or name is None:
            strangers.append(key.removeprefix(_WRAPPER))
            continue
        adapters.add(match["adapter"])
        pair = pairs.get(name, _Pair(match["module"]))
        if getattr(pair, match["factor"].lower()):
            raise CheckpointError(f"{file.path}: holds {key[:150]} twice, under two names; save it again")
        pairs[name] = pair._replace(**{match["factor"].lower(): key})
    if strangers or not pairs:
        raise CheckpointError(
            f"{file.path}: {len(strangers)} of {len(file.tensors)} tensors fit no linear kernel of the model "
            f"({name_some(strangers) or 'there are none'}); name the model that was adapted"
        )
    if len(adapters) > 1:
        names = name_some(sorted(map(str, adapters)))
        raise CheckpointError(f"{file.path}: holds several adapters ({names}); save one of them alone")
    return pairs


def _read_factors(file: SafetensorsFile, settings: _Config, pair: _Pair, place: Place, faults: list[Fault]) -> Factors:
    """Read A and B of one kernel; add what is wrong to ``faults``."""
    (rank, scale), (out, inner) = settings.rank_and_scale(pair.module), place.shape
    read = []
    for factor, key, shape in (("A", pair.a, (rank, inner)), ("B", pair.b, (out, rank))):
        values, name = np.empty((0, 0), np.float32), key.removeprefix(_WRAPPER)
        if not key:
            faults.append(Fault(f"without lora_{factor}", pair.module, f"{pair.module} has no lora_{factor}"))
        elif file.tensors[key].shape != shape:
            text = f"{name} is {list(file.tensors[key].shape)}, expected {list(shape)}"
            faults.append(Fault("of another shape", name, text))
        else:
            stored = np.empty(shape, file.tensors[key].dtype)
            file.read(key, 0, stored)
            values = stored.astype(np.float32)
        if not np.isfinite(values).all():
            text = f"{name} has {np.count_nonzero(~np.isfinite(values)):,} values that are not finite"
            faults.append(Fault("with values that are not finite", name, text))
        read.append(values)
    return Factors(*read, scale)


def write_adapter(
    target: str | pathlib.Path,
    factors: Iterable[tuple[str, np.ndarray, np.ndarray]],
    rank: int,
    alpha: float,
    *,
    overwrite: bool = False,
    log: Log = log_stderr,
) -> None:
    """Write an adapter of BAGEL's PyTorch model as PEFT's folder, atomically.

    Args:
      target, overwrite, log: the folder to write, see ``pdgen.files.new_folder``.
      factors: PyTorch's name of each kernel, such as "connector.fc1.weight", with A [r, in] and B [out, r].
      rank, alpha: the products are scaled by ``alpha / rank``.

    Raises:
      FolderError: ``target`` cannot be written.
    """
    tensors, modules = {}, []
    for name, a, b in factors:
        modules.append(name.removesuffix(".weight"))
        tensors |= {f"{_WRAPPER}{modules[-1]}.lora_{factor}.weight": values for factor, values in (("A", a), ("B", b))}
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": False,
        # Whole names: the ViT also has modules that end in "self_attn.q_proj".
        "target_modules": modules,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "task_type": None,
    }
    nbytes = sum(values.nbytes for values in tensors.values())
    with new_folder(target, nbytes, kind="adapter", replaceable=is_adapter, overwrite=overwrite, log=log) as folder:
        safetensors.numpy.save_file(tensors, folder / TENSORS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")

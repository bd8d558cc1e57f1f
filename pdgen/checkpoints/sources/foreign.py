"""Refusal of files and folders that cannot be converted, recognised by first bytes, tensor names or layout."""

import pathlib
from collections.abc import Collection

from pdgen.checkpoints.errors import CheckpointError
from pdgen.json_text import load_json
from pdgen.messages import name_some

_TAKE = "take ema.safetensors of ByteDance-Seed/BAGEL-7B-MoT or of the trainer's step folder"
_GGUF = f"holds quantized weights for llama.cpp (GGUF), which do not convert; {_TAKE}"
# (the first bytes of a file, in lower case, what is wrong)
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer instead of the file; run git lfs pull in its folder, or download the file itself",
    ),
    (b"<!doctype html", "is an HTML page instead of the file; log in if the file needs it, and download it again"),
    (b"<html", "is an HTML page instead of the file; log in if the file needs it, and download it again"),
    (b"gguf", _GGUF),
)
_HEAD = 64  # bytes that decide
# (kind, parts of tensor names that only this kind has); the first kind that fits counts
_QUANTIZED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("DFloat11", (".encoded_exponent", ".sign_mantissa")),
    ("bitsandbytes 4-bit (NF4 or FP4)", (".quant_state.bitsandbytes__", ".absmax", ".quant_map")),
    ("bitsandbytes int8", (".SCB", ".weight_format")),
    ("GPTQ or AWQ", (".qweight", ".qzeros")),
    ("scaled FP8", ("scaled_fp8", ".scale_weight", ".weight_scale", ".scale_input", ".input_scale")),
)


def refuse_placeholder(path: pathlib.Path) -> None:
    """Raise CheckpointError if ``path`` exists and is a Git LFS pointer, an HTML page or a GGUF file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(_HEAD).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, fault in _BEGINNINGS:
        if head.startswith(beginning):
            raise CheckpointError(f"{path}: {fault}")


def describe_quantized(names: Collection[str]) -> str | None:
    """Return what is wrong if tensors of these names belong to quantized or compressed weights; otherwise None."""
    for kind, marks in _QUANTIZED:
        found = [name for name in names if any(mark in name for mark in marks)]
        if found:
            more = f" and {len(found) - 1:,} more tensors" if len(found) > 1 else ""
            return f"holds {kind} weights (by {found[0]}{more}), which do not convert; {_TAKE}"
    return None


def refuse_layout(path: pathlib.Path) -> None:
    """Raise CheckpointError if the folder ``path``, which has no weights itself, is of a layout that never converts."""
    if any(path.glob("*.gguf")):
        raise CheckpointError(f"{path}: {_GGUF}")
    if any(path.glob("*.distcp")):
        raise CheckpointError(
            f"{path}: is a sharded checkpoint of torch.distributed (.distcp), whose index is a pickle; "
            "merge it to safetensors with the trainer's own script and convert those"
        )
    config = _read_object(path / "config.json")
    if (path / "model_index.json").is_file() or {"_class_name", "_diffusers_version"} & config.keys():
        raise CheckpointError(f"{path}: is a diffusers layout, whose tensors have other names; {_TAKE}")
    parts = sorted(
        folder.name
        for folder in path.iterdir()
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    )
    if parts:
        raise CheckpointError(
            f"{path}: is split by modules into folders ({name_some(parts)}), as VeOmni does; {_TAKE}, or merge it with "
            "VeOmni"
        )


def _read_object(path: pathlib.Path) -> dict[str, object]:
    """Read a json object; empty if there is none, since its readers report faults themselves."""
    try:
        value = load_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

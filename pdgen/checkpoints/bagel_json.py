"""The json files of a BAGEL folder: comparing them with a model, correcting and writing them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from pdgen.config import ModelConfig
from pdgen.json_text import load_json
from pdgen.messages import Fault

MODEL_JSON = ("config.json", "llm_config.json", "vit_config.json")

# (file, key, value) of the only supported model, whatever its sizes.
_ONLY: tuple[tuple[str, str, Any], ...] = (
    ("config.json", "connector_act", "gelu_pytorch_tanh"),
    ("llm_config.json", "hidden_act", "silu"),
    ("llm_config.json", "rope_scaling", None),
    ("vit_config.json", "hidden_act", "gelu_pytorch_tanh"),
)
# PyTorch's code ignores these keys or reads the values from the tensors, so published files differ in them.
_FIXED: tuple[tuple[str, str, Any], ...] = (
    ("config.json", "model_type", "bagel"),
    ("config.json", "visual_gen", True),
    ("config.json", "visual_und", True),
    ("llm_config.json", "model_type", "qwen2"),
    ("llm_config.json", "layer_module", "Qwen2MoTDecoderLayer"),
    ("llm_config.json", "qk_norm", True),
    ("llm_config.json", "tie_word_embeddings", False),
    ("llm_config.json", "use_sliding_window", False),
    ("vit_config.json", "model_type", "siglip_vision_model"),
    ("vit_config.json", "rope", False),
)


def json_values(config: ModelConfig) -> dict[tuple[str, str], Any]:
    """Return the values in the json files of this model's BAGEL folder, by (file, key); a dot in a key is a level."""
    language, vision, autoencoder = config.language, config.vision, config.autoencoder
    files: dict[str, dict[str, Any]] = {
        "config.json": {
            "latent_patch_size": config.latent_patch_size,
            "max_latent_size": config.max_latent_size,
            "vit_max_num_patch_per_side": vision.max_side,
            "timestep_shift": config.timestep_shift,
            "interpolate_pos": config.interpolate_positions,
            "vae_config.ch": autoencoder.channels,
            "vae_config.ch_mult": list(autoencoder.multipliers),
            "vae_config.num_res_blocks": autoencoder.num_blocks,
            "vae_config.num_groups": autoencoder.num_groups,
            "vae_config.z_channels": autoencoder.z_channels,
            "vae_config.in_channels": autoencoder.in_channels,
            "vae_config.out_ch": autoencoder.out_channels,
            "vae_config.scale_factor": autoencoder.scale_factor,
            "vae_config.shift_factor": autoencoder.shift_factor,
            "vae_config.downsample": autoencoder.downsample,
        },
        "llm_config.json": {
            "vocab_size": language.vocab_size,
            "hidden_size": language.hidden_size,
            "intermediate_size": language.intermediate_size,
            "num_hidden_layers": language.num_layers,
            "num_attention_heads": language.num_heads,
            "num_key_value_heads": language.num_kv_heads,
            "head_dim": language.head_dim,
            "rope_theta": language.rope_theta,
            "rms_norm_eps": language.rms_norm_eps,
        },
        "vit_config.json": {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_layers + 1,  # the json counts a last layer that is not used
            "num_attention_heads": vision.num_heads,
            "num_channels": vision.num_channels,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.layer_norm_eps,
        },
    }
    return {(file, key): value for file, values in files.items() for key, value in values.items()}


def compare_configs(stated: ModelConfig, actual: ModelConfig) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Return, by (file, key), the values (stated, actual) that differ."""
    left, right = json_values(stated), json_values(actual)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def find_unsupported(folder: pathlib.Path) -> list[Fault]:
    """Return a fault for each key of the json files whose value is not supported."""
    faults = []
    for file, key, only in _ONLY:
        value = load_json((folder / file).read_bytes()).get(key, only)
        if value != only:
            text = f"{file}: {key} is {json.dumps(value)}, only {json.dumps(only)} is supported"
            faults.append(Fault("unsupported", f"{file}: {key}", text))
    return faults


def read_tied(folder: pathlib.Path) -> bool:
    """Return whether llm_config.json says that the language model's embedding is also its head."""
    return load_json((folder / "llm_config.json").read_bytes()).get("tie_word_embeddings") is True


def _set_key(values: dict[str, Any], key: str, value: Any) -> None:
    *levels, last = key.split(".")
    for level in levels:
        values = values.setdefault(level, {})
    values[last] = value


def set_keys(data: bytes, changes: Mapping[str, Any]) -> bytes:
    """Set keys of a json file; without ``changes`` return the same bytes."""
    if not changes:
        return data
    values = load_json(data)
    for key, value in changes.items():
        _set_key(values, key, value)
    return (json.dumps(values, indent=1) + "\n").encode()


def make_json(config: ModelConfig) -> dict[str, str]:
    """Make the text of config.json, llm_config.json and vit_config.json for a model without such files."""
    files: dict[str, dict[str, Any]] = {name: {} for name in MODEL_JSON}
    constant = {(file, key): value for file, key, value in (*_FIXED, *_ONLY)}
    side = {("vit_config.json", "image_size"): config.vision.max_side * config.vision.patch_size}
    for (file, key), value in (constant | side | json_values(config)).items():
        _set_key(files[file], key, value)
    return {file: json.dumps(values, indent=1) + "\n" for file, values in files.items()}

"""Sizes of the model and settings of its computation: frozen dataclasses, presets, and BAGEL's json files.

``ModelConfig`` has the sizes, which follow from the checkpoint. ``ComputeConfig`` has what a machine may choose:
dtypes, remat, tiles. Both are hashable, so they can be static arguments of jit.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import msgspec

from pdgen.json_text import decode_json, load_json
from pdgen.messages import shorten

_MAX_LEVELS = 16  # of an autoencoder, each of which halves the side


class ConfigError(ValueError):
    """A config file is missing, malformed or inconsistent; the message names file, key and remedy."""


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """Sizes of the mixture-of-transformers, a Qwen2.5; both experts have them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the SigLIP NaViT encoder. The json file's number of layers is ``num_layers`` + 1."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    num_channels: int = 3
    max_side: int = 70
    layer_norm_eps: float = 1e-6

    @property
    def patch_dim(self) -> int:
        """Number of values in a patch, which are ordered (row, column, channel)."""
        return self.patch_size * self.patch_size * self.num_channels


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the FLUX autoencoder; the defaults are FLUX's.

    ``num_groups`` is the number of groups of every group norm.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_blocks: int = 2
    num_groups: int = 32
    z_channels: int = 16
    in_channels: int = 3
    out_channels: int = 3
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downsample(self) -> int:
        """Pixels per latent along a side; every resolution except the last halves the side."""
        return 2 ** (len(self.multipliers) - 1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """All sizes of a BAGEL model; ``read_config`` reads them from the json files."""

    language: LanguageConfig
    vision: VisionConfig
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    latent_patch_size: int = 2
    max_latent_size: int = 64
    timestep_shift: float = 1.0
    interpolate_positions: bool = False
    time_frequency_dim: int = 256

    @property
    def latent_dim(self) -> int:
        """Number of values in a VAE token, a patch of latents ordered (row, column, channel)."""
        return self.latent_patch_size**2 * self.autoencoder.z_channels

    @property
    def latent_stride(self) -> int:
        """Pixels per VAE token along a side."""
        return self.latent_patch_size * self.autoencoder.downsample

    @property
    def is_bagel(self) -> bool:
        """Whether it has BAGEL's patches: 16 pixels for a VAE token, 14 for a ViT token. Shapes world has others."""
        return (self.latent_stride, self.vision.patch_size) == (16, 14)


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Settings of the computation, which do not change the model's function except for rounding.

    Attributes:
      dtype: dtype of activations and matrix products, "bfloat16" or "float32"; parameters are cast on use.
      param_dtype: dtype of new parameters; a loaded checkpoint keeps its own.
      remat: activations of a layer that are saved for the backward pass: "none" saves all, "dots" the matrix products,
        "full" only the layer's input.
      attention: "blockwise", or "dense" (the reference, for tests).
      backend: of the blockwise attention: "auto" (by platform), "xla", "triton" or "tpu".
      block_q, block_k: tile of the backend "xla", in tokens.
      loss_chunk: number of tokens whose logits are in memory at the same time.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "blockwise"
    backend: str = "auto"
    block_q: int = 256
    block_k: int = 256
    loss_chunk: int = 1024


BAGEL_7B = ModelConfig(
    language=LanguageConfig(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
    ),
    vision=VisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_layers=26,
        num_heads=16,
        patch_size=14,
        max_side=70,
    ),
    autoencoder=AutoencoderConfig(),
    max_latent_size=64,
)

# FLUX at an eighth of its width: it also halves the side three times and has 16 latent channels.
SHAPES_AUTOENCODER = AutoencoderConfig(channels=16, num_blocks=1, num_groups=4)

NANO = ModelConfig(
    language=LanguageConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
    ),
    vision=VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=2,
        patch_size=8,
        max_side=4,
    ),
    autoencoder=SHAPES_AUTOENCODER,
    max_latent_size=8,
)

TINY = ModelConfig(
    language=LanguageConfig(
        vocab_size=512,
        hidden_size=384,
        intermediate_size=1152,
        num_layers=8,
        num_heads=6,
        num_kv_heads=2,
        head_dim=64,
    ),
    vision=VisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_layers=4,
        num_heads=3,
        patch_size=8,
        max_side=8,
    ),
    autoencoder=SHAPES_AUTOENCODER,
    max_latent_size=16,
)

# The models of shapes world. The content of an image is decided while it is nearly noise. Without the shift one
# timestep in seven is above 0.75, with it one in two. The position tables end at the data's 64 pixels (16 VAE and
# 16 ViT tokens), since sampling draws the largest image that they allow.
SHAPES_NANO = dataclasses.replace(
    NANO, timestep_shift=3.0, max_latent_size=4, vision=dataclasses.replace(NANO.vision, patch_size=16)
)
SHAPES_TINY = dataclasses.replace(
    TINY, timestep_shift=3.0, max_latent_size=4, vision=dataclasses.replace(TINY.vision, patch_size=16, max_side=4)
)

PRESETS = {
    "nano": NANO,
    "tiny": TINY,
    "shapes_nano": SHAPES_NANO,
    "shapes_tiny": SHAPES_TINY,
    "bagel_7b": BAGEL_7B,
}


def get_preset(name: str) -> ModelConfig:
    """Return the preset ``name``, one of ``PRESETS``. Raises ConfigError for other names."""
    if name not in PRESETS:
        raise ConfigError(f"model preset {name!r} does not exist; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def to_json(config: ModelConfig) -> str:
    """Return the config as indented json, which ``from_json`` reads."""
    return json.dumps(dataclasses.asdict(config), indent=1)


def from_json(text: str, name: str = "model config") -> ModelConfig:
    """Parse the result of ``to_json``. Raises ConfigError that names ``name`` and the wrong field."""
    try:
        return decode_json(text, ModelConfig)
    except (msgspec.DecodeError, msgspec.ValidationError) as fault:
        raise ConfigError(f"{name}: {fault}") from None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a json object. Raises ConfigError if it is missing or malformed."""
    try:
        value = load_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: missing; a BAGEL folder holds config.json, llm_config.json and vit_config.json"
        ) from None
    except ValueError as fault:
        raise ConfigError(f"{path}: not valid json ({fault})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds {type(value).__name__}, expected a json object")
    return value


def _take(values: dict[str, Any], key: str, path: pathlib.Path, kind: type, default: Any = None) -> Any:
    """Return the value of ``key`` or the default. Raises ConfigError if it is missing or not of type ``kind``."""
    value = values.get(key, default)
    if value is None:
        raise ConfigError(f"{path}: key {key!r} is missing")
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"{path}: key {key!r} is {shorten(repr(value), 60)}, expected {kind.__name__}")
    if kind is int and value < 1:
        raise ConfigError(f"{path}: key {key!r} is {value}, expected at least 1")
    return value


def read_config(folder: str | pathlib.Path) -> ModelConfig:
    """Read config.json, llm_config.json and vit_config.json of a BAGEL folder.

    Keys that config.json lacks have the values of FLUX and BAGEL. Sizes in published json files may be wrong;
    ``pdgen.checkpoints.torch_checkpoint`` corrects them by the tensors.

    Raises:
      ConfigError: a file is missing or malformed, or a key is missing or of the wrong type.
    """
    folder = pathlib.Path(folder)
    main_path, llm_path, vit_path = (folder / f"{n}.json" for n in ("config", "llm_config", "vit_config"))
    main, llm, vit = _read_json(main_path), _read_json(llm_path), _read_json(vit_path)
    hidden, heads = (_take(llm, k, llm_path, int) for k in ("hidden_size", "num_attention_heads"))
    language = LanguageConfig(
        vocab_size=_take(llm, "vocab_size", llm_path, int),
        hidden_size=hidden,
        intermediate_size=_take(llm, "intermediate_size", llm_path, int),
        num_layers=_take(llm, "num_hidden_layers", llm_path, int),
        num_heads=heads,
        num_kv_heads=_take(llm, "num_key_value_heads", llm_path, int, heads),
        head_dim=_take(llm, "head_dim", llm_path, int, hidden // heads),
        rope_theta=_take(llm, "rope_theta", llm_path, float, 1e6),
        rms_norm_eps=_take(llm, "rms_norm_eps", llm_path, float, 1e-6),
    )
    vision = VisionConfig(
        hidden_size=_take(vit, "hidden_size", vit_path, int),
        intermediate_size=_take(vit, "intermediate_size", vit_path, int),
        num_layers=_take(vit, "num_hidden_layers", vit_path, int) - 1,
        num_heads=_take(vit, "num_attention_heads", vit_path, int),
        patch_size=_take(vit, "patch_size", vit_path, int),
        num_channels=_take(vit, "num_channels", vit_path, int, 3),
        max_side=_take(main, "vit_max_num_patch_per_side", main_path, int, 70),
        layer_norm_eps=_take(vit, "layer_norm_eps", vit_path, float, 1e-6),
    )
    return ModelConfig(
        language=language,
        vision=vision,
        autoencoder=_autoencoder_config(_take(main, "vae_config", main_path, dict, {}), main_path),
        latent_patch_size=_take(main, "latent_patch_size", main_path, int, 2),
        max_latent_size=_take(main, "max_latent_size", main_path, int, 64),
        timestep_shift=_take(main, "timestep_shift", main_path, float, 1.0),
        interpolate_positions=_take(main, "interpolate_pos", main_path, bool, False),
    )


def _autoencoder_config(vae: dict[str, Any], path: pathlib.Path) -> AutoencoderConfig:
    flux = AutoencoderConfig()
    multipliers = tuple(_take(vae, "ch_mult", path, list, list(flux.multipliers)))
    if not 0 < len(multipliers) <= _MAX_LEVELS or not all(type(n) is int and n > 0 for n in multipliers):
        shown = shorten(str(list(multipliers)), 60)
        raise ConfigError(f"{path}: key 'ch_mult' is {shown}, expected 1 to {_MAX_LEVELS} positive numbers")
    config = AutoencoderConfig(
        channels=_take(vae, "ch", path, int, flux.channels),
        multipliers=multipliers,
        num_blocks=_take(vae, "num_res_blocks", path, int, flux.num_blocks),
        num_groups=_take(vae, "num_groups", path, int, flux.num_groups),
        z_channels=_take(vae, "z_channels", path, int, flux.z_channels),
        in_channels=_take(vae, "in_channels", path, int, 3),
        out_channels=_take(vae, "out_ch", path, int, 3),
        scale_factor=_take(vae, "scale_factor", path, float, flux.scale_factor),
        shift_factor=_take(vae, "shift_factor", path, float, flux.shift_factor),
    )
    stated = _take(vae, "downsample", path, float, config.downsample)
    if not math.isclose(stated, config.downsample):
        raise ConfigError(
            f"{path}: vae_config.downsample is {stated}, but {len(multipliers)} resolutions "
            f"(ch_mult) downsample by {config.downsample}; correct one of the two"
        )
    return config

"""The table between PyTorch's tensor names and pdgen's parameter tree, used in both directions.

Every array of the tree is a reshaped PyTorch tensor, or the reshaped tensors of all layers, stacked on axis 0.
Nothing is transposed, so a row of an array is a range of bytes of a tensor. An int8 checkpoint also has the scales of
its int8 kernels, under the name and path of the kernel with the suffix ``_scale`` (see ``pdgen.models.linear``).

Axis legend (a rule's ``axes``; PyTorch has one axis for the axes in brackets):
  language model  L layers, D width, F intermediate, H heads, K key/value heads, h head size, V vocabulary
  ViT             N layers, C width, I intermediate, A heads, a head size, P patch values, S positions
  latents         M positions, Z values of a token; T frequencies of the time embedding
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from flax import traverse_util

from pdgen.config import AutoencoderConfig, ModelConfig
from pdgen.models import autoencoder
from pdgen.models.linear import may_be_int8, scale_name

PARTS = ("model", "autoencoder")  # in ema.safetensors and ae.safetensors


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
      name: PyTorch's name, with ``{L}`` or ``{N}`` for the layer's number.
      path: the array's path in the model's tree.
      axes: axes of one layer's array, such as ``"(H h) D"``.
    """

    name: str
    path: str
    axes: str

    @property
    def layers(self) -> str | None:
        """The letter of the number of layers that are stacked in this array; None if it is not stacked."""
        found = re.search(r"{(\w)}", self.name)
        return found[1] if found else None

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The letters of each of PyTorch's axes."""
        return tuple(tuple((one or several).split()) for several, one in re.findall(r"\(([^)]*)\)|(\w)", self.axes))

    def scale(self) -> "Rule":
        """Return the rule of the scales of an int8 kernel, one for each output channel."""
        outputs = re.findall(r"\([^)]*\)|\w", self.axes)[0]
        return Rule(scale_name(self.name), scale_name(self.path), outputs)

    def pattern(self) -> re.Pattern[str]:
        """Return a pattern of this rule's names; group 1, if any, is the layer's number without leading zeros."""
        return re.compile(re.sub(r"\\{\w\\}", r"(0|[1-9][0-9]*)", re.escape(self.name)))


def _linear(name: str, path: str, out: str, inner: str, bias: bool = True) -> list[Rule]:
    rules = [Rule(f"{name}.weight", f"{path}/kernel", f"{out} {inner}")]
    return [*rules, Rule(f"{name}.bias", f"{path}/bias", out)] if bias else rules


def _layer_norm(name: str, path: str, axis: str) -> list[Rule]:
    return [Rule(f"{name}.weight", f"{path}/scale", axis), Rule(f"{name}.bias", f"{path}/bias", axis)]


def _expert_rules(expert: str, suffix: str) -> list[Rule]:
    layer, path = "language_model.model.layers.{L}.", f"language/layers/{expert}"
    attention, mlp = f"{layer}self_attn.", f"{layer}mlp{suffix}."
    return [
        Rule(f"{layer}input_layernorm{suffix}.weight", f"{path}/input_norm/scale", "D"),
        *_linear(f"{attention}q_proj{suffix}", f"{path}/attention/q", "(H h)", "D"),
        *_linear(f"{attention}k_proj{suffix}", f"{path}/attention/k", "(K h)", "D"),
        *_linear(f"{attention}v_proj{suffix}", f"{path}/attention/v", "(K h)", "D"),
        *_linear(f"{attention}o_proj{suffix}", f"{path}/attention/o", "D", "(H h)", bias=False),
        Rule(f"{attention}q_norm{suffix}.weight", f"{path}/attention/q_norm/scale", "h"),
        Rule(f"{attention}k_norm{suffix}.weight", f"{path}/attention/k_norm/scale", "h"),
        Rule(f"{layer}post_attention_layernorm{suffix}.weight", f"{path}/post_norm/scale", "D"),
        *_linear(f"{mlp}gate_proj", f"{path}/mlp/gate", "F", "D", bias=False),
        *_linear(f"{mlp}up_proj", f"{path}/mlp/up", "F", "D", bias=False),
        *_linear(f"{mlp}down_proj", f"{path}/mlp/down", "D", "F", bias=False),
        Rule(f"language_model.model.norm{suffix}.weight", f"language/norm/{expert}/scale", "D"),
    ]


def _vision_rules() -> list[Rule]:
    model = "vit_model.vision_model."
    layer, path = f"{model}encoder.layers.{{N}}.", "vision/layers"
    return [
        *_linear(f"{model}embeddings.patch_embedding", "vision/patch_embedding", "C", "P"),
        Rule(f"{model}embeddings.position_embedding.weight", "vision/position_embedding/embedding", "S C"),
        *_layer_norm(f"{layer}layer_norm1", f"{path}/norm1", "C"),
        *_layer_norm(f"{layer}layer_norm2", f"{path}/norm2", "C"),
        *_linear(f"{layer}self_attn.q_proj", f"{path}/attention/q", "(A a)", "C"),
        *_linear(f"{layer}self_attn.k_proj", f"{path}/attention/k", "(A a)", "C"),
        *_linear(f"{layer}self_attn.v_proj", f"{path}/attention/v", "(A a)", "C"),
        *_linear(f"{layer}self_attn.out_proj", f"{path}/attention/o", "C", "(A a)"),
        *_linear(f"{layer}mlp.fc1", f"{path}/mlp/fc1", "I", "C"),
        *_linear(f"{layer}mlp.fc2", f"{path}/mlp/fc2", "C", "I"),
        *_layer_norm(f"{model}post_layernorm", "vision/post_norm", "C"),
    ]


RULES: tuple[Rule, ...] = (
    Rule("language_model.model.embed_tokens.weight", "language/embed/embedding", "V D"),
    *_expert_rules("und", ""),
    *_expert_rules("gen", "_moe_gen"),
    Rule("language_model.lm_head.weight", "language/head/kernel", "V D"),
    *_vision_rules(),
    *_linear("connector.fc1", "connector/fc1", "D", "C"),
    *_linear("connector.fc2", "connector/fc2", "D", "D"),
    Rule("vit_pos_embed.pos_embed", "vit_position/table", "S D"),
    Rule("latent_pos_embed.pos_embed", "latent_position/table", "M D"),
    *_linear("time_embedder.mlp.0", "time_embedder/fc1", "D", "T"),
    *_linear("time_embedder.mlp.2", "time_embedder/fc2", "D", "D"),
    *_linear("vae2llm", "latent_in", "D", "Z"),
    *_linear("llm2vae", "latent_out", "Z", "D"),
)


INT8_SCALES = tuple(rule.scale() for rule in RULES if may_be_int8(rule.path))


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of one PyTorch tensor in the tree.

    Attributes:
      name: PyTorch's name.
      shape: PyTorch's shape.
      path: the array's path, which begins with ``model/`` or ``autoencoder/``.
      layer: the tensor's index on axis 0 of the array; None if it is the whole array.
      slot: the tensor's shape in the array, a reshape of ``shape``.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    layer: int | None
    slot: tuple[int, ...]


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """Return the size of each letter of the axis legend."""
    language, vision = config.language, config.vision
    return {
        "L": language.num_layers,
        "D": language.hidden_size,
        "F": language.intermediate_size,
        "H": language.num_heads,
        "K": language.num_kv_heads,
        "h": language.head_dim,
        "V": language.vocab_size,
        "N": vision.num_layers,
        "C": vision.hidden_size,
        "I": vision.intermediate_size,
        "A": vision.num_heads,
        "a": vision.hidden_size // vision.num_heads,
        "P": vision.patch_dim,
        "S": vision.max_side**2,
        "M": config.max_latent_size**2,
        "Z": config.latent_dim,
        "T": config.time_frequency_dim,
    }


def _model_places(config: ModelConfig, rules: Iterable[Rule]) -> Iterator[Place]:
    sizes = axis_sizes(config)
    for rule in rules:
        shape = tuple(math.prod(sizes[letter] for letter in group) for group in rule.groups)
        slot = tuple(sizes[letter] for group in rule.groups for letter in group)
        path = f"model/{rule.path}"
        if rule.layers is None:
            yield Place(rule.name, shape, path, None, slot)
            continue
        for layer in range(sizes[rule.layers]):
            yield Place(rule.name.replace(f"{{{rule.layers}}}", str(layer)), shape, path, layer, slot)


def autoencoder_places(config: AutoencoderConfig) -> dict[str, Place]:
    """Return the place of every tensor of ae.safetensors, by name.

    The tree of ``pdgen.models.autoencoder`` joins a number to the name before it, which PyTorch only does in "mid".
    """
    result = {}
    for path, leaf in traverse_util.flatten_dict(autoencoder.spec(config), sep="/").items():
        *module, kind = re.sub(r"(?<!mid/)\b(down|up|block)_(\d+)", r"\1/\2", path).split("/")
        name = ".".join((*module, "bias" if kind == "bias" else "weight"))
        result[name] = Place(name, leaf.shape, f"autoencoder/{path}", None, leaf.shape)
    return result


def places(config: ModelConfig, parts: Sequence[str] = PARTS, int8: bool = False) -> dict[str, Place]:
    """Return the place of every PyTorch tensor of a checkpoint with these sizes, by name.

    With ``int8``, also of the scales of an int8 checkpoint.
    """
    result = {}
    if "model" in parts:
        rules = (*RULES, *INT8_SCALES) if int8 else RULES
        result |= {place.name: place for place in _model_places(config, rules)}
    if "autoencoder" in parts:
        result |= autoencoder_places(config.autoencoder)
    return result


def expected_tensors(config: ModelConfig, parts: Sequence[str] = PARTS) -> dict[str, tuple[int, ...]]:
    """Return the shape of every PyTorch tensor of a checkpoint with these sizes, by name."""
    return {name: place.shape for name, place in places(config, parts).items()}


def array_shapes(config: ModelConfig, parts: Sequence[str] = PARTS, int8: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of the tree by path, such as [V, D] for ``model/language/embed/embedding``."""
    shapes = {}
    for place in places(config, parts, int8).values():  # layers are in order, so the last one counts them
        layers = () if place.layer is None else (place.layer + 1,)
        shapes[place.path] = (*layers, *place.slot)
    return shapes

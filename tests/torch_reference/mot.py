"""The mixture-of-transformers language model: two experts share one attention (axis legend: package)."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm, apply_rotary_pos_emb


@dataclasses.dataclass
class Layout:
    """Places of the tokens of a sequence of S, and what they see.

    Attributes:
      und: [U] and
      gen: [G] indexes into the sequence; U + G = S.
      positions: [S] rotary positions.
      sample_lens: lengths of the consecutive samples that the sequence packs; they sum to S.
      masks: per sample [length, past + length] bool, True where a query (row) sees a key (column). ``past``
        counts cached keys, which only a sequence of one sample may have.
    """

    und: Tensor
    gen: Tensor
    positions: Tensor
    sample_lens: list[int]
    masks: list[Tensor]

    def __post_init__(self):
        # Layers work in stream order (all understanding tokens, then all generation tokens), so that each
        # expert is one dense product on a slice; attention works in sequence order.
        self.to_stream = torch.cat([self.und, self.gen])
        self.to_sequence = torch.argsort(self.to_stream)


class PerExpert(nn.Module):
    """Base of the modules that hold a parameter set per expert, the second with suffix ``_moe_gen``."""

    def by_expert(self, name: str, x: Tensor, num_und: int) -> Tensor:
        """Apply child ``name`` to the first ``num_und`` tokens of ``x`` and its twin to the others."""
        und, gen = getattr(self, name), getattr(self, name + "_moe_gen")
        return torch.cat([und(x[:num_und]), gen(x[num_und:])])


class Attention(PerExpert):
    """Grouped-query attention with RMS QK-norm per head, then half-split rotary positions."""

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = head_dim(config)
        width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        for suffix in ("", "_moe_gen"):
            self.add_module("q_proj" + suffix, nn.Linear(config.hidden_size, width, bias=True))
            self.add_module("k_proj" + suffix, nn.Linear(config.hidden_size, kv_width, bias=True))
            self.add_module("v_proj" + suffix, nn.Linear(config.hidden_size, kv_width, bias=True))
            self.add_module("o_proj" + suffix, nn.Linear(width, config.hidden_size, bias=False))
            self.add_module("q_norm" + suffix, Qwen2RMSNorm(self.head_dim, eps=config.rms_norm_eps))
            self.add_module("k_norm" + suffix, Qwen2RMSNorm(self.head_dim, eps=config.rms_norm_eps))

    def forward(self, x: Tensor, layout: Layout, rotary: tuple, past: tuple | None) -> tuple[Tensor, tuple]:
        """x [S, D] in stream order -> (output [S, D] in stream order, (k, v) [past + S, K, h])."""
        num_und = layout.und.numel()
        split = (x.shape[0], -1, self.head_dim)
        q, k, v = (self.by_expert(f"{name}_proj", x, num_und).view(split) for name in "qkv")
        q, k = self.by_expert("q_norm", q, num_und), self.by_expert("k_norm", k, num_und)
        q, k, v = (a[layout.to_sequence] for a in (q, k, v))
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        if past is not None:
            k, v = torch.cat([past[0], k]), torch.cat([past[1], v])
        out = attend(q, k, v, layout)[layout.to_stream]
        return self.by_expert("o_proj", out, num_und), (k, v)


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Softmax attention of each sample within itself: q [S, H, h], k and v [past + S, K, h] -> [S, H * h]."""
    key_lens = [mask.shape[1] for mask in layout.masks]
    out = []
    samples = zip(q.split(layout.sample_lens), k.split(key_lens), v.split(key_lens), layout.masks)
    for q_one, k_one, v_one, mask in samples:
        heads_first = (a.transpose(0, 1)[None] for a in (q_one, k_one, v_one))
        one = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True)
        out.append(one[0].transpose(0, 1).flatten(1))
    return torch.cat(out)


class DecoderLayer(PerExpert):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)), each expert with its own weights."""

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.self_attn = Attention(config)
        for suffix in ("", "_moe_gen"):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                self.add_module(norm + suffix, Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
            self.add_module("mlp" + suffix, Qwen2MLP(config))

    def forward(self, x: Tensor, layout: Layout, rotary: tuple, past: tuple | None) -> tuple[Tensor, tuple]:
        """As ``Attention.forward``."""
        num_und = layout.und.numel()
        normed = self.by_expert("input_layernorm", x, num_und)
        attended, key_values = self.self_attn(normed, layout, rotary, past)
        x = x + attended
        normed = self.by_expert("post_attention_layernorm", x, num_und)
        return x + self.by_expert("mlp", normed, num_und), key_values


class Decoder(PerExpert):
    """Token embedding, the layers, and a final norm per expert."""

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_moe_gen = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rope_theta, self.head_dim = rope_theta(config), head_dim(config)

    def forward(self, x: Tensor, layout: Layout, past: list | None = None) -> tuple[Tensor, list]:
        """Run the layers on embeddings.

        Args:
          x: [S, D] in sequence order.
          layout: of these S tokens.
          past: per layer (k, v) [past, K, h], after QK-norm and rotation, or None.

        Returns:
          [S, D] in sequence order, BEFORE the final norm (see ``final_norm``), and ``past`` grown by S.
        """
        rotary = rotary_tables(layout.positions, self.head_dim, self.rope_theta, x.dtype)
        x, grown = x[layout.to_stream], []
        for index, layer in enumerate(self.layers):
            x, key_values = layer(x, layout, rotary, None if past is None else past[index])
            grown.append(key_values)
        return x[layout.to_sequence], grown

    def final_norm(self, x: Tensor, layout: Layout) -> Tensor:
        """Each expert's last RMS norm on [S, D] in sequence order."""
        return self.by_expert("norm", x[layout.to_stream], layout.und.numel())[layout.to_sequence]


class LanguageModel(nn.Module):
    """The decoder and its untied head."""

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def head_dim(config: Qwen2Config) -> int:
    """Width of a head: stated, or hidden size over heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_theta(config: Qwen2Config) -> float:
    """The rotary base, which transformers keeps in a dictionary since version 5."""
    return config.rope_parameters["rope_theta"]


def rotary_tables(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin) [S, width] of position * theta^(-2j / width), the half-split layout (each half alike)."""
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = positions[:, None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)

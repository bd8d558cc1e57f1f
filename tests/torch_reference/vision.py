"""The SigLIP vision transformer on patches of several images, and the connector (axis legend: package)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import SiglipVisionConfig
from transformers.activations import ACT2FN
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer


class Embeddings(nn.Module):
    """Linear patch embedding plus learned positions."""

    def __init__(self, config: SiglipVisionConfig, max_side: int):
        super().__init__()
        patch_dim = config.num_channels * config.patch_size**2
        self.patch_embedding = nn.Linear(patch_dim, config.hidden_size)
        self.position_embedding = nn.Embedding(max_side**2, config.hidden_size)

    def forward(self, patches: Tensor, position_ids: Tensor) -> Tensor:
        """patches [V, P] ordered (row, column, channel), position_ids [V] -> [V, C]."""
        return self.patch_embedding(patches) + self.position_embedding(position_ids)


class Encoder(nn.Module):
    """The layers; the json file counts one more than exist."""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(SiglipEncoderLayer(config) for _ in range(config.num_hidden_layers - 1))


class VisionTransformer(nn.Module):
    """Patches of several images to one hidden vector each; images never see one another."""

    def __init__(self, config: SiglipVisionConfig, max_side: int):
        super().__init__()
        self.embeddings = Embeddings(config, max_side)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, position_ids: Tensor, seqlens: list[int]) -> Tensor:
        """patches [V, P], position_ids [V], tokens per image (sum V) -> [V, C] after the last norm."""
        x = self.embeddings(patches, position_ids)
        if not seqlens:
            return self.post_layernorm(x)
        # One batch row per image; rows of unequal length are padded, and no query sees the padding.
        rows = pad_sequence(x.split(seqlens), batch_first=True)
        real = torch.arange(rows.shape[1]) < torch.tensor(seqlens)[:, None]
        mask = None if bool(real.all()) else real[:, None, None, :].expand(-1, 1, rows.shape[1], -1)
        for layer in self.encoder.layers:
            rows = layer(rows, attention_mask=mask)
        return self.post_layernorm(rows[real])


class VisionModel(nn.Module):
    """A wrapper that gives the parameters their published names."""

    def __init__(self, config: SiglipVisionConfig, max_side: int):
        super().__init__()
        self.vision_model = VisionTransformer(config, max_side)


class Connector(nn.Module):
    """Two linear layers from the ViT's width to the language model's."""

    def __init__(self, vit_width: int, width: int, activation: str):
        super().__init__()
        self.fc1 = nn.Linear(vit_width, width)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[V, C] -> [V, D]."""
        return self.fc2(self.activation(self.fc1(x)))

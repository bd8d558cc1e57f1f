"""BAGEL on one packed sequence: embeddings of the three inputs, the language model, both losses.

Axis legend: package. P values in a ViT patch, L values in a VAE token, N loss tokens.
"""

import dataclasses
import json
import math
import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, SiglipVisionConfig

from .autoencoder import FLUX
from .mot import LanguageModel, Layout
from .vision import Connector, VisionModel

TIME_FREQUENCIES = 128
CONFIG_FILES = ("config", "llm_config", "vit_config")


@dataclasses.dataclass
class Inputs:
    """Contents of a packed sequence of S tokens, by input kind; absent kinds keep their defaults.

    Attributes:
      text_ids, text_indexes: [U'] ids (switch tokens too) and their indexes into the sequence.
      vit_tokens, vit_indexes, vit_position_ids: [V, P] patches, [V] indexes, [V] ids into the tables.
      vit_seqlens: ViT tokens of each image; they sum to V.
      latents, vae_indexes, latent_position_ids: [G, L] VAE tokens as fed (noised where they are), [G], [G].
      timesteps: [G] in [0, 1], after the shift; 0 for a clean image.
      position_ids, sample_lens, masks: see ``Layout``.
    """

    text_ids: Tensor
    text_indexes: Tensor
    position_ids: Tensor
    sample_lens: list[int]
    masks: list[Tensor]
    vit_tokens: Tensor | None = None
    vit_indexes: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    vit_position_ids: Tensor | None = None
    vit_seqlens: list[int] = dataclasses.field(default_factory=list)
    latents: Tensor | None = None
    vae_indexes: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    latent_position_ids: Tensor | None = None
    timesteps: Tensor | None = None

    def layout(self) -> Layout:
        """Text and ViT tokens go to the understanding expert, VAE tokens to the generation expert."""
        und = torch.cat([self.text_indexes, self.vit_indexes]).sort().values
        return Layout(und, self.vae_indexes, self.position_ids, self.sample_lens, self.masks)


@dataclasses.dataclass
class Targets:
    """Targets of a packed sequence.

    Attributes:
      ce_indexes, labels: [N] indexes into the sequence and the token ids that follow there.
      mse_indexes: [M] indexes of the noised VAE tokens.
      velocity: [M, L] noise - latent at these tokens.
      ce_weight, mse_weight: of the two means in the loss.
    """

    ce_indexes: Tensor
    labels: Tensor
    mse_indexes: Tensor
    velocity: Tensor
    ce_weight: float = 0.25
    mse_weight: float = 1.0


class PositionTable(nn.Module):
    """The fixed sin-cos table of a square grid; entry row * side + column."""

    def __init__(self, side: int, width: int):
        super().__init__()
        self.register_buffer("pos_embed", sincos_table(side, width))


def sincos_table(side: int, width: int) -> Tensor:
    """[side * side, width]: first half of the channels from the column, second from the row.

    Each half is [sin, cos] of position * 10000^(-j / (half / 2)), j = 0 .. half / 2 - 1.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([rows.transpose(0, 1), rows], dim=-1).reshape(side * side, -1)


class TimeEmbedder(nn.Module):
    """MLP of [cos(t f), sin(t f)], f_j = 10000^(-j / 128), t in [0, 1]."""

    def __init__(self, width: int):
        super().__init__()
        layers = nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        self.mlp = nn.Sequential(*layers)

    def forward(self, t: Tensor) -> Tensor:
        """[G] -> [G, D]."""
        steps = torch.arange(TIME_FREQUENCIES, dtype=torch.float32)
        angles = t.float()[:, None] * torch.exp(-math.log(10000.0) / TIME_FREQUENCIES * steps)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class Bagel(nn.Module):
    """The unified model; ``config``, ``llm``, ``vit`` are the checkpoint's three json files."""

    def __init__(self, config: dict, llm: dict, vit: dict):
        super().__init__()
        llm_config, vit_config = Qwen2Config.from_dict(llm), SiglipVisionConfig.from_dict(vit)
        vit_config._attn_implementation = "sdpa"
        width, side = llm_config.hidden_size, config["vit_max_num_patch_per_side"]
        self.latent_patch_size, self.max_latent_size = config["latent_patch_size"], config["max_latent_size"]
        self.vit_patch_size, self.vit_max_side = vit_config.patch_size, side
        self.interpolate_positions = config.get("interpolate_pos", False)
        latent_dim = self.latent_patch_size**2 * (FLUX | config["vae_config"])["z_channels"]

        self.language_model = LanguageModel(llm_config)
        self.vit_model = VisionModel(vit_config, side)
        self.connector = Connector(vit_config.hidden_size, width, config["connector_act"])
        self.vit_pos_embed = PositionTable(side, width)
        self.latent_pos_embed = PositionTable(self.max_latent_size, width)
        self.time_embedder = TimeEmbedder(width)
        self.vae2llm = nn.Linear(latent_dim, width)
        self.llm2vae = nn.Linear(width, latent_dim)

    def embed(self, inputs: Inputs) -> dict[str, Tensor]:
        """Every token's embedding, and what led to it.

        Returns:
          ``input_embeddings`` [S, D]; with ViT tokens ``vit_hidden`` [V, C] and ``vit_connected`` [V, D]
          (before its position embedding); with VAE tokens ``timestep_embedding`` [G, D].
        """
        text = self.language_model.model.embed_tokens(inputs.text_ids)
        indexes, tokens, parts = [inputs.text_indexes], [text], {}
        if inputs.vit_seqlens:
            vit = self.vit_model.vision_model
            hidden = vit(inputs.vit_tokens.to(text.dtype), inputs.vit_position_ids, inputs.vit_seqlens)
            connected = self.connector(hidden)
            parts |= {"vit_hidden": hidden, "vit_connected": connected}
            indexes.append(inputs.vit_indexes)
            tokens.append(connected + self.vit_pos_embed.pos_embed[inputs.vit_position_ids])
        if inputs.vae_indexes.numel():
            time = self.time_embedder(inputs.timesteps)
            parts["timestep_embedding"] = time
            indexes.append(inputs.vae_indexes)
            position = self.latent_pos_embed.pos_embed[inputs.latent_position_ids]
            tokens.append(self.vae2llm(inputs.latents.to(text.dtype)) + time + position)
        parts["input_embeddings"] = torch.cat(tokens)[torch.argsort(torch.cat(indexes))]
        return parts

    def hidden_states(self, inputs: Inputs) -> dict[str, Tensor]:
        """``embed``'s tensors and ``last_hidden_state`` [S, D], after the final norm."""
        parts, layout, decoder = self.embed(inputs), inputs.layout(), self.language_model.model
        hidden, _ = decoder(parts["input_embeddings"], layout)
        return parts | {"last_hidden_state": decoder.final_norm(hidden, layout)}

    def losses(self, inputs: Inputs, targets: Targets) -> dict[str, Tensor]:
        """``hidden_states``'s tensors and the losses, which are float32.

        Returns:
          also ``logits`` [N, vocabulary], ``velocity`` [M, L], ``ce_per_token`` [N], ``mse_per_element``
          [M, L], the means ``ce_loss`` and ``mse_loss`` (a pack without such targets has 0), and ``loss``,
          the weighted sum.
        """
        parts = self.hidden_states(inputs)
        hidden = parts["last_hidden_state"]
        logits = self.language_model.lm_head(hidden[targets.ce_indexes]).float()
        ce = F.cross_entropy(logits, targets.labels, reduction="none")
        velocity = self.llm2vae(hidden[targets.mse_indexes])
        mse = (velocity.float() - targets.velocity.float()) ** 2
        ce_loss, mse_loss = (a.mean() if a.numel() else a.sum() for a in (ce, mse))
        loss = targets.ce_weight * ce_loss + targets.mse_weight * mse_loss
        return parts | {
            "logits": logits,
            "velocity": velocity,
            "ce_per_token": ce,
            "mse_per_element": mse,
            "ce_loss": ce_loss,
            "mse_loss": mse_loss,
            "loss": loss,
        }


def load_configs(folder: pathlib.Path) -> list[dict]:
    """The three json files of a checkpoint, in the order ``Bagel`` takes them."""
    return [json.loads((folder / f"{name}.json").read_text()) for name in CONFIG_FILES]


def shift_timesteps(t: Tensor, shift: float) -> Tensor:
    """Move t in [0, 1] towards the noise: s t / (1 + (s - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)

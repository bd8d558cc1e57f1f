"""The FLUX autoencoder: images to Gaussian latents and back.

n images, z latent channels; H, W pixels; h, w = H, W over the downsampling 2^(resolutions - 1).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLUX = {
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "z_channels": 16,
    "in_channels": 3,
    "out_ch": 3,
    "scale_factor": 0.3611,
    "shift_factor": 0.1159,
    "num_groups": 32,
}


def norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with eps 1e-6."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ResnetBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = norm(in_channels, groups), conv3(in_channels, out_channels)
        self.norm2, self.conv2 = norm(out_channels, groups), conv3(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        x = self.conv1(F.silu(self.norm1(x)))
        return shortcut + self.conv2(F.silu(self.norm2(x)))


class AttentionBlock(nn.Module):
    """One-head attention over all pixels."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0].mT
        return x + self.proj_out(out.reshape(x.shape))


class Downsample(nn.Module):
    """A layer that halves the size; it pads one pixel, right and bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """A layer that doubles the size by nearest neighbour and convolves."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def middle(channels: int, groups: int) -> nn.ModuleDict:
    """Block, attention, block: between the encoder's (decoder's) levels and its end (start)."""
    return nn.ModuleDict(
        {
            "block_1": ResnetBlock(channels, channels, groups),
            "attn_1": AttentionBlock(channels, groups),
            "block_2": ResnetBlock(channels, channels, groups),
        }
    )


def level(widths: list[int], groups: int, resample: tuple[str, nn.Module] | None) -> nn.ModuleDict:
    """Residual blocks from each width to the next, and what changes the resolution after them."""
    blocks = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in itertools.pairwise(widths))
    return nn.ModuleDict({"block": blocks} | ({resample[0]: resample[1]} if resample else {}))


def run(module: nn.ModuleDict, x: Tensor) -> Tensor:
    """Apply a level or a middle: its children in order."""
    for child in module.values():
        for layer in child if isinstance(child, nn.ModuleList) else [child]:
            x = layer(x)
    return x


class Encoder(nn.Module):
    """[n, 3, H, W] -> moments [n, 2z, h, w]."""

    def __init__(self, config: dict):
        super().__init__()
        widths = [config["ch"] * multiplier for multiplier in config["ch_mult"]]
        self.conv_in = conv3(config["in_channels"], config["ch"])
        self.down, width = nn.ModuleList(), config["ch"]
        for index, out in enumerate(widths):
            is_last = index == len(widths) - 1
            resample = None if is_last else ("downsample", Downsample(out))
            self.down.append(level([width] + [out] * config["num_res_blocks"], config["num_groups"], resample))
            width = out
        self.mid = middle(width, config["num_groups"])
        self.norm_out, self.conv_out = norm(width, config["num_groups"]), conv3(width, 2 * config["z_channels"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for one in [*self.down, self.mid]:
            x = run(one, x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """[n, z, h, w] -> [n, 3, H, W]. ``up`` is numbered like ``down``, so it runs from its end."""

    def __init__(self, config: dict):
        super().__init__()
        widths = [config["ch"] * multiplier for multiplier in config["ch_mult"]]
        width = widths[-1]
        self.conv_in = conv3(config["z_channels"], width)
        self.mid = middle(width, config["num_groups"])
        levels = []
        for index, out in reversed(list(enumerate(widths))):
            resample = None if index == 0 else ("upsample", Upsample(out))
            levels.append(level([width] + [out] * (config["num_res_blocks"] + 1), config["num_groups"], resample))
            width = out
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out, self.conv_out = norm(width, config["num_groups"]), conv3(width, config["out_ch"])

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for one in [self.mid, *reversed(self.up)]:
            x = run(one, x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Encoder, decoder and the affine map between posterior mean and latent.

    ``config`` is the checkpoint's ``vae_config``; what it lacks takes FLUX's values.
    """

    def __init__(self, config: dict):
        super().__init__()
        config = FLUX | config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.scale, self.shift = config["scale_factor"], config["shift_factor"]

    def encode(self, images: Tensor) -> Tensor:
        """[n, 3, H, W] in [-1, 1] -> scaled latent of the posterior mean [n, z, h, w]."""
        mean, _ = self.encoder(images).chunk(2, dim=1)
        return self.scale * (mean - self.shift)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [n, z, h, w] -> images [n, 3, H, W], about [-1, 1]."""
        return self.decoder(latents / self.scale + self.shift)


def patchify(latent: Tensor, patch: int) -> Tensor:
    """[channels, rows * patch, columns * patch] -> [rows * columns, patch * patch * channels].

    Values within a patch are ordered (row, column, channel).
    """
    channels, height, width = latent.shape
    grid = latent.reshape(channels, height // patch, patch, width // patch, patch)
    return torch.einsum("crpsq->rspqc", grid).reshape(-1, patch * patch * channels)

"""Random models and samples, for the reference and for pdgen, in parity tests and benchmarks."""

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdgen.checkpoints.bagel_json import MODEL_JSON, make_json
from pdgen.checkpoints.mapping import places
from pdgen.config import ModelConfig
from pdgen.sequence import layout
from pdgen.train.objectives.loss import FlowInputs

from .bagel import Bagel
from .packing import Segment
from .sampling import Switches, position_ids


def random_model(config: ModelConfig, seed: int) -> Bagel:
    """The reference with Gaussian weights that keep the scale of activations; no bias is 0, no norm 1."""
    files, generator = make_json(config), torch.Generator().manual_seed(seed)
    model = Bagel(*(json.loads(files[name]) for name in MODEL_JSON))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(parameter.shape[1]))
            else:
                parameter.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
    return model


def to_tree(config: ModelConfig, tensors: Iterable[tuple[str, Tensor | None]]) -> dict[str, Any]:
    """pdgen's parameter tree from named tensors of the model (parameters or their gradients; None is 0)."""
    named, arrays = dict(tensors), {}
    for place in places(config, ("model",)).values():
        tensor = named.get(place.name)
        value = np.zeros(place.slot, np.float32) if tensor is None else tensor.detach().float().numpy()
        arrays.setdefault(place.path, []).append((place.layer, value.reshape(place.slot)))
    tree = {}
    for path, layers in arrays.items():
        _, *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        values = [value for _, value in layers]
        node[last] = values[0] if layers[0][0] is None else np.stack(values)
    return tree


def random_switches(config: ModelConfig) -> Switches:
    """The vocabulary's last four tokens."""
    return Switches(*range(config.language.vocab_size - 4, config.language.vocab_size))


class SampleMaker:
    """A source of random segments for one config; ``grids`` are (rows, columns) of VAE tokens or ViT patches."""

    def __init__(self, config: ModelConfig, seed: int):
        self.config, self.generator = config, torch.Generator().manual_seed(seed)

    def text(self, length: int, loss: bool = False, closing_label: int | None = None) -> Segment:
        """A text of random words, none of them a switch token."""
        ids = torch.randint(self.config.language.vocab_size - 4, [length], generator=self.generator).tolist()
        return Segment("text", ids=ids, loss=loss, closing_label=closing_label)

    def vit(self, grid: tuple[int, int], closing_label: int | None = None) -> Segment:
        """Patches of uniform pixels."""
        vision = self.config.vision
        values = 2 * torch.rand(math.prod(grid), vision.patch_dim, generator=self.generator) - 1
        ids = position_ids(*grid, vision.max_side, self.config.interpolate_positions)
        return Segment("vit", values=values, table_ids=ids, closing_label=closing_label)

    def drawn(self, grid: tuple[int, int]) -> list[Segment]:
        """The noised and the clean VAE copy of one image."""
        config, shape = self.config, (math.prod(grid), self.config.latent_dim)
        values, noise = (torch.randn(shape, generator=self.generator) for _ in range(2))
        ids = position_ids(*grid, config.max_latent_size, config.interpolate_positions)
        t = float(torch.rand((), generator=self.generator))
        noised = Segment("vae", values=values, table_ids=ids, loss=True, t=t, noise=noise)
        return [noised, Segment("vae", values=values, table_ids=ids)]

    def trajectory(self, words: int, vae_grids: list[tuple[int, int]], vit_grid: tuple[int, int]) -> list[Segment]:
        """A prompt, then per image a plan, its three copies and an inspection; all but the prompt are targets."""
        switches = random_switches(self.config)
        segments = [self.text(words)]
        for grid in vae_grids:
            segments.append(self.text(words, loss=True, closing_label=switches.vision_start))
            segments += [*self.drawn(grid), self.vit(vit_grid, closing_label=switches.im_start)]
            segments.append(self.text(words // 2 + 1, loss=True, closing_label=switches.im_end))
        return segments


def to_document(segments: list[Segment]) -> list[layout.Segment]:
    """The segments in pdgen's form."""
    document = []
    for s in segments:
        if s.kind == "text":
            document.append(layout.TextSegment(s.ids, s.loss, s.closing_label))
        elif s.kind == "vit":
            document.append(layout.VitSegment(s.values.numpy(), s.table_ids.numpy().astype(np.int32), s.closing_label))
        else:
            arrays = s.values.numpy(), s.table_ids.numpy().astype(np.int32)
            document.append(layout.LatentSegment(*arrays, s.loss, s.closing_label))
    return document


def to_pack(
    config: ModelConfig, samples: list[list[Segment]], spare: tuple[int, int, int] = (0, 0, 0), row: int = 0
) -> tuple[layout.Pack, FlowInputs]:
    """One pack with ``spare`` padding tokens a stream (text, ViT, VAE), and what its VAE tokens carry."""
    switches = random_switches(config)
    layouts = [layout.lay_out(to_document(sample), switches, config) for sample in samples]
    used = np.sum([one.lengths for one in layouts], axis=0)
    pack = layout.assemble(layouts, layout.Budgets(*(int(n) for n in used + spare)), row)
    t, noise = np.zeros_like(pack.vae_weights), np.zeros_like(pack.vae_latents)
    cursor = 0
    for segment in (s for sample in samples for s in sample if s.kind == "vae"):
        end = cursor + len(segment.values)
        if segment.loss:
            t[cursor:end], noise[cursor:end] = segment.t, segment.noise.numpy()
        cursor = end
    return pack, FlowInputs(t, noise)

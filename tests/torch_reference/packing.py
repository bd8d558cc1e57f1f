"""Samples as one packed sequence: indexes, rotary positions, masks and targets.

Written token by token from the rules, with dense masks; slow and plain on purpose.
"""

import dataclasses

import torch
from torch import Tensor

from .bagel import Inputs, Targets
from .sampling import Switches


@dataclasses.dataclass
class Segment:
    """One text or one copy of an image, without its switch tokens.

    Attributes:
      kind: "text", "vae" or "vit".
      ids: a text's token ids.
      values: an image's tokens [n, values]: ViT patches, or clean scaled VAE latents.
      table_ids: [n] ids into the position table of the image's kind.
      loss: a target: cross-entropy on a text, flow on a VAE image (which is then noised).
      closing_label: the token to predict at the segment's last switch token, or None.
      t: a noised image's time in (0, 1], after the shift.
      noise: [n, values] of a noised image.
    """

    kind: str
    ids: list[int] = dataclasses.field(default_factory=list)
    values: Tensor | None = None
    table_ids: Tensor | None = None
    loss: bool = False
    closing_label: int | None = None
    t: float = 0.0
    noise: Tensor | None = None

    @property
    def mode(self) -> str:
        """How it attends: "causal", "full" (clean image) or "noise"."""
        return "causal" if self.kind == "text" else "noise" if self.loss else "full"

    def __len__(self) -> int:
        return 2 + (len(self.ids) if self.kind == "text" else len(self.values))


def sample_mask(segments: list[Segment]) -> Tensor:
    """[n, n] bool: k <= q or the same image, and a noised image's keys from itself alone."""
    allowed = torch.ones(*[sum(map(len, segments))] * 2, dtype=torch.bool).tril()
    end = 0
    for segment in segments:
        start, end = end, end + len(segment)
        if segment.mode != "causal":
            allowed[start:end, start:end] = True
        if segment.mode == "noise":
            allowed[end:, start:end] = False
    return allowed


def sample_positions(segments: list[Segment]) -> Tensor:
    """[n] rotary positions: a text advances by every token, a clean image by one, a noised one not at all."""
    positions, following = [], 0
    for segment in segments:
        if segment.kind == "text":
            positions.append(following + torch.arange(len(segment)))
            following += len(segment)
        else:
            positions.append(torch.full([len(segment)], following))
            following += segment.mode == "full"
    return torch.cat(positions)


def pack(samples: list[list[Segment]], switches: Switches) -> tuple[Inputs, Targets]:
    """Pack samples in their order; every VAE token's latent is noised if its segment is a target."""
    text, vit, vae, ce, mse = [], [], [], [], []  # (index, what is there or is to be predicted there)
    cursor = 0
    for segment in (segment for sample in samples for segment in sample):
        is_text = segment.kind == "text"
        start, end = cursor, cursor + len(segment) - 1
        opening = switches.im_start if is_text else switches.vision_start
        closing = switches.im_end if is_text else switches.vision_end
        text += [
            (start, opening),
            *((start + 1 + i, token) for i, token in enumerate(segment.ids)),
            (end, closing),
        ]
        if is_text and segment.loss:
            ce += [(start + i, label) for i, label in enumerate([*segment.ids, closing])]
        if segment.closing_label is not None:
            ce.append((end, segment.closing_label))
        inside = list(range(start + 1, end))
        vit += inside if segment.kind == "vit" else []
        vae += inside if segment.kind == "vae" else []
        mse += inside if segment.mode == "noise" else []
        cursor = end + 1
    text_indexes, text_ids = torch.tensor(text).T
    ce_indexes, labels = torch.tensor(ce).reshape(-1, 2).T
    images = {kind: [s for sample in samples for s in sample if s.kind == kind] for kind in ("vit", "vae")}
    inputs = Inputs(
        text_ids=text_ids,
        text_indexes=text_indexes,
        position_ids=torch.cat([sample_positions(sample) for sample in samples]),
        sample_lens=[sum(map(len, sample)) for sample in samples],
        masks=[sample_mask(sample) for sample in samples],
    )
    if vit:
        _add_vit(inputs, images["vit"], vit)
    if vae:
        _add_vae(inputs, images["vae"], vae)
    velocity = [s.noise - s.values for s in images["vae"] if s.loss]
    velocity = torch.cat(velocity) if velocity else torch.zeros(0, 0)
    return inputs, Targets(ce_indexes, labels, torch.tensor(mse, dtype=torch.long), velocity)


def _add_vit(inputs: Inputs, images: list[Segment], indexes: list[int]) -> None:
    inputs.vit_tokens = torch.cat([s.values for s in images])
    inputs.vit_position_ids = torch.cat([s.table_ids for s in images])
    inputs.vit_seqlens = [len(s.values) for s in images]
    inputs.vit_indexes = torch.tensor(indexes)


def _add_vae(inputs: Inputs, images: list[Segment], indexes: list[int]) -> None:
    noised = [(1 - s.t) * s.values + s.t * s.noise if s.loss else s.values for s in images]
    inputs.latents = torch.cat(noised)
    inputs.latent_position_ids = torch.cat([s.table_ids for s in images])
    inputs.timesteps = torch.cat([torch.full([len(s.values)], s.t) for s in images])
    inputs.vae_indexes = torch.tensor(indexes)

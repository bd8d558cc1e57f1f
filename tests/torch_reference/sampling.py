"""Sampling with a key/value cache: segments into the cache, images out of noise, greedy text.

Axis legend: package. n tokens of the image being drawn, L values in a VAE token.
"""

import dataclasses
import math

import torch
from torch import Tensor

from .autoencoder import Autoencoder, patchify
from .bagel import Bagel, Inputs, shift_timesteps


@dataclasses.dataclass(frozen=True)
class Switches:
    """Ids of the tokens that open and close a text (im) and an image (vision)."""

    im_start: int
    im_end: int
    vision_start: int
    vision_end: int


@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of what the model has seen; growing it makes a new one.

    Attributes:
      layers: per layer (k, v), each [length, K, h], after QK-norm and rotation; None while empty.
      length: tokens held.
      position: rotary position of whatever comes next.
    """

    layers: list | None = None
    length: int = 0
    position: int = 0


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How an image is drawn; names and values as in a run of ``expected.json``."""

    num_timesteps: int
    timestep_shift: float
    cfg_text_scale: float
    cfg_img_scale: float
    cfg_interval: tuple[float, float]
    cfg_renorm_type: str = "global"
    cfg_renorm_min: float = 0.0
    enable_taylorseer: bool = False


def position_ids(rows: int, columns: int, max_side: int, interpolate: bool) -> Tensor:
    """[rows * columns] ids into a table of side ``max_side``: row * side + column, or scaled to the table."""
    row, column = torch.arange(rows), torch.arange(columns)
    if interpolate:
        row, column = row * max_side // rows, column * max_side // columns
    return (row[:, None] * max_side + column).flatten()


class Sampler:
    """The model, its autoencoder and switch tokens; no method changes a given cache."""

    def __init__(self, model: Bagel, autoencoder: Autoencoder, switches: Switches):
        self.model, self.autoencoder, self.switches = model, autoencoder, switches
        self.decoder = model.language_model.model

    def add_text(self, cache: Cache, ids: list[int]) -> Cache:
        """Append the segment of words ``ids``; the position advances by every token."""
        ids = [self.switches.im_start, *ids, self.switches.im_end]
        return self.feed(cache, ids)[1]

    def add_vae_image(self, cache: Cache, image: Tensor) -> Cache:
        """Append a clean VAE image [3, H, W] in [-1, 1]; the position advances by one."""
        latent = self.autoencoder.encode(image[None])[0]
        patch = self.model.latent_patch_size
        ids = self._latent_positions(latent.shape[1] // patch, latent.shape[2] // patch)
        tokens = patchify(latent, patch)
        inputs = self._image_inputs(cache, len(tokens))
        inputs.latents, inputs.timesteps = tokens, torch.zeros(len(tokens))
        inputs.vae_indexes, inputs.latent_position_ids = torch.arange(1, len(tokens) + 1), ids
        return self._store(cache, self.run(inputs, cache)[1], len(inputs.position_ids), advance=1)

    def add_vit_image(self, cache: Cache, image: Tensor) -> Cache:
        """Append a ViT image [3, H, W] in [-1, 1]; the position advances by one."""
        patch, side = self.model.vit_patch_size, self.model.vit_max_side
        rows, columns = image.shape[1] // patch, image.shape[2] // patch
        tokens = patchify(image, patch)
        inputs = self._image_inputs(cache, len(tokens))
        inputs.vit_tokens, inputs.vit_seqlens = tokens, [len(tokens)]
        inputs.vit_indexes = torch.arange(1, len(tokens) + 1)
        inputs.vit_position_ids = position_ids(rows, columns, side, self.model.interpolate_positions)
        return self._store(cache, self.run(inputs, cache)[1], len(inputs.position_ids), advance=1)

    def greedy_text(self, cache: Cache, count: int) -> tuple[Tensor, Tensor]:
        """Decode ``count`` tokens without stopping.

        Returns:
          the tokens fed [count], of which the first is ``im_start``, and the logits after each
          [count, vocabulary]; token i + 1 is the argmax of logits i.
        """
        token, tokens, logits = self.switches.im_start, [], []
        for _ in range(count):
            hidden, cache = self.feed(cache, [token])
            tokens.append(token)
            logits.append(self.model.language_model.lm_head(hidden[-1]))
            token = int(logits[-1].argmax())
        return torch.tensor(tokens), torch.stack(logits)

    def image_inputs(self, cache: Cache, grid: tuple[int, int]) -> Inputs:
        """The sequence that denoises an image of ``grid`` (rows, columns) VAE tokens, latents not yet set."""
        inputs = self._image_inputs(cache, grid[0] * grid[1])
        inputs.vae_indexes = torch.arange(1, grid[0] * grid[1] + 1)
        inputs.latent_position_ids = self._latent_positions(*grid)
        return inputs

    def run(self, inputs: Inputs, cache: Cache) -> tuple[Tensor, list]:
        """New tokens after ``cache``: [Q, D] before the final norm, and the grown keys and values."""
        embeddings = self.model.embed(inputs)["input_embeddings"]
        return self.decoder(embeddings, inputs.layout(), cache.layers)

    def _latent_positions(self, rows: int, columns: int) -> Tensor:
        return position_ids(rows, columns, self.model.max_latent_size, self.model.interpolate_positions)

    def _image_inputs(self, cache: Cache, num_tokens: int) -> Inputs:
        length = num_tokens + 2
        return Inputs(
            text_ids=torch.tensor([self.switches.vision_start, self.switches.vision_end]),
            text_indexes=torch.tensor([0, length - 1]),
            position_ids=torch.full([length], cache.position),
            sample_lens=[length],
            masks=[torch.ones(length, cache.length + length, dtype=torch.bool)],
        )

    def feed(self, cache: Cache, ids: list[int]) -> tuple[Tensor, Cache]:
        """Run text tokens as they are: the hidden states [Q, D] after the final norm, the grown cache."""
        count = len(ids)
        inputs = Inputs(
            text_ids=torch.tensor(ids),
            text_indexes=torch.arange(count),
            position_ids=cache.position + torch.arange(count),
            sample_lens=[count],
            masks=[torch.ones(count, cache.length + count, dtype=torch.bool).tril(cache.length)],
        )
        hidden, layers = self.run(inputs, cache)
        hidden = self.decoder.final_norm(hidden, inputs.layout())
        return hidden, self._store(cache, layers, count, advance=count)

    def _store(self, cache: Cache, layers: list, count: int, advance: int) -> Cache:
        return Cache(layers, cache.length + count, cache.position + advance)


class TaylorSeer:
    """A forecast of the last layer's output from its past differences, so that steps can skip the layers.

    Steps 0 to 4 are full, then every third; a skipped step sums D(i) d^i / i! over the differences D(i), d
    steps after the last full one. D(0) is the output and D(i + 1) = (D(i) - previous D(i)) / (steps between).
    """

    WARM_UP, INTERVAL, MAX_ORDER = 5, 3, 6

    def __init__(self):
        self.differences, self.last = [], None

    def is_full(self, step: int) -> bool:
        """Whether the layers must run at ``step``."""
        return step < self.WARM_UP or self.last is None or step - self.last >= self.INTERVAL

    def update(self, step: int, output: Tensor) -> None:
        """Record a full step's output."""
        new = [output]
        if step >= self.WARM_UP - 1:
            for order, old in enumerate(self.differences[: self.MAX_ORDER]):
                new.append((new[order] - old) / (step - self.last))
        self.differences, self.last = new, step

    def forecast(self, step: int) -> Tensor:
        """The output expected at ``step``."""
        d = step - self.last
        return sum(difference * d**i / math.factorial(i) for i, difference in enumerate(self.differences))


class Branch:
    """Velocities seen from one context: the sampler, that context's cache, and a TaylorSeer of its own."""

    def __init__(self, sampler: Sampler, cache: Cache, grid: tuple[int, int], use_taylorseer: bool):
        self.sampler, self.cache = sampler, cache
        self.inputs, self.taylor = sampler.image_inputs(cache, grid), TaylorSeer() if use_taylorseer else None

    def velocity(self, latents: Tensor, t: float, step: int) -> Tensor:
        """[n, L] latents at time ``t`` in [0, 1] -> velocity [n, L] (noise - image)."""
        inputs, layout = self.inputs, self.inputs.layout()
        if self.taylor and not self.taylor.is_full(step):
            hidden = self.taylor.forecast(step)
        else:
            inputs.latents, inputs.timesteps = latents, torch.full([len(latents)], t)
            hidden, _ = self.sampler.run(inputs, self.cache)
            if self.taylor:
                self.taylor.update(step, hidden)
        normed = self.sampler.decoder.final_norm(hidden, layout)
        return self.sampler.model.llm2vae(normed[inputs.vae_indexes])


def guide(v: Tensor, v_text: Tensor, v_image: Tensor | None, settings: ImageSettings) -> Tensor:
    """The guided velocity [n, L]; ``v_image`` is None where the image scale asks for no image guidance.

    ``global`` and ``channel`` rescale after both steps, ``text_channel`` between the two.
    """
    guided = v_text + settings.cfg_text_scale * (v - v_text)
    if settings.cfg_renorm_type == "text_channel":
        guided = rescale(guided, v, per_token=True, least=settings.cfg_renorm_min)
    if v_image is not None:
        guided = v_image + settings.cfg_img_scale * (guided - v_image)
    if settings.cfg_renorm_type == "text_channel":
        return guided
    return rescale(guided, v, settings.cfg_renorm_type == "channel", settings.cfg_renorm_min)


def rescale(guided: Tensor, v: Tensor, per_token: bool, least: float) -> Tensor:
    """Shrink ``guided`` to the norm of ``v`` (over all values, or per token), by ``least`` at most."""
    dims = {"dim": -1, "keepdim": True} if per_token else {}
    ratio = torch.linalg.vector_norm(v, **dims) / (torch.linalg.vector_norm(guided, **dims) + 1e-8)
    return guided * ratio.clamp(least, 1.0)


def draw_image(branches: list[Branch], noise: Tensor, settings: ImageSettings) -> Tensor:
    """Integrate dz = v dt from noise at t = 1 to an image at t = 0 by Euler steps.

    Args:
      branches: the full context, the one without the last text, the one without images.
      noise: [n, L].
      settings: ``num_timesteps`` - 1 steps are taken.

    Returns:
      [n, L] the scaled, patchified latent.
    """
    full, text, image = branches
    times = shift_timesteps(torch.linspace(1, 0, settings.num_timesteps), settings.timestep_shift)
    low, high = settings.cfg_interval
    latents = noise
    for step, (t, following) in enumerate(zip(times[:-1].tolist(), times[1:].tolist())):
        v = full.velocity(latents, t, step)
        if settings.cfg_text_scale > 1 and low < t <= high:
            v_text = text.velocity(latents, t, step)
            v_image = image.velocity(latents, t, step) if settings.cfg_img_scale > 1 else None
            v = guide(v, v_text, v_image, settings)
        latents = latents - (t - following) * v
    return latents

"""One image from noise by pdgen and by the PyTorch reference: same weights, context, noise and settings.

The context is a prompt, an image in its ViT form, and a plan, so that guidance has all three branches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow.denoise import Contexts, Denoiser, ImageSettings, generate_latents
from pdgen.models.context import Cache, add_text, add_vit, empty_cache
from pdgen.sequence.images import patchify, position_ids
from tests.torch_reference import cases, sampling

WORDS = 45  # of the prompt and of the plan
TOLERANCE = 1e-3  # of the largest value; what rounding grows to over all steps stays well below


class ScanCase:
    """A random model and the context of the image."""

    def __init__(self, config: ModelConfig, settings: ImageSettings):
        rng, stride, patch = np.random.default_rng(0), config.latent_stride, config.vision.patch_size
        side = min(stride * config.max_latent_size, patch * config.vision.max_side)
        self.config, self.settings = config, settings
        self.model, self.switches = cases.random_model(config, seed=0), cases.random_switches(config)
        self.prompt, self.plan = rng.integers(config.language.vocab_size - 4, size=(2, WORDS)).tolist()
        self.pixels = rng.uniform(-1, 1, (side, side, 3)).astype(np.float32)
        self.grid = (side // stride, side // stride)
        self.noise = rng.normal(size=(self.grid[0] * self.grid[1], config.latent_dim)).astype(np.float32)

    def build_torch(self) -> Callable[[], np.ndarray]:
        """Return a call that draws with the reference."""
        reference = sampling.Sampler(self.model, None, self.switches)
        with torch.no_grad():
            prompt = reference.add_text(sampling.Cache(), self.prompt)
            text = reference.add_vit_image(prompt, torch.from_numpy(self.pixels).permute(2, 0, 1))
            contexts = reference.add_text(text, self.plan), text, reference.add_text(prompt, self.plan)
        settings = sampling.ImageSettings(
            self.settings.num_timesteps,
            self.settings.timestep_shift,
            self.settings.text_scale,
            self.settings.image_scale,
            self.settings.interval,
            self.settings.renorm,
            self.settings.renorm_min,
        )

        def draw() -> np.ndarray:
            with torch.no_grad():
                branches = [sampling.Branch(reference, context, self.grid, False) for context in contexts]
                return sampling.draw_image(branches, torch.from_numpy(self.noise), settings).numpy()

        return draw

    def build_pdgen(self, compute: ComputeConfig) -> Callable[[], np.ndarray]:
        """Return a call that draws with the compiled scan."""
        config, switches = self.config, (self.switches.vision_start, self.switches.vision_end)
        params = jax.tree.map(jnp.asarray, cases.to_tree(config, self.model.state_dict().items()))
        prompt = self._with_text(compute, params, empty_cache(config, 1, 4 * WORDS), self.prompt)
        text = self._with_image(compute, params, prompt)
        contexts = Contexts(
            self._with_text(compute, params, text, self.plan),
            text.length,
            text.rotary,
            self._with_text(compute, params, prompt, self.plan),
            jnp.ones(1, bool),
        )
        positions = position_ids(self.grid, config.max_latent_size, config.interpolate_positions)[None]
        denoiser = Denoiser(config, compute, self.settings, switches)
        scan = jax.jit(generate_latents, static_argnums=0)
        return lambda: np.asarray(scan(denoiser, params, contexts, self.noise[None], positions))[0]

    def _with_text(self, compute: ComputeConfig, params: Any, cache: Cache, words: list[int]) -> Cache:
        ids = np.array([[self.switches.im_start, *words, self.switches.im_end]], np.int32)
        return add_text(self.config, compute, params, cache, ids, np.array([ids.shape[1]], np.int32))[0]

    def _with_image(self, compute: ComputeConfig, params: Any, cache: Cache) -> Cache:
        vision, config = self.config.vision, self.config
        side = self.pixels.shape[0] // vision.patch_size
        positions = position_ids((side, side), vision.max_side, config.interpolate_positions)[None]
        image = patchify(self.pixels[None], vision.patch_size), positions
        switches = self.switches.vision_start, self.switches.vision_end
        return add_vit(config, compute, params, cache, image, switches, np.ones(1, bool))[0]


def make_draws(
    config: ModelConfig, settings: ImageSettings, compute: ComputeConfig
) -> dict[str, Callable[[], np.ndarray]]:
    """Return a call of each, after checking that both give the same latents.

    Raises:
      RuntimeError: The latents differ.
    """
    case = ScanCase(config, settings)
    runs = {"pdgen": case.build_pdgen(compute), "torch": case.build_torch()}
    ours, theirs = (run() for run in runs.values())
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not error < TOLERANCE:
        raise RuntimeError(f"the latents differ by {error:.1e} of the largest")
    return runs

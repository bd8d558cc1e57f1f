"""The smallest model with every part, for tests that do not depend on sizes."""

import functools
import types

import jax
import numpy as np

from pdgen.config import SHAPES_AUTOENCODER, LanguageConfig, ModelConfig, VisionConfig
from pdgen.models import bagel

CONFIG = ModelConfig(
    language=LanguageConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
    ),
    vision=VisionConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, patch_size=2, max_side=4),
    autoencoder=SHAPES_AUTOENCODER,
    max_latent_size=4,
    timestep_shift=2.0,
)
SWITCHES = types.SimpleNamespace(im_start=60, im_end=61, vision_start=62, vision_end=63)  # the last ids


def shaken_params():
    """Return fresh parameters plus Gaussians of 0.1, so that no bias is 0 and no gradient negligible."""
    leaves, tree = jax.tree.flatten(jax.jit(functools.partial(bagel.init_params, CONFIG))(jax.random.key(0)))
    rng = np.random.default_rng(0)
    return tree.unflatten([np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])

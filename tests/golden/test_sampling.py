"""Sampling on the golden folders: the growing contexts, the drawn latents, greedy text, the fixed tables."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow.denoise import Contexts, Denoiser, ImageSettings, generate_latents
from pdgen.models import autoencoder, bagel
from pdgen.models.context import Cache, add_latents, add_text, add_vit, empty_cache
from pdgen.models.embeddings import sincos_table
from pdgen.sample.text import Grammar, TextSettings, count_text_slots, write_text
from pdgen.sequence.images import patchify, position_ids
from tests.checkpoints.folders import read_bagel_folder

COMPUTE = ComputeConfig(block_q=24, block_k=20)  # tiles that divide nothing
BRANCHES = {"context_order": "", "cfg_text_context": "cfg_text_", "cfg_img_context": "cfg_img_"}
SETTINGS = {
    "num_timesteps": "num_timesteps",
    "timestep_shift": "timestep_shift",
    "cfg_text_scale": "text_scale",
    "cfg_img_scale": "image_scale",
    "cfg_interval": "interval",
    "cfg_renorm_type": "renorm",
    "cfg_renorm_min": "renorm_min",
    "enable_taylorseer": "taylorseer",
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A golden folder's sizes and parameters."""

    config: ModelConfig
    params: dict


@pytest.fixture(scope="session")
def model(golden):
    config, params = read_bagel_folder(golden.folder)
    return Model(config, jax.tree.map(jnp.asarray, params))


extend_by_text = jax.jit(add_text, static_argnums=(0, 1))
extend_by_latents = jax.jit(add_latents, static_argnums=(0, 1, 5))
extend_by_vit = jax.jit(add_vit, static_argnums=(0, 1, 5))
encode = jax.jit(autoencoder.encode, static_argnums=0)


def patches(config, image, patch, side):
    """Return the tokens of one image [1, H, W, C] and their position ids."""
    grid = tuple(n // patch for n in image.shape[1:3])
    return patchify(image, patch), position_ids(grid, side, config.interpolate_positions)[None]


def extend(golden, model, cache, segment):
    """Return the cache after ``segment``, such as "text:prompt" or "vae:image_vae"."""
    config, params, infer = model.config, model.params["model"], golden.expected["infer"]
    kind, name = segment.split(":")
    if kind == "text":
        ids = np.array([golden.expected["bos"], *infer[f"{name}_ids"], golden.expected["eos"]], np.int32)
        padded = np.zeros((1, max(32, len(ids))), np.int32)
        padded[0, : len(ids)] = ids
        return extend_by_text(config, COMPUTE, params, cache, padded, np.array([len(ids)]))[0]
    switches = golden.expected["soi"], golden.expected["eoi"]
    pixels = jnp.moveaxis(golden.numbers[f"infer.{name}"], 1, -1)
    inputs = {
        "vae": lambda: (clean_latents(model, pixels), config.latent_patch_size, config.max_latent_size),
        "vit": lambda: (pixels, config.vision.patch_size, config.vision.max_side),
    }[kind]
    add = {"vae": extend_by_latents, "vit": extend_by_vit}[kind]
    return add(config, COMPUTE, params, cache, patches(config, *inputs()), switches, np.ones(1, bool))[0]


def clean_latents(model, pixels):
    mean, _ = encode(model.config.autoencoder, model.params["autoencoder"], pixels)
    return autoencoder.latent_from_moments(model.config.autoencoder, mean)


@pytest.fixture(scope="session")
def caches(golden, model) -> dict[str, Cache]:
    """The three contexts of guidance, with room for more tokens."""
    infer, result = golden.expected["infer"], {}
    for branch, prefix in BRANCHES.items():
        cache = empty_cache(model.config, 1, infer["kv_len"] + 16)
        for segment in infer[branch]:
            cache = extend(golden, model, cache, segment)
        result[prefix] = cache
    return result


def test_lengths_and_rotary_positions(golden, caches):
    infer = golden.expected["infer"]
    for prefix, cache in caches.items():
        assert (int(cache.length[0]), int(cache.rotary[0])) == (infer[f"{prefix}kv_len"], infer[f"{prefix}rope"])


def test_keys_and_values(golden, caches):
    length = golden.expected["infer"]["kv_len"]
    for side in "kv":
        layers = np.asarray(getattr(caches[""], side))[:, 0, :length]
        golden.check_all(f"infer.cache.{side}.", {str(n): layer for n, layer in enumerate(layers)})


draw = jax.jit(generate_latents, static_argnums=0)


@pytest.mark.slow
def test_drawn_latents(golden, model, caches):
    """Every run's latents, with text guidance as a shorter view of the one cache."""
    expected, infer = golden.expected, golden.expected["infer"]
    text_context = infer["cfg_text_context"]
    assert infer["context_order"][: len(text_context)] == text_context  # so that a view can be shorter
    full, text, image = (caches[prefix] for prefix in BRANCHES.values())
    contexts = Contexts(full, text.length, text.rotary, image, jnp.ones(1, bool))
    grid, config = tuple(infer["image_grid"]), model.config
    positions = position_ids(grid, config.max_latent_size, config.interpolate_positions)[None]
    noise, drawn = golden.numbers["infer.init_noise"][None], {}
    for name, run in infer["runs"].items():
        settings = ImageSettings(
            **{SETTINGS[key]: value for key, value in run.items() if key != "cfg_interval"},
            interval=tuple(run["cfg_interval"]),
        )
        denoiser = Denoiser(config, COMPUTE, settings, (expected["soi"], expected["eoi"]))
        drawn[name] = draw(denoiser, model.params["model"], contexts, noise, positions)[0]
    golden.check_all("infer.latent.", drawn)


def test_logits_of_given_tokens(golden, model, caches):
    cache, logits = caches[""], []
    for token in golden.numbers["infer.text_tokens"]:
        ids = np.array([[token]], np.int32)
        cache, hidden = extend_by_text(model.config, COMPUTE, model.params["model"], cache, ids, np.ones(1, np.int32))
        logits.append(bagel.logits(model.params["model"], hidden)[0, 0])
    golden.check("infer.text_logits", np.stack(logits))


def test_greedy_text(golden, model, caches):
    """The compiled loop under a grammar that allows everything, up to a limit."""
    tokens, closing = golden.numbers["infer.text_tokens"], golden.expected["eos"]
    assert tokens[0] == golden.expected["bos"]
    words = tokens[1:]
    words = words[: np.argmax(words == closing)] if closing in words else words
    settings = TextSettings(max_tokens=len(words), temperature=0.0)
    grammar = Grammar(jnp.zeros((1, model.config.language.vocab_size), jnp.int16), jnp.full((1, 1), -1))
    assert count_text_slots(settings, grammar) <= 16  # the room that ``caches`` leaves
    write = jax.jit(functools.partial(write_text, (model.config, COMPUTE), settings, (tokens[0].item(), closing)))
    rows = np.zeros(1, np.int32), np.ones(1, bool), jax.random.split(jax.random.key(0), 1)
    _, written = write(model.params["model"], grammar, caches[""], rows)
    assert int(written.count[0]) == len(words)
    np.testing.assert_array_equal(written.tokens[0, : len(words)], words)


def test_fixed_position_tables(golden):
    config, width = golden.config, golden.config.language.hidden_size
    sides = {"vit_pos_embed": config.vision.max_side, "latent_pos_embed": config.max_latent_size}
    for name, side in sides.items():
        np.testing.assert_allclose(sincos_table(side, width), golden.weights[f"{name}.pos_embed"], atol=1e-6)

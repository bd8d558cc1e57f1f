"""Training and sampling agree: a sampled trajectory, laid out as one training document, gives the same numbers.

The document holds every image as training does: noised, clean, ViT. The logits at each closing token, from a context
that grew token by token, must be those at the same token of the document. The first step of each denoising must be the
velocity at its noised copy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.config import ComputeConfig
from pdgen.flow.denoise import Contexts, Denoiser, ImageSettings, generate_latents
from pdgen.models import bagel
from pdgen.sample.image import encode_latents, prepare_images
from pdgen.sequence import layout
from pdgen.sequence.images import encode_png, from_pixels, image_sizes, position_ids, resize_size
from pdgen.sequence.layout import Budgets, LatentSegment, TextSegment, VitSegment
from pdgen.sequence.segments import record_segments
from pdgen.sequence.trajectory import Image, Record, Text

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
COMPUTE = ComputeConfig()


class Document(NamedTuple):
    """A trajectory after a forward pass in training's layout.

    Attributes:
      logits: at the closing token of every segment, an image's ViT copy.
      velocities: of every image's noised copy at t = 1, and the noise that it carries.
    """

    logits: list[np.ndarray]
    velocities: list[np.ndarray]
    noise: list[np.ndarray]


encode_pack = jax.jit(bagel.encode_pack, static_argnums=(0, 1))
latents_of = jax.jit(encode_latents, static_argnums=0)
denoise = jax.jit(generate_latents, static_argnums=0)


def document_segments(sampler, history, rng):
    """Return, for every segment of a trajectory, its copies in a training document."""
    config = sampler.model.config
    for segment in history:
        if segment.kind != "image":
            yield [TextSegment(segment.ids)]
            continue
        pictures = segment.image
        grid = tuple(side // config.latent_stride for side in pictures.pixels.shape[1:3])
        latents = np.asarray(latents_of(config, sampler.model.params, pictures))[0]
        noise = rng.standard_normal(latents.shape, np.float32)
        ids = position_ids(grid, config.max_latent_size)
        width, height = resize_size(*pictures.pixels.shape[2:0:-1], image_sizes(config).vit)
        seen = (height // config.vision.patch_size, width // config.vision.patch_size)
        yield [
            LatentSegment(noise, ids, noised=True),
            LatentSegment(latents, ids),
            VitSegment(pictures.patches[0], position_ids(seen, config.vision.max_side)),
        ]


@pytest.fixture(scope="module")
def documents(sampler, histories):
    """Every recorded trajectory as a document, one pack each, all of one size."""
    rng = np.random.default_rng(0)
    groups = [list(document_segments(sampler, history, rng)) for history in histories]
    layouts = [
        layout.lay_out([s for g in group for s in g], sampler.model.tokenizer, sampler.model.config) for group in groups
    ]
    budgets = Budgets(*np.max([one.lengths for one in layouts], axis=0).tolist())
    packs = layout.stack([layout.assemble([one], budgets, row) for row, one in enumerate(layouts)])
    t = jnp.asarray(packs.vae_image >= 0, jnp.float32)
    model = sampler.model.params["model"]
    und, gen = encode_pack(sampler.model.config, COMPUTE, model, packs, packs.vae_latents, t)
    logits, velocities = (np.asarray(f(model, x)) for f, x in ((bagel.logits, und), (bagel.velocity, gen)))
    result = []
    for n, group in enumerate(groups):
        closings = np.cumsum([sum(_text_tokens(s) for s in copies) for copies in group]) - 1
        images = range(packs.vae_image[n].max() + 1)
        own = [packs.vae_image[n] == image for image in images]
        noise = [packs.vae_latents[n][rows] for rows in own]
        result.append(Document(list(logits[n, closings]), [velocities[n][rows] for rows in own], noise))
    return result


def _text_tokens(segment):
    return len(segment.ids) + 2 if isinstance(segment, TextSegment) else 2


def test_logits_after_every_segment_equal_training_s(histories, documents):
    for history, document in zip(histories, documents):
        for segment, expected in zip(history[1:], document.logits[1:], strict=True):
            np.testing.assert_allclose(segment.logits, expected, atol=TOLERANCE, err_msg=segment.kind)


def test_the_first_step_of_an_image_equals_training_s_velocity(sampler, recorded, histories, documents):
    """Two timesteps are one Euler step from t = 1 to 0: latents = noise - velocity."""
    settings = ImageSettings(num_timesteps=2, text_scale=1.0)
    switches = (sampler.model.tokenizer.vision_start, sampler.model.tokenizer.vision_end)
    denoiser = Denoiser(sampler.model.config, COMPUTE, settings, switches)
    drawn = [0] * len(histories)
    for draw in recorded.recorder.named("draw"):
        state = draw.state
        grid = draw.static[1].latents
        noise = np.zeros((len(state.logits), *documents[0].noise[0].shape), np.float32)
        for _, slot in draw.rows:
            noise[slot] = documents[slot].noise[drawn[slot]]
        positions = np.tile(position_ids(grid, sampler.model.config.max_latent_size), (len(noise), 1))
        contexts = Contexts(state.full, state.view_length, state.view_rotary, None, np.zeros(len(noise), bool))
        latents = np.asarray(denoise(denoiser, sampler.model.params["model"], contexts, noise, positions))
        for _, slot in draw.rows:
            velocity = documents[slot].velocities[drawn[slot]]
            np.testing.assert_allclose(noise[slot] - latents[slot], velocity, atol=TOLERANCE)
            drawn[slot] += 1
    assert drawn == [len(document.velocities) for document in documents] and min(drawn) >= 1


def test_pictures_are_prepared_as_in_training(sampler, recorded):
    """ViT patches come from the same resize (here 32 to 30 pixels), and pixels from the same PNG."""
    picture = recorded.drawn[0].images[0]
    config = sampler.model.config
    shape = (2, 2, config.autoencoder.z_channels)  # latents are not compared
    zeros = np.zeros(shape, np.float16).tobytes()
    image = Image("sketch", encode_png(picture), False, zeros, zeros, shape)
    record = Record(id="x", source="test", complete=False, segments=[Text("prompt", "a", False), image])
    vit = next(s for s in record_segments(record, sampler.model.tokenizer, config) if isinstance(s, VitSegment))
    np.testing.assert_array_equal(prepare_images(config, [picture]).patches[0], vit.patches)
    np.testing.assert_array_equal(
        prepare_images(config, [picture]).pixels[0], np.asarray(picture) / np.float32(127.5) - 1
    )


def test_the_context_reads_the_saved_picture(recorded):
    drawn = [0] * len(recorded.drawn)
    for call in recorded.recorder.named("read_image"):
        for place, slot in call.rows:
            saved = recorded.drawn[slot].images[drawn[slot]]
            np.testing.assert_array_equal(np.asarray(from_pixels(call.given[-1].pixels[place])), np.asarray(saved))
            drawn[slot] += 1
    assert drawn == [len(one.images) for one in recorded.drawn]

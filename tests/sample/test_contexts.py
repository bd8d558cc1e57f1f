"""The contexts of the base model's modes, against the PyTorch reference on the same weights.

The reference reads the words and pictures of a context from scratch: lengths, rotary positions, keys and values and
the logits after the last token must be the same, and so must the image that is drawn from them.
"""

import dataclasses
import json
import types
import zlib
from typing import NamedTuple

import jax
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from pdgen.flow.denoise import ImageSettings
from pdgen.sample.kernels import State
from pdgen.sample.rows import BatchRow
from pdgen.sample.settings import THINK
from tests.golden.conftest import check
from tests.sample.conftest import NANO, SETTINGS, recording
from tests.torch_reference import sampling
from tests.torch_reference.autoencoder import Autoencoder
from tests.torch_reference.bagel import Bagel

pytestmark = pytest.mark.slow

# The system text exceeds one piece of reading; one Euler step, guided by texts and images.
ASKED = dataclasses.replace(SETTINGS, system=THINK, image=ImageSettings(num_timesteps=2))
SEED = 2  # with this seed both rows in which the model writes produce text
THOUGHT = "A cat, from afar."
SQUARE, WIDE = (32, 32), (40, 24)
# A given image's (width, height), and those at which it is read: multiples of 4 up to 32, multiples of 6 up to 48.
READ_AT = {SQUARE: {"vae": (32, 32), "vit": (30, 30)}, WIDE: {"vae": (32, 20), "vit": (42, 24)}}
# Each row's mode, its given images, and the source of its thought.
ROWS = {
    "understands": ("understand", [SQUARE, WIDE], None),
    "edits": ("edit", [WIDE, SQUARE], None),
    "thinks": ("think", [SQUARE], "model"),
    "gets a thought": ("think", [SQUARE], "outside"),
    "had thought": ("think", [], "history"),
}
SLOT = {name: slot for slot, name in enumerate(ROWS)}
DRAWN = ("edits", "thinks", "gets a thought")


class PosteriorAutoencoder(Autoencoder):
    """An autoencoder that encodes to a posterior sample; a digest of the pixels is the key of its noise [h, w, z]."""

    def encode(self, images):
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        key = jax.random.key(zlib.crc32(images[0].permute(1, 2, 0).numpy().tobytes()))
        noise = np.array(jax.random.normal(key, [mean.shape[axis] for axis in (2, 3, 1)]))
        return self.scale * (mean + (0.5 * logvar).exp() * torch.from_numpy(noise).permute(2, 0, 1) - self.shift)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference(sampler):
    files = [json.loads((NANO / f"{name}.json").read_text()) for name in ("config", "llm_config", "vit_config")]
    model, autoencoder = Bagel(*files), PosteriorAutoencoder(files[0]["vae_config"])
    model.load_state_dict(load_file(NANO / "ema.safetensors"))
    autoencoder.load_state_dict(load_file(NANO / "ae.safetensors"))
    tokens = sampler.model.tokenizer
    switches = sampling.Switches(tokens.im_start, tokens.im_end, tokens.vision_start, tokens.vision_end)
    return sampling.Sampler(model, autoencoder, switches)


class Sampled(NamedTuple):
    """States after the prompts and after the next texts, the rows at that point, (latents, velocity) if drawn."""

    prompted: State
    written: State
    rows: list[BatchRow]
    drawn: dict[str, tuple[np.ndarray, np.ndarray]]


def given_image(size):
    pixels = np.random.default_rng(size[0]).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.fixture(scope="module")
def sampled(sampler):
    """All rows in one batch, two at a time."""
    starts = []
    for name, (mode, sizes, thought) in ROWS.items():
        settings = dataclasses.replace(ASKED, mode=mode)
        start = sampler.make_starts([f"{name} a cat"], [SEED], settings, [[given_image(size) for size in sizes]])[0]
        starts.append(start.branch(0, plan=THOUGHT) if thought == "history" else start)
    batch = sampler.make_batch(starts, ASKED)
    batch.settle()
    prompted = jax.tree.map(np.array, batch.state)
    batch.write_texts([SLOT["understands"], SLOT["thinks"]])
    batch.add_texts({SLOT["gets a thought"]: THOUGHT})
    batch.settle()
    written, rows = jax.tree.map(np.array, batch.state), [row.copy(row.seed) for row in batch.rows.values()]
    with recording(sampler) as recorder:
        batch.draw_images([SLOT[name] for name in DRAWN])
    steps = [(slot, call.result, place) for call in recorder.named("draw") for place, slot in call.rows]
    drawn = {list(ROWS)[slot]: (step.x[place], step.v[place]) for slot, step, place in steps}
    return Sampled(prompted, written, rows, drawn)


def read(sampler, reference, row, *parts):
    """Return the reference's cache of parts of a row, and its logits after the last text; "looks" are ViT-only images.

    A thought or an answer is the last text of its row.
    """
    cache, logits, tokens = sampling.Cache(), None, sampler.model.tokenizer
    for part in parts:
        if part in ("images", "looks"):
            for image in row.images:
                if part == "images":
                    cache = reference.add_vae_image(cache, pixels(image, "vae"))
                cache = reference.add_vit_image(cache, pixels(image, "vit"))
        else:
            text = {"system": THINK, "prompt": row.start.prompt}.get(part)
            ids = tokens.encode(text) if text else row.stages[-1].ids or tokens.encode(row.stages[-1].text)
            assert ids, part
            hidden, cache = reference.feed(cache, [tokens.im_start, *ids, tokens.im_end])
            logits = reference.model.language_model.lm_head(hidden[-1])
    return cache, logits


def pixels(image, kind):
    """[3, H, W] in [-1, 1]."""
    image = image.resize(READ_AT[image.size][kind], PIL.Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image, np.float32) / np.float32(127.5) - 1).permute(2, 0, 1)


def check_cache(cache, name, expected):
    slot = SLOT[name]
    assert (cache.length[slot], cache.rotary[slot]) == (expected.length, expected.position)
    for side, values in enumerate((cache.k, cache.v)):
        layers = torch.stack([layer[side] for layer in expected.layers])
        check(f"{name}: {'kv'[side]}", values[:, slot, : expected.length], layers)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("understands", ["system", "looks", "prompt"]),
        ("understands", ["system", "looks", "prompt", "answer"]),
        ("edits", ["system", "images", "prompt"]),
        ("thinks", ["system", "images", "prompt"]),
        ("thinks", ["system", "images", "prompt", "thought"]),
        ("gets a thought", ["system", "images", "prompt", "thought"]),
        ("had thought", ["system", "prompt", "thought"]),
    ],
)
def test_the_context_and_what_follows_it(sampler, reference, sampled, name, parts):
    state = sampled.prompted if parts[-1] == "prompt" else sampled.written
    expected, logits = read(sampler, reference, sampled.rows[SLOT[name]], *parts)
    check_cache(state.full, name, expected)
    check(f"{name}: logits", state.logits[SLOT[name]], logits)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "understands"])
def test_what_guidance_sees(sampler, reference, sampled, name):
    """Image guidance sees all texts but a thought; text guidance all up to the last image, or the system text."""
    state, row = sampled.written, sampled.rows[SLOT[name]]
    check_cache(state.texts, name, read(sampler, reference, row, "system", "prompt")[0])
    full = state.full
    view = types.SimpleNamespace(k=full.k, v=full.v, length=state.view_length, rotary=state.view_rotary)
    check_cache(view, name, read(sampler, reference, row, "system", "images")[0])


@pytest.mark.parametrize("name", DRAWN)
def test_the_image_drawn_from_the_contexts(sampler, reference, sampled, name):
    """One Euler step from t = 1 to 0: noise = latents + velocity."""
    row, (latents, velocity) = sampled.rows[SLOT[name]], sampled.drawn[name]
    full = ["system", "images", "prompt", *(["thought"] if row.mode == "think" else [])]
    caches = [read(sampler, reference, row, *parts)[0] for parts in (full, full[:2], ["system", "prompt"])]
    image = ASKED.image
    settings = sampling.ImageSettings(2, image.timestep_shift, image.text_scale, image.image_scale, image.interval)
    branches = [sampling.Branch(reference, cache, (8, 8), use_taylorseer=False) for cache in caches]
    check(name, latents, sampling.draw_image(branches, torch.from_numpy(latents + velocity), settings))

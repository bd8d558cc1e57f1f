"""Room for the contexts of trajectories, computed before anything is compiled."""

import bisect
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pdgen.sample.image import make_grid, make_picture_grid
from pdgen.sample.model import Model
from pdgen.sample.settings import SampleError, SampleSettings
from pdgen.sample.text import count_text_slots
from pdgen.sequence.modes import Mode
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory
from pdgen.sharding import read_available_bytes


def compute_capacity(model: Model, settings: SampleSettings, starts: Sequence[Trajectory]) -> tuple[int, int]:
    """Compute the tokens of the longest context, with images and (for image guidance; else 0) without.

    Both are whole tiles of attention, so that no row's arithmetic depends on the length of another.
    """
    tile = model.compute.block_k
    both = [_count_tokens(model, settings, start) for start in starts]
    full, texts = (-(-max(n) // tile) * tile for n in zip(*both, strict=True))
    return full, texts if any(_may_be_guided(settings, start) for start in starts) else 0


def _may_be_guided(settings: SampleSettings, start: Trajectory) -> bool:
    """Tell whether an image may be drawn under image guidance, after another image."""
    styles = [settings.image, *filter(None, [settings.refine])]
    left = settings.count_images_left(start.mode, start.kinds.count("image"))
    has_earlier_image = left > 0 and len(start.images) + left > 1
    return has_earlier_image and any(min(style.text_scale, style.image_scale) > 1 for style in styles)


def count_texts_left(mode: Mode, last: str, images: int) -> int:
    """Return the maximum of texts that a trajectory may still write.

    In mode "process" every image but the last may be inspected, found faulty and its plan rewritten: two texts an
    image. The last image may be inspected too.

    Args:
      last: kind of the last segment, the prompt included.
      images: that it may still draw.
    """
    if mode != "process":
        return int(last == "prompt" and mode in ("think", "understand"))
    if last == "image":
        return 2 * images + 1
    if last == "plan":
        return max(0, 2 * images - 1)
    return max(int(last == "prompt"), 2 * images)


def _count_tokens(model: Model, settings: SampleSettings, start: Trajectory) -> tuple[int, int]:
    """Count the tokens of one trajectory at its longest, with and without images."""
    text, tokenizer, config = count_text_slots(settings.text, model.grammar), model.tokenizer, model.config
    texts = settings.max_prompt_tokens + 2
    system = settings.find_system(config, start.mode)
    texts += len(tokenizer.encode(system)) + 2 if system else 0
    images = 0
    for stage in start.stages:
        if isinstance(stage, TextStage):
            # A text counts as the longest one, so a trajectory needs the same room at every stage.
            texts += max(text, len(tokenizer.encode(stage.text)) + 2, len(stage.ids) + 2)
    for stage, image in zip([s for s in start.stages if isinstance(s, ImageStage)], start.images, strict=True):
        grid = make_picture_grid(config, image, stage.stage == "given", vit_only=start.mode == "understand")
        images += grid.cache_tokens
    left = settings.count_images_left(start.mode, start.kinds.count("image"))
    texts += count_texts_left(start.mode, start.kinds[-1], left) * text
    drawn = make_grid(config, settings.height, settings.width)
    return texts + images + left * drawn.cache_tokens, texts


def check_memory(model: Model, settings: SampleSettings, starts: Sequence[Trajectory], slots: int) -> tuple[int, int]:
    """Return ``compute_capacity`` if ``slots`` rows, and a group of them in work, fit into the free memory.

    Raises:
      SampleError: they do not fit; the message names a number of images that would.
    """
    needed, free = count_context_bytes(model, settings, starts, slots), measure_free_bytes(model)
    tokens, _ = capacity = compute_capacity(model, settings, starts)
    if needed <= free:
        return capacity

    def count_bytes(images: int) -> int:
        return count_context_bytes(model, dataclasses.replace(settings, max_images=images), starts, slots)

    # Only mode "process" draws more than one image. The need grows with max_images.
    process = any(start.mode == "process" for start in starts)
    fitting = bisect.bisect_right(range(1, settings.max_images), free, key=count_bytes) if process else 0
    remedy = f"max_images={fitting} would fit" if fitting else "lower max_tokens or the image size"
    raise SampleError(
        f"no room: the contexts of {slots} trajectories at a time of up to {tokens:,} tokens need {needed:,} bytes, a "
        f"device has {free:,} free; {remedy}, or lower batch_size"
    )


def count_context_bytes(model: Model, settings: SampleSettings, starts: Sequence[Trajectory], slots: int) -> int:
    """Count the bytes of one device's part of all contexts, which are split by row and by key/value head."""
    devices, tokens = model.mesh.size if model.mesh else 1, sum(compute_capacity(model, settings, starts))
    return (slots + settings.batch_size) * tokens * count_token_bytes(model) // devices


def count_token_bytes(model: Model) -> int:
    """Count the bytes of the keys and values of one token."""
    language, itemsize = model.config.language, jnp.dtype(model.compute.dtype).itemsize
    return 2 * language.num_layers * language.num_kv_heads * language.head_dim * itemsize


def measure_free_bytes(model: Model) -> int:
    """Return the bytes that are free on each of this process's devices; CPU devices share the machine's memory."""
    devices = model.mesh.local_devices if model.mesh else jax.local_devices()[:1]
    stats = [device.memory_stats() for device in devices]
    known = [one["bytes_limit"] - one["bytes_in_use"] for one in stats if one is not None]
    return min(known) if len(known) == len(devices) else read_available_bytes() // len(devices)

"""How much room the contexts of trajectories need, worked out before anything is compiled."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from pdgen.sample.image import grid_of, image_grid
from pdgen.sample.settings import SampleError, SampleSettings
from pdgen.sample.text import room
from pdgen.sequence.modes import Mode
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory

if TYPE_CHECKING:
    from pdgen.sample.engine import Sampler


def capacity(sampler: "Sampler", settings: SampleSettings, starts: Sequence[Trajectory]) -> tuple[int, int]:
    """Tokens that the longest context may come to, with and (for image guidance; else 0) without images.

    Both are whole tiles of attention, so that no row's arithmetic depends on how long another may become.
    """
    tile = sampler.compute.block_k
    both = [_tokens(sampler, settings, start) for start in starts]
    full, texts = (-(-max(n) // tile) * tile for n in zip(*both, strict=True))
    return full, texts if any(_guided(settings, start) for start in starts) else 0


def _guided(settings: SampleSettings, start: Trajectory) -> bool:
    """Whether an image may be drawn under image guidance, with another image before it."""
    styles = [settings.image, *filter(None, [settings.refine])]
    left = settings.images_left(start.mode, start.kinds.count("image"))
    later = left > 0 and len(start.images) + left > 1
    return later and any(min(style.text_scale, style.image_scale) > 1 for style in styles)


def texts_left(mode: Mode, last: str, images: int) -> int:
    """Texts that a trajectory may still write, at most.

    In mode "process" that is where every image but the last is inspected and found faulty and its plan rewritten, two
    texts an image, and the last one is followed by a text too.

    Args:
      last: kind of the segment that stands last, the prompt included.
      images: that it may still draw.
    """
    if mode != "process":
        return int(last == "prompt" and mode in ("think", "understand"))
    if last == "image":
        return 2 * images + 1
    if last == "plan":
        return max(0, 2 * images - 1)
    return max(int(last == "prompt"), 2 * images)


def _tokens(sampler: "Sampler", settings: SampleSettings, start: Trajectory) -> tuple[int, int]:
    """Tokens of one trajectory at its longest, with and without images."""
    text, tokenizer = room(settings.text, sampler.grammar), sampler.tokenizer
    texts = settings.max_prompt_tokens + 2
    texts += len(tokenizer.encode(settings.system)) + 2 if settings.system else 0
    images = 0
    for stage in start.stages:
        if isinstance(stage, TextStage):
            texts += max(text, len(tokenizer.encode(stage.text)) + 2, len(stage.ids) + 2)
    for stage, image in zip([s for s in start.stages if isinstance(s, ImageStage)], start.images, strict=True):
        images += grid_of(sampler.config, image, stage.stage == "given", start.mode == "understand").cache_tokens
    left = settings.images_left(start.mode, start.kinds.count("image"))
    texts += texts_left(start.mode, start.kinds[-1], left) * text
    side = sampler.config.latent_stride * sampler.config.max_latent_size
    height, width = settings.height or side, settings.width or side
    return texts + images + left * image_grid(sampler.config, height, width).cache_tokens, texts


def check_memory(
    sampler: "Sampler", settings: SampleSettings, starts: Sequence[Trajectory], slots: int
) -> tuple[int, int]:
    """``capacity``, after comparing what ``slots`` rows and a group of them being worked on need with what is free.

    Raises:
      SampleError: there is too little; it says how many images a trajectory could have.
    """
    needed, free = _bytes(sampler, settings, starts, slots), _free(sampler)
    if needed <= free:
        return capacity(sampler, settings, starts)
    fitting = 0
    if any(start.mode == "process" for start in starts):
        most = settings.max_images
        while fitting + 1 < most:  # bisection: the need grows with max_images
            middle = (fitting + most) // 2
            smaller = SampleSettings(**{**vars(settings), "max_images": middle})
            fitting, most = (middle, most) if _bytes(sampler, smaller, starts, slots) <= free else (fitting, middle)
    remedy = f"max_images={fitting} would fit" if fitting else "lower max_tokens or the image size"
    raise SampleError(
        f"no room: the contexts of {slots} trajectories at a time of up to "
        f"{capacity(sampler, settings, starts)[0]:,} tokens need {needed:,} bytes, a device has "
        f"{free:,} free; {remedy}, or lower together"
    )


def _bytes(sampler: "Sampler", settings: SampleSettings, starts: Sequence[Trajectory], slots: int) -> int:
    """Bytes of a device's part of all contexts: those of its rows, of its key/value heads."""
    language, itemsize = sampler.config.language, jnp.dtype(sampler.compute.dtype).itemsize
    token = 2 * language.num_layers * language.num_kv_heads * language.head_dim * itemsize
    devices = sampler.mesh.size if sampler.mesh else 1
    return (slots + settings.together) * sum(capacity(sampler, settings, starts)) * token // devices


def _free(sampler: "Sampler") -> int:
    """Bytes free on each of this process's devices; those of a CPU share its memory."""
    devices = sampler.mesh.local_devices if sampler.mesh else jax.local_devices()[:1]
    stats: list[dict[str, Any] | None] = [device.memory_stats() for device in devices]
    if None in stats:  # a CPU
        return _available() // len(devices)
    return min(one["bytes_limit"] - one["bytes_in_use"] for one in stats)


def _available(meminfo: pathlib.Path = pathlib.Path("/proc/meminfo")) -> int:
    """Bytes of memory that processes may still take; where the system does not tell, all that it has."""
    if found := re.search(r"MemAvailable: *(\d+) kB", meminfo.read_text() if meminfo.exists() else ""):
        return 1024 * int(found[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

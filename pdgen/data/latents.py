"""Latent moments of records: each distinct picture is encoded once, before training, in compiled batches by size."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import PIL.Image
from flax import traverse_util
from jaxtyping import Float32, UInt8

from pdgen.config import AutoencoderConfig
from pdgen.models import autoencoder
from pdgen.sequence.images import SizeRule, decode_image, encode_png, resize
from pdgen.sequence.trajectory import Image, Record, Text

Moments = tuple[Float32[np.ndarray, "n h w z"], Float32[np.ndarray, "n h w z"]]
Encode = Callable[[UInt8[np.ndarray, "n height width 3"]], Moments]

BATCH_SIZE = 64
# One picture of 1,024 x 1,024, for which FLUX's autoencoder needs about 3 GB of activations.
BATCH_PIXELS = 2**20


class LatentError(ValueError):
    """Pictures that cannot be encoded. The message is one line that names the record or the remedy."""


def fingerprint_autoencoder(params: Mapping[str, Any]) -> str:
    """Compute SHA-256 over path, shape and float32 values of all weights. Latents fit a model with the same digest."""
    digest = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(dict(params), sep="/").items()):
        digest.update(f"{path}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()


def make_encoder(config: AutoencoderConfig, params: Mapping[str, Any], batch_size: int = BATCH_SIZE) -> Encode:
    """Make a function from uint8 RGB pictures of one size to the posterior's mean and log-variance.

    One program is compiled per size, for batches of ``batch_size`` pictures or of ``BATCH_PIXELS`` pixels, whichever is
    smaller. The last batch is padded, so that a picture's moments do not depend on the number of pictures. Moments are
    float32, before scale and shift.
    """
    on_device = jax.device_put(params)

    # Otherwise a GPU may choose other algorithms in the next process, and a resumed run would differ in the last bits.
    @functools.partial(jax.jit, compiler_options={"xla_gpu_deterministic_ops": True})
    def moments(params: Mapping[str, Any], pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        return autoencoder.encode(config, params, pictures.astype(jnp.float32) / 127.5 - 1)

    def encode(pictures: UInt8[np.ndarray, "n height width 3"]) -> Moments:
        _, height, width, _ = pictures.shape
        size = max(1, min(batch_size, BATCH_PIXELS // (height * width)))
        batches = []
        for start in range(0, len(pictures), size):
            batch = pictures[start : start + size]
            filled = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
            batches.append([np.asarray(m)[: len(batch)] for m in moments(on_device, filled)])
        means, logvars = zip(*batches)
        return np.concatenate(means), np.concatenate(logvars)

    return encode


def add_latents(records: Sequence[Record], encode: Encode, rule: SizeRule | None = None) -> list[Record]:
    """Add float16 latent moments to every image of the records. Equal pictures are encoded once.

    Records of mode "understand" are unchanged, because only the ViT reads their pictures.

    Args:
      records: the records; existing latents are replaced.
      encode: see ``make_encoder``; called once per size, with all distinct pictures of that size.
      rule: if given, pictures are resized to this rule, also in the records.

    Raises:
      ImageError: a picture cannot be read; the message names the record and the segment.
      LatentError: a moment is not finite in float16.
    """
    names = {
        segment.png: f"record {record.id}: segment {number}"
        for record in records
        for number, segment in enumerate(record.segments)
        if isinstance(segment, Image) and record.mode != "understand"
    }

    def fit(png: bytes) -> tuple[bytes, PIL.Image.Image]:
        picture = decode_image(png, names[png])
        fitted = picture if rule is None else resize(picture, rule)
        return (png if fitted is picture else encode_png(fitted)), fitted

    with ThreadPoolExecutor() as threads:
        pictures = dict(zip(names, threads.map(fit, names)))
    changes: dict[bytes, dict[str, Any]] = {}
    for size in sorted({picture.size for _, picture in pictures.values()}):
        pngs = [png for png, (_, picture) in pictures.items() if picture.size == size]
        batch = np.stack([np.asarray(pictures[png][1]) for png in pngs])
        for png, mean, logvar in zip(pngs, *_to_float16(encode(batch)), strict=True):
            shape = {"latent_mean": mean.tobytes(), "latent_logvar": logvar.tobytes(), "latent_shape": mean.shape}
            changes[png] = {"png": pictures[png][0], **shape}

    def fill(segment: Text | Image) -> Text | Image:
        return segment if isinstance(segment, Text) else msgspec.structs.replace(segment, **changes[segment.png])

    return [
        r if r.mode == "understand" else msgspec.structs.replace(r, segments=[fill(s) for s in r.segments])
        for r in records
    ]


def _to_float16(moments: Moments) -> list[np.ndarray]:
    with np.errstate(over="ignore"):  # an overflow is an error below
        stored = [np.asarray(moment).astype(np.float16) for moment in moments]
    if not all(np.isfinite(moment).all() for moment in stored):
        raise LatentError("a latent moment is not finite in float16; the autoencoder's weights are not usable")
    return stored

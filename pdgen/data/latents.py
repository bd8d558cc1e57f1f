"""Latent moments of records: every picture encoded once, ahead of training, in compiled batches."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import PIL.Image
from flax import traverse_util

from pdgen.config import AutoencoderConfig
from pdgen.interleave.trajectory import Image, Record, Text
from pdgen.models import autoencoder

Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def autoencoder_fingerprint(params: Mapping[str, Any]) -> str:
    """SHA-256 over every weight's path, shape and float32 values: latents suit the model if it is equal."""
    digest = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(dict(params), sep="/").items()):
        digest.update(f"{path}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()


def batched_encoder(config: AutoencoderConfig, params: Mapping[str, Any], batch_size: int = 64) -> Encode:
    """A function from uint8 RGB [n, height, width, 3] to the posterior's mean and log-variance [n, h, w, z].

    Pictures go through one compiled program in batches of ``batch_size``; the last is filled up, so that a
    picture's moments do not depend on how many came with it. Moments are float32, before scale and shift.
    """

    @jax.jit
    def moments(params: Mapping[str, Any], pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        return autoencoder.encode(config, params, pictures.astype(jnp.float32) / 127.5 - 1)

    def encode(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batches = []
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            filled = np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)))
            batches.append([np.asarray(m)[: len(batch)] for m in moments(params, filled)])
        means, logvars = zip(*batches)
        return np.concatenate(means), np.concatenate(logvars)

    return encode


def add_latents(records: Sequence[Record], encode: Encode) -> list[Record]:
    """The records with every image's latent moments, as float16; equal pictures are encoded once.

    Args:
      records: their pictures have one common size.
      encode: as ``batched_encoder`` makes it; called once with all distinct pictures.

    Raises:
      ValueError: the pictures differ in size, or a moment is not finite in float16.
    """
    pngs = list(dict.fromkeys(s.png for r in records for s in r.segments if isinstance(s, Image)))
    if not pngs:
        return list(records)
    pictures = [np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs]
    if len({p.shape for p in pictures}) > 1:
        raise ValueError(f"pictures of sizes {sorted({p.shape[:2] for p in pictures})} cannot share a batch")
    with np.errstate(over="ignore"):  # what overflows is refused below
        mean, logvar = (np.asarray(moment).astype(np.float16) for moment in encode(np.stack(pictures)))
    if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
        raise ValueError("a latent moment is not finite in float16; the autoencoder's weights are not usable")
    moments = {
        png: {"latent_mean": m.tobytes(), "latent_logvar": v.tobytes(), "latent_shape": m.shape}
        for png, m, v in zip(pngs, mean, logvar, strict=True)
    }

    def filled(segment: Text | Image) -> Text | Image:
        if isinstance(segment, Text):
            return segment
        return msgspec.structs.replace(segment, **moments[segment.png])

    return [msgspec.structs.replace(r, segments=[filled(s) for s in r.segments]) for r in records]

"""What a run of the sampler needs, before any weight is read: memory, bytes that a step reads, seconds.

Sizes follow from the checkpoint's shapes. Two short measurements on the device, of a copy and of a product, give the
time: a step takes as long as reading its bytes or computing its products, whichever is longer.
"""

import dataclasses
import math
import timeit
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import traverse_util

from pdgen.checkpoints.load import make_shardings
from pdgen.flow.denoise import count_evaluations
from pdgen.models.linear import is_int8
from pdgen.sample import capacity
from pdgen.sample.image import make_grid
from pdgen.sample.model import Model
from pdgen.sample.settings import SampleSettings
from pdgen.sequence.trajectory import Trajectory

_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a device does in a second: bytes that it reads or writes, and floating-point operations of a product."""

    bytes: float
    flops: float

    def seconds(self, nbytes: float, flops: float) -> float:
        """Return the seconds for reading ``nbytes`` while computing ``flops``."""
        return max(nbytes / self.bytes, flops / self.flops)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run needs on each device; texts and images at their largest numbers and sizes.

    Attributes:
      weights: bytes of the parameters.
      contexts: bytes of keys and values.
      free: bytes that are free now.
      slots, tokens: trajectories that have a context at a time, and the tokens of a context.
      token_bytes, token_seconds: a step that writes a token in every row of a batch.
      step_bytes, step_seconds: a step that draws an image in every row of a batch, on average.
      image_steps, images, text_tokens: steps of an image, and images and tokens of texts of a trajectory.
      batches: batches of trajectories, one after the other.
    """

    weights: int
    contexts: int
    free: int
    slots: int
    tokens: int
    token_bytes: int
    token_seconds: float
    step_bytes: int
    step_seconds: float
    image_steps: int
    images: int
    text_tokens: int
    batches: int

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, without compiling, the autoencoder and reading images back."""
        image = self.images * self.image_steps * self.step_seconds
        return self.batches * (image + self.text_tokens * self.token_seconds)


def measure_speed(dtype: str) -> Speed:
    """Measure the default device for a second or so, with products in ``dtype``."""
    values, side = (2**25, 1024) if jax.default_backend() == "cpu" else (2**28, 8192)
    copied, factor = jnp.zeros(values, jnp.float32), jnp.ones((side, side), dtype)
    copying = _time_best(jax.jit(lambda x: x + 1), copied)
    return Speed(2 * copied.nbytes / copying, 2 * side**3 / _time_best(jax.jit(jnp.matmul), factor, factor))


def _time_best(function: Callable, *args: jax.Array) -> float:
    jax.block_until_ready(function(*args))  # compiles
    return min(timeit.repeat(lambda: jax.block_until_ready(function(*args)), number=1, repeat=_REPEATS))


def estimate_run(
    model: Model, settings: SampleSettings, starts: Sequence[Trajectory], slots: int, speed: Speed
) -> Estimate:
    """Estimate a run of ``starts``, of which ``slots`` have a context at a time, on devices of this ``speed`` each.

    The parameters of ``model`` may be shapes. ``settings`` have the final ``batch_size``.
    """
    devices, rows = model.mesh.size if model.mesh else 1, settings.batch_size
    full, texts = capacity.compute_capacity(model, settings, starts)
    context, language = rows * full * capacity.count_token_bytes(model), model.config.language
    und, gen, head = (_count_weights(model, f"language/{part}/") for part in ("layers/und", "layers/gen", "head"))
    images = max(settings.count_images_left(start.mode, start.kinds.count("image")) for start in starts)
    left = max(capacity.count_texts_left(start.mode, start.kinds[-1], images) for start in starts)

    token_bytes = (und[0] + head[0] + context) // devices
    drawn = math.prod(make_grid(model.config, settings.height, settings.width).latents)
    evaluations = count_evaluations(settings.image, bool(texts))
    steps = evaluations.all - evaluations.guidance
    branches = evaluations.all / steps
    # Both experts run: the switch tokens of an image belong to the understanding one.
    step_bytes = (und[0] + gen[0] + round(branches * context)) // devices
    attention = 4 * language.num_layers * language.num_heads * language.head_dim * drawn * (drawn + full)
    step_flops = rows * branches * (2 * gen[1] * drawn + attention) / devices
    return Estimate(
        weights=_count_resident(model),
        contexts=capacity.count_context_bytes(model, settings, starts, slots),
        free=capacity.measure_free_bytes(model),
        slots=slots,
        tokens=full + texts,
        token_bytes=token_bytes,
        token_seconds=speed.seconds(token_bytes, 2 * rows * (und[1] + head[1]) / devices),
        step_bytes=step_bytes,
        step_seconds=speed.seconds(step_bytes, step_flops),
        image_steps=steps,
        images=images,
        text_tokens=left * settings.text.max_tokens,
        batches=-(-len(starts) // rows),
    )


def _count_weights(model: Model, prefix: str) -> tuple[int, int]:
    """Return bytes and number of the model's parameters whose paths begin with ``prefix``."""
    leaves = traverse_util.flatten_dict(model.params["model"], sep="/")
    sizes = [(math.prod(x.shape), x.dtype.itemsize) for name, x in leaves.items() if name.startswith(prefix)]
    return sum(size * width for size, width in sizes), sum(size for size, _ in sizes)


def _count_resident(model: Model) -> int:
    """Count the bytes of all parameters on one device."""
    leaves = jax.tree.leaves(model.params)
    if model.mesh is None:
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    places = jax.tree.leaves(make_shardings(model.config, model.mesh, is_int8(model.params["model"])))
    return sum(math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize for x, place in zip(leaves, places))


def format_estimate(model: Model, one: Estimate, speed: Speed) -> list[str]:
    """Format an estimate as lines of text."""
    stored = "int8" if is_int8(model.params["model"]) else model.compute.dtype
    room = one.free - one.weights - one.contexts
    verdict = f"{room / 1e9:,.3f} GB left" if room >= 0 else f"{-room / 1e9:,.3f} GB TOO MUCH"
    return [
        f"{model.name}, {stored}, computed in {model.compute.dtype}; bytes are those of one device",
        f"weights        {one.weights / 1e9:,.3f} GB",
        f"contexts       {one.contexts / 1e9:,.3f} GB, {one.slots} of up to {one.tokens:,} tokens",
        f"free           {one.free / 1e9:,.3f} GB: {verdict}, which activations need too",
        f"a text token   reads {one.token_bytes / 1e9:,.3f} GB, {one.token_seconds:.3g} s for a batch",
        f"an image step  reads {one.step_bytes / 1e9:,.3f} GB, {one.step_seconds:.3g} s for a batch",
        f"a trajectory   at most {one.images} images of {one.image_steps} steps and {one.text_tokens:,} tokens of text",
        f"the run        at most {one.seconds:,.1f} s ({one.batches} x a batch), without compiling and the autoencoder",
        f"this device    {speed.bytes / 1e9:,.1f} GB/s and {speed.flops / 1e9:,.0f} GFLOP/s, measured just now",
    ]

"""What a run of the sampler needs, before any weight is read: memory, bytes that a step reads, seconds.

Sizes follow from the checkpoint's shapes. Short measurements on the device, of a copy and of a product, give the time.
A step takes as long as reading its bytes, computing its products or copying layers from host memory, whichever is the
longest.
"""

import dataclasses
import math
import timeit
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from pdgen.checkpoints.load import make_shardings
from pdgen.flow.denoise import count_evaluations
from pdgen.models.linear import is_int8
from pdgen.sample import capacity
from pdgen.sample.image import make_grid
from pdgen.sample.model import Model
from pdgen.sample.settings import SampleSettings
from pdgen.sequence.trajectory import Trajectory
from pdgen.sharding import in_host_memory, read_available_bytes, to_device_memory, to_host_memory

_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a device does in a second.

    Attributes:
      bytes: that it reads or writes.
      flops: floating-point operations of a product.
      bus: bytes that it copies from host memory; infinite where nothing is copied.
    """

    bytes: float
    flops: float
    bus: float = math.inf

    def seconds(self, nbytes: float, flops: float, copied: float) -> float:
        """Return the seconds for reading ``nbytes`` while computing ``flops`` and copying ``copied`` bytes."""
        return max(nbytes / self.bytes, flops / self.flops, copied / self.bus)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run needs on each device; texts and images at their largest numbers and sizes.

    Attributes:
      weights: bytes of the parameters; of those in host memory, two layers.
      host: bytes of the parameters in host memory.
      contexts: bytes of keys and values.
      free: bytes that are free now.
      host_free: bytes of the host's memory that are available now.
      slots, tokens: trajectories that have a context at a time, and the tokens of a context.
      token_bytes, token_seconds: a step that writes a token in every row of a batch.
      step_bytes, step_seconds: a step that draws an image in every row of a batch, on average.
      token_copied, step_copied: bytes that these steps copy from host memory.
      image_steps, images, text_tokens: steps of an image, and images and tokens of texts of a trajectory.
      batches: batches of trajectories, one after the other.
    """

    weights: int
    host: int
    contexts: int
    free: int
    host_free: int
    slots: int
    tokens: int
    token_bytes: int
    token_copied: int
    token_seconds: float
    step_bytes: int
    step_copied: int
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


def measure_speed(dtype: str, bus: bool = False) -> Speed:
    """Measure the default device for a second or so, with products in ``dtype`` and, if ``bus``, copies from the host.

    Raises:
      ShardingError: the device cannot read host memory.
    """
    values, side = (2**25, 1024) if jax.default_backend() == "cpu" else (2**28, 8192)
    copied, factor = jnp.zeros(values, jnp.float32), jnp.ones((side, side), dtype)
    copying = _time_best(jax.jit(lambda x: x + 1), copied)
    speed = Speed(2 * copied.nbytes / copying, 2 * side**3 / _time_best(jax.jit(jnp.matmul), factor, factor))
    if not bus:
        return speed
    host = jax.device_put(copied, to_host_memory(SingleDeviceSharding(jax.local_devices()[0])))
    return dataclasses.replace(speed, bus=copied.nbytes / _time_best(jax.jit(to_device_memory), host))


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

    weights, host = _count_resident(model)
    copied = _count_copied(model, host)
    token_bytes = (und[0] + head[0] + context) // devices
    token_copied = copied if model.offload == "und" else 0
    drawn = math.prod(make_grid(model.config, settings.height, settings.width).latents)
    evaluations = count_evaluations(settings.image, bool(texts))
    steps = evaluations.all - evaluations.guidance
    branches = evaluations.all / steps
    # Both experts run: the switch tokens of an image belong to the understanding one.
    step_bytes = (und[0] + gen[0] + round(branches * context)) // devices
    attention = 4 * language.num_layers * language.num_heads * language.head_dim * drawn * (drawn + full)
    step_flops = rows * branches * (2 * gen[1] * drawn + attention) / devices
    return Estimate(
        weights=weights,
        host=host,
        contexts=capacity.count_context_bytes(model, settings, starts, slots),
        free=capacity.measure_free_bytes(model),
        host_free=read_available_bytes(),
        slots=slots,
        tokens=full + texts,
        token_bytes=token_bytes,
        token_copied=token_copied,
        token_seconds=speed.seconds(token_bytes, 2 * rows * (und[1] + head[1]) / devices, token_copied),
        step_bytes=step_bytes,
        step_copied=copied,
        step_seconds=speed.seconds(step_bytes, step_flops, copied),
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


def _count_resident(model: Model) -> tuple[int, int]:
    """Count the bytes of all parameters on one device, with its buffers for layers, and in its host's memory."""
    device = host = 0
    shardings = make_shardings(model.config, model.mesh, is_int8(model.params["model"]), model.offload)
    for x, sharding in zip(jax.tree.leaves(model.params), jax.tree.leaves(shardings), strict=True):
        nbytes = math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        device, host = (device, host + nbytes) if in_host_memory(sharding) else (device + nbytes, host)
    # One layer computes while the next is copied.
    return device + 2 * host // model.config.language.num_layers, host


def _count_copied(model: Model, host: int) -> int:
    """Count the bytes that one pass over all layers copies of ``host`` bytes in host memory."""
    layers = model.config.language.num_layers
    return host * (layers + 1) // layers  # while the last layer computes, it is copied once more


def format_estimate(model: Model, one: Estimate, speed: Speed) -> list[str]:
    """Format an estimate as lines of text."""
    stored = "int8" if is_int8(model.params["model"]) else model.compute.dtype
    return [
        f"{model.name}, {stored}, computed in {model.compute.dtype}; bytes are those of one device",
        f"weights        {one.weights / 1e9:,.3f} GB"
        + f", and {one.host / 1e9:,.3f} GB in host memory: {_format_room(one.host_free - one.host)}" * bool(one.host),
        f"contexts       {one.contexts / 1e9:,.3f} GB, {one.slots} of up to {one.tokens:,} tokens",
        f"free           {one.free / 1e9:,.3f} GB: {_format_room(one.free - one.weights - one.contexts)}, "
        "which activations need too",
        f"a text token   {_format_step(one.token_bytes, one.token_copied, one.token_seconds)}",
        f"an image step  {_format_step(one.step_bytes, one.step_copied, one.step_seconds)}",
        f"a trajectory   at most {one.images} images of {one.image_steps} steps and {one.text_tokens:,} tokens of text",
        f"the run        at most {one.seconds:,.1f} s ({one.batches} x a batch), without compiling and the autoencoder",
        f"this device    {speed.bytes / 1e9:,.1f} GB/s and {speed.flops / 1e9:,.0f} GFLOP/s"
        + f", {speed.bus / 1e9:,.1f} GB/s from host memory" * bool(one.host)
        + ", measured just now",
    ]


def _format_room(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.3f} GB left" if nbytes >= 0 else f"{-nbytes / 1e9:,.3f} GB TOO MUCH"


def _format_step(read: int, copied: int, seconds: float) -> str:
    copies = f", copies {copied / 1e9:,.3f} GB from host memory" * bool(copied)
    return f"reads {read / 1e9:,.3f} GB{copies}, {seconds:.3g} s for a batch"

"""The compiled functions of sampling. Each takes some rows out of a batch's state, works on them, puts them back.

A group of rows always has the same size, padded with rows that do not exist. So there are few shapes to compile, what
a row computes does not depend on the rows beside it, and rows that wait or have ended cost nothing but their place.

Axis legend: R rows of the state, G rows of a group, N vocabulary, M tokens of a piece of text.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow.denoise import Contexts, Denoiser, ImageSettings, Progress, estimate
from pdgen.models import bagel
from pdgen.models.context import Cache, add_text, empty_cache, put_rows, take_rows
from pdgen.sample import image as images
from pdgen.sample import text as texts
from pdgen.sample.image import ImageGrid, Pictures
from pdgen.sample.text import Grammar, TextSettings
from pdgen.sharding import out_spec, place

# What a segment's key is folded with for each draw; those of a text's tokens count from 0.
_SWITCH_DRAW, _NOISE_DRAW = 2**31, 2**31 + 1

ModelKey = tuple[ModelConfig, ComputeConfig]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What the device holds of a batch.

    Attributes:
      full: the contexts.
      texts: the contexts without images (and without thoughts), for image guidance; None where no row needs it.
      view_length, view_rotary: of ``full`` without the texts since the last image, for text guidance.
      logits: after the last token of each row, a closing token, where they decide what follows.
    """

    full: Cache
    texts: Cache | None
    view_length: Int[Array, " R"]
    view_rotary: Int[Array, " R"]
    logits: Float[Array, "R N"]


class Rows(NamedTuple):
    """A group of rows.

    Attributes:
      index: place in the state; its size for a row that does not exist.
      seed: of the trajectory.
      number: of the segment that comes next. With the seed it makes the key of all that is drawn in the segment.
    """

    index: Int[Array, " G"]
    seed: UInt32[Array, " G"]
    number: UInt32[Array, " G"]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty_state(model: ModelKey, rows: int, capacity: tuple[int, int]) -> State:
    """Contexts that hold nothing, with room for so many tokens in ``full`` and ``texts`` (0: none)."""
    (config, compute), (full, alone) = model, capacity
    make = functools.partial(empty_cache, config, rows, dtype=jnp.dtype(compute.dtype))
    zeros = jnp.zeros((2, rows), jnp.int32)
    logits = jnp.zeros((rows, config.language.vocab_size), jnp.float32)
    return State(make(full), make(alone) if alone else None, zeros[0], zeros[1], logits)


def _keys(rows: Rows, draw: int | None = None) -> Array:
    """The key of each row's next segment, or of one draw within it."""
    fold = lambda key, number: jax.random.fold_in(key, number)  # noqa: E731
    keys = jax.vmap(fold)(jax.vmap(jax.random.key)(rows.seed), rows.number)
    return keys if draw is None else jax.vmap(lambda key: fold(key, draw))(keys)


def _put(values: Array, rows: Rows, new: Array) -> Array:
    return values.at[rows.index].set(new, mode="drop")


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill(
    model: ModelKey,
    context: str,
    params: dict,
    state: State,
    rows: Rows,
    piece: tuple[Int[Array, "G M"], Int[Array, " G"], Bool[Array, " G"]],
) -> State:
    """Adds a piece of finished text to the contexts named ("full" or "texts").

    Args:
      piece: token ids, how many of them count, and whether text guidance keeps what stands up to here.
    """
    ids, count, kept = piece
    cache, hidden = add_text(*model, params["model"], take_rows(getattr(state, context), rows.index), ids, count)
    state = dataclasses.replace(state, **{context: put_rows(getattr(state, context), rows.index, cache)})
    if context == "texts":
        return state
    last = jnp.take_along_axis(place(hidden, None, None, None), jnp.maximum(count - 1, 0)[:, None, None], axis=1)
    logits = place(bagel.logits(params["model"], last)[:, 0], None, None)
    state = dataclasses.replace(state, logits=_put(state.logits, rows, logits))
    return _keep_view(state, rows._replace(index=jnp.where(kept, rows.index, state.logits.shape[0])), cache)


def _keep_view(state: State, rows: Rows, cache: Cache) -> State:
    length, rotary = _put(state.view_length, rows, cache.length), _put(state.view_rotary, rows, cache.rotary)
    return dataclasses.replace(state, view_length=length, view_rotary=rotary)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def write_text(
    model: ModelKey,
    settings: TextSettings,
    switches: tuple[int, int],
    params: dict,
    state: State,
    rows: Rows,
    grammar: tuple[Grammar, Int[Array, " G"]],
) -> tuple[State, texts.Written]:
    """Writes one text in every row; ``grammar``: its tables and each row's start state. See ``text.write_text``."""
    tables, start = grammar
    cache, active = take_rows(state.full, rows.index), rows.index < state.logits.shape[0]
    cache, written = texts.write_text(
        model, settings, switches, params["model"], tables, cache, (start, active, _keys(rows))
    )
    logits = _put(state.logits, rows, written.logits)
    return dataclasses.replace(state, full=put_rows(state.full, rows.index, cache), logits=logits), written


@functools.partial(jax.jit, static_argnums=0)
def pick_switch(
    settings: TextSettings, state: State, rows: Rows, tokens: Int[Array, " S"], allowed: Bool[Array, "G S"]
) -> Int[Array, " G"]:
    """Which of the switch tokens each row draws."""
    logits = state.logits.at[rows.index].get(mode="clip")[:, tokens]
    return texts.pick(settings, jnp.where(allowed, logits, -jnp.inf), _keys(rows, _SWITCH_DRAW))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def draw(
    denoiser: Denoiser,
    grid: ImageGrid,
    steps: tuple[int, int],
    image_guidance: bool,
    params: dict,
    state: State,
    rows: Rows,
    progress: Progress | None,
) -> Progress:
    """A stretch of an image's denoising in every row, from noise where there is no ``progress``; see ``image.draw``."""
    some = lambda values: values.at[rows.index].get(mode="clip")  # noqa: E731
    active = rows.index < state.logits.shape[0]
    full = take_rows(state.full, rows.index)
    image = take_rows(state.texts, rows.index) if image_guidance else None
    contexts = Contexts(full, some(state.view_length), some(state.view_rotary), image, active & image_guidance)
    start = _keys(rows, _NOISE_DRAW) if progress is None else progress
    return images.draw(denoiser, grid, steps, params, contexts, start)


@jax.jit
def regroup(parts: tuple[Progress, ...], index: Int[Array, " G"]) -> Progress:
    """The images ``index`` of all that are in ``parts``, counted through."""

    def some(*values: Array) -> Array:
        whole = (None,) * (values[0].ndim - 1)
        together = jnp.concatenate([place(value, None, *whole) for value in values])
        return together.at[index].get(out_sharding=out_spec("batch", *whole))

    return jax.tree.map(some, *parts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def decode(
    config: ModelConfig, settings: ImageSettings, grid: ImageGrid, step: int, params: dict, progress: Progress
) -> Float[Array, "G H W 3"]:
    """Pixels of the clean image as it is estimated after ``step`` steps."""
    return images.decode(config, grid, params, estimate(settings, progress, step))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def read(
    model: ModelKey,
    grid: ImageGrid,
    switches: tuple[int, int],
    params: dict,
    state: State,
    rows: Rows,
    pictures: Pictures,
) -> State:
    """Adds an image to every row's full context; see ``image.read``."""
    cache, active = take_rows(state.full, rows.index), rows.index < state.logits.shape[0]
    cache, logits = images.read(model, grid, switches, params, cache, pictures, active)
    state = dataclasses.replace(
        state, full=put_rows(state.full, rows.index, cache), logits=_put(state.logits, rows, logits)
    )
    return _keep_view(state, rows, cache)


@functools.partial(jax.jit, donate_argnums=0)
def rewind(state: State, count: Int[Array, " R"]) -> State:
    """Forgets the last ``count`` tokens of text of each row's full context."""
    full = dataclasses.replace(state.full, length=state.full.length - count, rotary=state.full.rotary - count)
    return dataclasses.replace(state, full=full)


@functools.partial(jax.jit, donate_argnums=0)
def clear(state: State, rows: Bool[Array, " R"]) -> State:
    """Rows that hold nothing, for trajectories to come."""
    zero = lambda values: jnp.where(rows, 0, values)  # noqa: E731
    caches = {
        name: cache and dataclasses.replace(cache, length=zero(cache.length), rotary=zero(cache.rotary))
        for name, cache in (("full", state.full), ("texts", state.texts))
    }
    return dataclasses.replace(
        state, **caches, view_length=zero(state.view_length), view_rotary=zero(state.view_rotary)
    )


@jax.jit
def take(state: State, index: Int[Array, " R"]) -> State:
    """The state whose row n is row ``index[n]`` of this one."""
    some = lambda values: values.at[index].get(mode="clip")  # noqa: E731
    caches = (state.full, state.texts)
    full, alone = (cache and take_rows(cache, index) for cache in caches)
    return State(full, alone, some(state.view_length), some(state.view_rotary), some(state.logits))

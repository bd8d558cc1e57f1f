"""The compiled functions of sampling: each takes some rows out of a batch's state, computes, and puts them back.

A group of rows always has the same size, padded with rows that do not exist. So there are few shapes to compile, a
row's numbers do not depend on the rows beside it, and rows that wait or have ended cost memory alone.

Axis legend: R rows of the state, G rows of a group, N vocabulary, M tokens of a piece of text, H and W pixels.
"""

import dataclasses
import functools
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow import denoise
from pdgen.flow.denoise import Contexts, Denoiser, ImageSettings, Progress
from pdgen.models import bagel
from pdgen.models.context import Cache, add_latents, add_text, add_vit, empty_cache, put_rows, take_rows
from pdgen.sample import image, text
from pdgen.sample.image import ImageGrid, PreparedImages
from pdgen.sample.text import Grammar, TextSettings, WrittenTexts
from pdgen.sharding import out_spec, place

# A segment's key is folded with these for its switch and its noise; the tokens of a text count from 0.
_SWITCH_DRAW, _NOISE_DRAW = 2**31, 2**31 + 1

StaticModel = tuple[ModelConfig, ComputeConfig]


@jax.tree_util.register_dataclass
@no_type_check  # a tree's leaves may be anything, such as specs or None
@dataclasses.dataclass(frozen=True)
class State:
    """The device's part of a batch.

    Attributes:
      full: the contexts.
      texts: the contexts without images (and without thoughts), for image guidance; None where no row needs it.
      view_length, view_rotary: of ``full`` without the texts since the last image, for text guidance.
      logits: after the closing token of each row's last segment; they decide which segment follows.
    """

    full: Cache
    texts: Cache | None
    view_length: Int[Array, " R"]
    view_rotary: Int[Array, " R"]
    logits: Float[Array, "R N"]


class RowGroup(NamedTuple):
    """Rows that one compiled function works on.

    Attributes:
      index: row of the state; the number of rows for padding.
      seed: of the trajectory.
      number: of the next segment; with the seed it gives the key of all draws in the segment.
    """

    index: Int[Array | np.ndarray, " G"]
    seed: UInt32[Array | np.ndarray, " G"]
    number: UInt32[Array | np.ndarray, " G"]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def make_empty_state(model: StaticModel, rows: int, capacity: tuple[int, int]) -> State:
    """Make empty contexts with room for ``capacity`` tokens in ``full`` and in ``texts`` (0: no ``texts``)."""
    config, compute = model
    full, texts = capacity
    make = functools.partial(empty_cache, config, rows, dtype=jnp.dtype(compute.dtype))
    zeros = jnp.zeros((2, rows), jnp.int32)
    logits = jnp.zeros((rows, config.language.vocab_size), jnp.float32)
    return State(make(full), make(texts) if texts else None, zeros[0], zeros[1], logits)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill(
    model: StaticModel,
    context: str,
    params: dict,
    state: State,
    rows: RowGroup,
    piece: tuple[Int[Array, "G M"], Int[Array, " G"], Bool[Array, " G"]],
) -> State:
    """Add a piece of finished text to the context "full" or "texts".

    Args:
      piece: token ids, how many of them count, and whether text guidance sees the context up to here.
    """
    ids, count, in_view = piece
    cache, hidden = add_text(*model, params["model"], take_rows(getattr(state, context), rows.index), ids, count)
    state = dataclasses.replace(state, **{context: put_rows(getattr(state, context), rows.index, cache)})
    if context == "texts":
        return state
    last = jnp.take_along_axis(place(hidden, None, None, None), jnp.maximum(count - 1, 0)[:, None, None], axis=1)
    logits = place(bagel.logits(params["model"], last)[:, 0], None, None)
    state = dataclasses.replace(state, logits=_put_values(state.logits, rows, logits))
    absent = state.logits.shape[0]
    return _extend_view(state, rows._replace(index=jnp.where(in_view, rows.index, absent)), cache)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def write_text(
    model: StaticModel,
    settings: TextSettings,
    switches: tuple[int, int],
    params: dict,
    state: State,
    rows: RowGroup,
    grammar: tuple[Grammar, Int[Array, " G"]],
    written: WrittenTexts | None,
    until: Int[Array, ""],
) -> tuple[State, WrittenTexts]:
    """Write one text in every row, up to a step of the loop; see ``text.write_text``.

    Args:
      grammar: its tables and each row's start state.
      written: the result of the earlier steps; None before the first.
    """
    tables, start = grammar
    cache, inputs = take_rows(state.full, rows.index), (start, _find_active(state, rows), _make_keys(rows))
    cache, written = text.write_text(model, settings, switches, params["model"], tables, cache, inputs, written, until)
    logits = _put_values(state.logits, rows, written.logits)
    return dataclasses.replace(state, full=put_rows(state.full, rows.index, cache), logits=logits), written


@functools.partial(jax.jit, static_argnums=0)
def pick_switch(
    settings: TextSettings, state: State, rows: RowGroup, tokens: Int[Array, " S"], allowed: Bool[Array, "G S"]
) -> Int[Array, " G"]:
    """Pick one of the switch ``tokens`` in each row; return its index, or -1 where the logits are not finite."""
    logits = state.logits.at[rows.index].get(mode="clip")[:, tokens]
    picked = text.pick(settings, jnp.where(allowed, logits, -jnp.inf), _make_keys(rows, _SWITCH_DRAW))
    return jnp.where(jnp.isfinite(logits).all(axis=-1), picked, -1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def draw(
    denoiser: Denoiser,
    grid: ImageGrid,
    steps: tuple[int, int],
    image_guidance: bool,
    params: dict,
    state: State,
    rows: RowGroup,
    progress: Progress | None,
) -> Progress:
    """Run Euler steps ``steps[0]`` .. ``steps[1] - 1`` of one image in every row.

    Args:
      progress: the result of the earlier steps; None before the first: then the noise comes from each row's key.
    """
    config, batch = denoiser.config, rows.index.shape[0]
    texts = None
    if image_guidance:
        assert state.texts is not None  # capacity.compute_capacity makes room wherever images may guide
        texts = take_rows(state.texts, rows.index)
    view = [values.at[rows.index].get(mode="clip") for values in (state.view_length, state.view_rotary)]
    has_image = _find_active(state, rows) & image_guidance
    contexts = Contexts(take_rows(state.full, rows.index), view[0], view[1], texts, has_image)
    if progress is None:
        shape = (grid.latents[0] * grid.latents[1], config.latent_dim)
        keys = _make_keys(rows, _NOISE_DRAW)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
        progress = denoise.begin(denoiser, noise, texts is not None)
    positions = image.make_positions(config, grid.latents, config.max_latent_size, batch)
    return denoise.advance(denoiser, params["model"], contexts, positions, progress, steps)


@jax.jit
def regroup(parts: tuple[Progress, ...], index: Int[Array, " G"]) -> Progress:
    """Select the images ``index`` of all ``parts``, numbered through."""

    def select(*values: Array) -> Array:
        whole = (None,) * (values[0].ndim - 1)
        joined = jnp.concatenate([place(value, None, *whole) for value in values])
        return joined.at[index].get(out_sharding=out_spec("batch", *whole))

    return jax.tree.map(select, *parts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def decode(
    config: ModelConfig, settings: ImageSettings, grid: ImageGrid, step: int, params: dict, progress: Progress
) -> Float[Array, "G H W 3"]:
    """Decode the clean image as it is estimated after ``step`` steps to pixels in [-1, 1]."""
    return image.decode(config, grid, params, denoise.estimate(settings, progress, step))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def read_image(
    model: StaticModel,
    grid: ImageGrid,
    switches: tuple[int, int],
    params: dict,
    state: State,
    rows: RowGroup,
    images: PreparedImages,
) -> State:
    """Add an image to every row's full context: its clean VAE tokens, unless ``grid.vit_only``, then its ViT tokens.

    Args:
      switches: ids of <|vision_start|> and <|vision_end|>.
    """
    (config, compute), batch, tree = model, rows.index.shape[0], params["model"]
    cache, active = take_rows(state.full, rows.index), _find_active(state, rows)
    if not grid.vit_only:
        latents = image.encode_latents(config, params, images)
        positions = image.make_positions(config, grid.latents, config.max_latent_size, batch)
        cache, _ = add_latents(config, compute, tree, cache, (latents, positions), switches, active)
    positions = image.make_positions(config, grid.patches, config.vision.max_side, batch)
    patches = (jnp.asarray(images.patches), positions)
    cache, hidden = add_vit(config, compute, tree, cache, patches, switches, active)
    logits = place(bagel.logits(tree, hidden[:, -1:])[:, 0], None, None)
    state = dataclasses.replace(
        state, full=put_rows(state.full, rows.index, cache), logits=_put_values(state.logits, rows, logits)
    )
    return _extend_view(state, rows, cache)


@functools.partial(jax.jit, donate_argnums=0)
def rewind(state: State, count: Int[Array, " R"]) -> State:
    """Remove the last ``count`` text tokens of each row's full context."""
    full = dataclasses.replace(state.full, length=state.full.length - count, rotary=state.full.rotary - count)
    return dataclasses.replace(state, full=full)


@functools.partial(jax.jit, donate_argnums=0)
def clear_rows(state: State, rows: Bool[Array, " R"]) -> State:
    """Empty the contexts of these rows, for new trajectories."""
    # Lengths and positions have one value a row. Keys, values and logits beyond a length are never read.
    return jax.tree.map(lambda values: jnp.where(rows, 0, values) if values.ndim == 1 else values, state)


@jax.jit
def copy_rows(state: State, index: Int[Array, " R"]) -> State:
    """Return the state whose row n is row ``index[n]`` of this one."""
    small = (state.view_length, state.view_rotary, state.logits)
    view_length, view_rotary, logits = (values.at[index].get(mode="clip") for values in small)
    texts = None if state.texts is None else take_rows(state.texts, index)
    return State(take_rows(state.full, index), texts, view_length, view_rotary, logits)


def _find_active(state: State, rows: RowGroup) -> Bool[Array, " G"]:
    """Tell rows from padding."""
    return jnp.asarray(rows.index) < state.logits.shape[0]


def _make_keys(rows: RowGroup, draw: int | None = None) -> Array:
    """Make the key of each row's next segment, or of one draw within it."""
    keys = jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.key)(rows.seed), rows.number)
    return keys if draw is None else jax.vmap(lambda key: jax.random.fold_in(key, draw))(keys)


def _put_values(values: Array, rows: RowGroup, new: Array) -> Array:
    return values.at[rows.index].set(new, mode="drop")


def _extend_view(state: State, rows: RowGroup, cache: Cache) -> State:
    """Let text guidance see the rows' whole contexts."""
    return dataclasses.replace(
        state,
        view_length=_put_values(state.view_length, rows, cache.length),
        view_rotary=_put_values(state.view_rotary, rows, cache.rotary),
    )

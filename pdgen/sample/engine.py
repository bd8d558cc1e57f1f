"""Sampling whole trajectories: a batch of contexts, driven by the grammar until the model ends each.

The host decides only which rows write a text and which draw an image next; every evaluation of the
network happens in four compiled functions whose shapes do not change during a run. A row's randomness
comes from its own seed and the number of its segment, so a trajectory does not depend on its batch.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow.denoise import Contexts, Denoiser, ImageSettings, network_evaluations
from pdgen.interleave.grammar import KINDS, START_AFTER, SWITCHES, Automaton, build_automaton
from pdgen.interleave.images import from_pixels
from pdgen.interleave.tokenizer import Tokenizer
from pdgen.interleave.trajectory import ImageStage, StopReason, TextStage, Trajectory, image_stage
from pdgen.models.context import Cache, add_text, empty_cache
from pdgen.sample import image as image_steps
from pdgen.sample.text import Grammar, TextSettings, pick, room, write_text


_SWITCH_DRAW = 2**31  # folded into a segment's key for the switch; the draws of its tokens count from 0


class SampleError(ValueError):
    """A prompt, setting or checkpoint that cannot be sampled; one line names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How trajectories are sampled.

    Attributes:
      height, width: of every image, in pixels; 0 = the largest square that the model's tables hold.
      max_images: images of one trajectory, at most.
      text, image: how texts are written and images denoised.
    """

    height: int = 0
    width: int = 0
    max_images: int = 8
    text: TextSettings = TextSettings()
    image: ImageSettings = ImageSettings()


class Drawn(NamedTuple):
    """A sampled trajectory and its images, one per image stage."""

    trajectory: Trajectory
    images: list[PIL.Image.Image]


@dataclasses.dataclass
class _Row:
    """The host's record of one trajectory while it grows."""

    prompt: str
    seed: int
    kinds: list[str]
    stages: list[TextStage | ImageStage] = dataclasses.field(default_factory=list)
    images: list[PIL.Image.Image] = dataclasses.field(default_factory=list)
    due: str = "text"
    stop_reason: StopReason | None = None


class _Batch(NamedTuple):
    """The device's state of a batch: contexts, the text-guidance view, and each row's key."""

    full: Cache
    image: Cache | None
    view: tuple[jax.Array, jax.Array]
    has_image: jax.Array
    keys: jax.Array


class Sampler:
    """Samples trajectories from one checkpoint.

    Args:
      config: the model's sizes.
      params: ``{"model": tree, "autoencoder": tree}``.
      tokenizer: the checkpoint's tokenizer.
      checkpoint: name written into trajectories.
      compute: dtype and tiles.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict[str, Any],
        tokenizer: Tokenizer,
        checkpoint: str = "",
        compute: ComputeConfig = ComputeConfig(),
    ) -> None:
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.checkpoint, self.compute = checkpoint, compute
        self.automaton: Automaton = build_automaton(tokenizer, config.language.vocab_size)
        self.grammar = Grammar(jnp.asarray(self.automaton.table), jnp.asarray(self.automaton.closings))

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        settings: SampleSettings = SampleSettings(),
        progress: Callable[[str], None] = lambda line: None,
    ) -> list[Drawn]:
        """Samples one trajectory per prompt, all in one batch.

        Args:
          prompts: what to draw.
          seeds: one per prompt; 0, 1, 2, ... by default.
          settings: how.
          progress: called with a line after every segment.

        Raises:
          SampleError: no prompt, an empty one, or seeds of another number.
          ValueError: a setting out of range.
        """
        seeds = list(range(len(prompts))) if seeds is None else list(seeds)
        if not prompts or not all(p.strip() for p in prompts):
            raise SampleError("a prompt is empty; say what to draw")
        if len(seeds) != len(prompts):
            raise SampleError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        return _Run(self, settings, list(prompts), seeds, progress).sample()


class _Run:
    """One batch of trajectories on its way: host records, device state, compiled functions."""

    def __init__(
        self, sampler: Sampler, settings: SampleSettings, prompts: list[str], seeds: list[int], progress: Callable
    ) -> None:
        side = sampler.config.latent_stride * sampler.config.max_latent_size
        settings = dataclasses.replace(settings, height=settings.height or side, width=settings.width or side)
        self.sampler, self.settings, self.progress = sampler, settings, progress
        self.grid = image_steps.image_grid(sampler.config, settings.height, settings.width)
        self.rows = [_Row(p, s, ["prompt"]) for p, s in zip(prompts, seeds)]
        tokens = sampler.tokenizer
        self.text_switches, self.image_switches = (
            (tokens.im_start, tokens.im_end),
            (tokens.vision_start, tokens.vision_end),
        )
        self.ids = [sampler.tokenizer.encode(p) for p in prompts]
        self.segment = 0
        self.batch = self._empty_batch(seeds)

    def _empty_batch(self, seeds: list[int]) -> _Batch:
        sampler, images = self.sampler, self.settings.max_images
        text = room(self.settings.text, sampler.grammar)
        capacity = -(-max(map(len, self.ids)) // 32) * 32 + 2 + images * (2 * text + self.grid.cache_tokens)
        make = functools.partial(empty_cache, sampler.config, len(seeds), dtype=jnp.dtype(sampler.compute.dtype))
        guided = self.settings.image.text_scale > 1 and self.settings.image.image_scale > 1
        zero = jnp.zeros(len(seeds), jnp.int32)
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        return _Batch(make(capacity), make(capacity) if guided else None, (zero, zero), zero > 0, keys)

    def sample(self) -> list[Drawn]:
        """Runs every row to its end."""
        began = time.perf_counter()
        self._add_prompts()
        while due := {row.due for row in self.rows if row.stop_reason is None}:
            started = time.perf_counter()
            wanted = "text" if "text" in due else "image"
            active = [row.stop_reason is None and row.due == wanted for row in self.rows]
            (self._write if wanted == "text" else self._draw)(np.array(active), started)
            self.segment += 1
        seconds = time.perf_counter() - began
        return [Drawn(self._trajectory(row, seconds), row.images) for row in self.rows]

    def _add_prompts(self) -> None:
        """Prefills every prompt; the mode sets that a plan follows."""
        opening, closing = self.text_switches
        ids = [[opening, *words, closing] for words in self.ids]
        width = -(-max(map(len, ids)) // 32) * 32
        padded = np.array([row + [0] * (width - len(row)) for row in ids], np.int32)
        self._extend_both(padded, np.array([len(row) for row in ids], np.int32))

    def _extend_both(self, ids: np.ndarray, count: np.ndarray) -> None:
        model, params = (self.sampler.config, self.sampler.compute), self.sampler.params["model"]
        batch = self.batch
        full = _add_text(model, params, batch.full, ids, count)
        image = None if batch.image is None else _add_text(model, params, batch.image, ids, count)
        self.batch = batch._replace(full=full, image=image)

    def _row_keys(self) -> jax.Array:
        return _segment_keys(self.batch.keys, self.segment)

    def _write(self, active: np.ndarray, started: float) -> None:
        """One text in every active row, and what follows it."""
        sampler, settings = self.sampler, self.settings
        starts = [sampler.automaton.starts[START_AFTER.get(row.kinds[-1], "plan")] for row in self.rows]
        keys = self._row_keys()
        written = _write_text(
            (sampler.config, sampler.compute), settings.text, self.text_switches, sampler.params["model"],
            sampler.grammar, self.batch.full, (np.array(starts, np.int32), active, keys),
        )  # fmt: skip
        self.batch = self.batch._replace(full=written.cache)
        tokens, count, state, limited = (np.asarray(x) for x in written[1:5])
        if self.batch.image is not None:
            self._copy_text(tokens, np.where(active, count + 2, 0))
        switches = self._switches(written.logits, keys, [sampler.automaton.kind_of(s) for s in state])
        seconds = time.perf_counter() - started
        for n in np.flatnonzero(active):
            row, kind = self.rows[n], sampler.automaton.kind_of(int(state[n]))
            words = sampler.tokenizer.decode(tokens[n, : count[n]].tolist())
            stage = "plan" if kind == "plan" else "inspect"
            row.stages.append(TextStage(stage=stage, text=words, seconds=seconds, tokens=int(count[n])))
            row.kinds.append(kind)
            self._follow(row, switches[n], bool(limited[n]))
            self.progress(f"seed {row.seed}: {stage}: {words}")

    def _copy_text(self, tokens: np.ndarray, count: np.ndarray) -> None:
        """Adds the finished texts to the image-guidance context, all their tokens at once."""
        opening, closing = self.text_switches
        ids = np.concatenate([np.full((len(tokens), 1), opening), tokens, np.zeros((len(tokens), 1), int)], axis=1)
        ids[np.arange(len(ids)), np.maximum(count - 1, 0)] = closing
        model, params = (self.sampler.config, self.sampler.compute), self.sampler.params["model"]
        self.batch = self.batch._replace(
            image=_add_text(model, params, self.batch.image, ids.astype(np.int32), count.astype(np.int32))
        )

    def _switches(self, logits: jax.Array, keys: jax.Array, kinds: list[str]) -> list[str]:
        """What follows in every row: the model's choice among what the grammar allows after ``kinds``."""
        automaton = self.sampler.automaton
        allowed = jnp.asarray(automaton.switches[[KINDS.index(kind) for kind in kinds]])
        chosen = _pick_switch(logits, jnp.asarray(automaton.switch_tokens), allowed, keys, self.settings.text.temperature)
        return [SWITCHES[i] for i in np.asarray(chosen)]

    def _follow(self, row: _Row, switch: str, limited: bool = False) -> None:
        """Sets what a row does next, or why it stops."""
        row.due = switch
        if switch == "end":
            row.stop_reason = "finished"
        elif limited and row.kinds[-1] != "plan":
            row.stop_reason = "token limit"
        elif switch == "image" and len(row.images) >= self.settings.max_images:
            row.stop_reason = "step limit"
        elif switch == "text" and row.kinds[-1] != "image" and len(row.images) >= self.settings.max_images:
            row.stop_reason = "step limit"

    def _draw(self, active: np.ndarray, started: float) -> None:
        """One image in every active row; it is then read into the context, and what follows it."""
        sampler, batch = self.sampler, self.batch
        use_image = batch.image is not None and bool(np.asarray(batch.has_image)[active].any())
        contexts = Contexts(batch.full, *batch.view, batch.image if use_image else None, batch.has_image)
        denoiser = Denoiser(sampler.config, sampler.compute, self.settings.image, self.image_switches)
        keys = self._row_keys()
        pixels = _draw_image(denoiser, self.grid, sampler.params, contexts, keys)
        pictures = [from_pixels(p) for p in np.asarray(pixels)]
        model = (sampler.config, sampler.compute)
        seen = np.stack([np.asarray(p, np.float32) for p in pictures]) / 127.5 - 1
        full, logits = _read_image(model, self.grid, self.image_switches, sampler.params, batch.full,
                                   (seen.astype(np.float32), active, keys))  # fmt: skip
        view = tuple(jnp.where(active, new, old) for new, old in zip((full.length, full.rotary), batch.view))
        self.batch = batch._replace(full=full, view=view, has_image=batch.has_image | active)
        switches = self._switches(logits, keys, ["image"] * len(active))
        self._record_images(active, pictures, switches, time.perf_counter() - started)

    def _record_images(
        self, active: np.ndarray, pictures: list[PIL.Image.Image], switches: list[str], seconds: float
    ) -> None:
        for n in np.flatnonzero(active):
            row = self.rows[n]
            stage = image_stage(row.kinds)
            height, width = self.grid.pixels
            file = f"{len(row.images) + 1:02d}_{stage}.png"
            row.stages.append(
                ImageStage(stage=stage, file=file, width=width, height=height, seconds=seconds,
                           tokens=self.grid.cache_tokens, steps=self.settings.image.num_timesteps - 1)
            )  # fmt: skip
            row.images.append(pictures[n])
            row.kinds.append("image")
            self._follow(row, switches[n])
            self.progress(f"seed {row.seed}: {stage} {width}x{height}")

    def _trajectory(self, row: _Row, seconds: float) -> Trajectory:
        images = [s for s in row.stages if isinstance(s, ImageStage)]
        guided = self.batch.image is not None
        evaluations = [network_evaluations(self.settings.image, guided and n > 0)[1] for n in range(len(images))]
        costs = {
            "network_evaluations": float(sum(evaluations)),
            "text_tokens": float(sum(s.tokens for s in row.stages if isinstance(s, TextStage))),
            "batch_seconds": seconds,
        }
        flat = dataclasses.asdict(self.settings)
        settings = {k: v for k, v in flat.items() if not isinstance(v, dict)}
        settings |= {f"{group}.{k}": v for group in ("text", "image") for k, v in flat[group].items()}
        return Trajectory(
            prompt=row.prompt, stages=row.stages, stop_reason=row.stop_reason, seed=row.seed,
            checkpoint=self.sampler.checkpoint, settings=settings, costs=costs,
        )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _add_text(model: tuple, params: dict, cache: Cache, ids: jax.Array, count: jax.Array) -> Cache:
    return add_text(*model, params, cache, ids, count)[0]


_write_text = jax.jit(write_text, static_argnums=(0, 1, 2), donate_argnums=5)
_draw_image = jax.jit(image_steps.draw, static_argnums=(0, 1))
_read_image = jax.jit(image_steps.read, static_argnums=(0, 1, 2), donate_argnums=4)
_segment_keys = jax.jit(lambda keys, number: jax.vmap(lambda key: jax.random.fold_in(key, number))(keys))


@functools.partial(jax.jit, static_argnums=4)
def _pick_switch(
    logits: jax.Array, tokens: jax.Array, allowed: jax.Array, keys: jax.Array, temperature: float
) -> jax.Array:
    scores = jnp.where(allowed, logits[:, tokens], -jnp.inf)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _SWITCH_DRAW))(keys)
    return pick(scores, keys, temperature)

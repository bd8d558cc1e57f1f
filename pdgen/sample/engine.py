"""Sampling whole trajectories: a batch of contexts, driven by the grammar until the model ends each.

The host decides only which rows write a text and which draw an image next; every evaluation of the
network happens in four compiled functions whose shapes depend on the settings and the number of rows
alone. A row's randomness comes from its own seed and the number of its own segment, so a trajectory does
not depend on its batch.
"""

import dataclasses
import functools
import os
import pathlib
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
from pdgen.sample import checkpoint as checkpoints
from pdgen.sample import image as image_steps
from pdgen.sample.compiled import Compiler, Stopwatch
from pdgen.sample.text import Grammar, TextSettings, pick, room, write_text

# What a segment's key is folded with for each draw; those of a text's tokens count from 0.
_SWITCH_DRAW, _NOISE_DRAW, _POSTERIOR_DRAW = 2**31, 2**31 + 1, 2**31 + 2
_REMEDY = "lower max_images, max_tokens or the image size, or sample fewer prompts at once"
_CHUNK = 64  # tokens of a finished text that are added to a context at a time


class SampleError(ValueError):
    """A prompt, seed or size that cannot be sampled; one line names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How trajectories are sampled.

    Attributes:
      height, width: of every image, in pixels; 0 = the largest square that the model's tables hold.
      max_images: images of one trajectory, at most; 0 writes the first plan alone.
      max_prompt_tokens: tokens of a prompt, at most.
      text, image: how texts are written and images denoised.

    Raises:
      ValueError: a value out of range, named.
    """

    height: int = 0
    width: int = 0
    max_images: int = 8
    max_prompt_tokens: int = 512
    text: TextSettings = TextSettings()
    image: ImageSettings = ImageSettings()

    def __post_init__(self) -> None:
        for name, least in (("height", 0), ("width", 0), ("max_images", 0), ("max_prompt_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")


class Sampler:
    """Samples trajectories from one checkpoint.

    Args:
      config: the model's sizes.
      params: ``{"model": tree, "autoencoder": tree}``.
      tokenizer: the checkpoint's tokenizer.
      checkpoint: name written into trajectories.
      compute: dtype and tiles; by default the dtype that the parameters are stored in.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict[str, Any],
        tokenizer: Tokenizer,
        checkpoint: str = "",
        compute: ComputeConfig | None = None,
    ) -> None:
        stored = params["model"]["language"]["head"]["kernel"].dtype.name
        self.config, self.params, self.tokenizer = config, jax.device_put(params), tokenizer
        self.checkpoint, self.compute = checkpoint, compute or ComputeConfig(dtype=stored)
        self.automaton: Automaton = build_automaton(tokenizer, config.language.vocab_size)
        self.grammar = Grammar(jnp.asarray(self.automaton.table), jnp.asarray(self.automaton.closings))
        self.compiler = Compiler()

    @classmethod
    def from_checkpoint(cls, path: str | pathlib.Path, compute: ComputeConfig | None = None) -> "Sampler":
        """A sampler of the checkpoint at ``path``.

        Args:
          path: a pdgen checkpoint, or the workdir of a training run that has exported one.
          compute: as for the class.

        Raises:
          CheckpointError, ConfigError, TokenizerError: there is no checkpoint, it is damaged or it has no
            tokenizer; one line says what to do.
        """
        config, params, tokenizer, folder = checkpoints.load(path)
        return cls(config, params, tokenizer, str(folder), compute)

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        settings: SampleSettings = SampleSettings(),
        progress: Callable[[str], None] = lambda line: None,
    ) -> list[Trajectory]:
        """Samples one trajectory per prompt, all in one batch.

        Args:
          prompts: what to draw.
          seeds: one per prompt, within [0, 2^32); 0, 1, 2, ... by default.
          settings: how.
          progress: called with a line after every segment and every compilation.

        Raises:
          SampleError: no prompt, an empty or overlong one, impossible seeds, or contexts that do not fit
            into the device's memory.
          ValueError: a setting out of range.
        """
        seeds = list(range(len(prompts))) if seeds is None else list(seeds)
        if not prompts or not all(p.strip() for p in prompts):
            raise SampleError("a prompt is empty; say what to draw")
        if len(seeds) != len(prompts):
            raise SampleError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
            raise SampleError(f"seed {wrong[0]}: must be at least 0 and below 2^32")
        try:
            return _Run(self, settings, list(prompts), seeds, progress).sample()
        except jax.errors.JaxRuntimeError as fault:
            if "RESOURCE_EXHAUSTED" not in str(fault):
                raise
            raise SampleError(f"no room on the device for {len(prompts)} trajectories ({fault}); {_REMEDY}") from fault


@dataclasses.dataclass
class _Row:
    """The host's record of one trajectory while it grows.

    Attributes:
      kinds: of the segments so far, keys of ``trajectory.MODES``.
      due: what comes next, "text" or "image".
      cut: texts that the token limit cut short.
    """

    prompt: str
    seed: int
    kinds: list[str]
    stages: list[TextStage | ImageStage] = dataclasses.field(default_factory=list)
    images: list[PIL.Image.Image] = dataclasses.field(default_factory=list)
    due: str = "text"
    cut: int = 0
    stop_reason: StopReason | None = None


class _Batch(NamedTuple):
    """The device's state of a batch.

    Attributes:
      full: the contexts.
      texts: the contexts without images, for image guidance; None where that is off.
      view: [B], [B] length and rotary position of ``full`` after its last image, for text guidance.
      has_image: [B] the context holds an image.
    """

    full: Cache
    texts: Cache | None
    view: tuple[jax.Array, jax.Array]
    has_image: jax.Array


class _Run:
    """One batch of trajectories on its way: host records and device state."""

    def __init__(
        self, sampler: Sampler, settings: SampleSettings, prompts: list[str], seeds: list[int], progress: Callable
    ) -> None:
        side = sampler.config.latent_stride * sampler.config.max_latent_size
        settings = dataclasses.replace(settings, height=settings.height or side, width=settings.width or side)
        self.sampler, self.settings, self.progress = sampler, settings, progress
        self.model, tokens = (sampler.config, sampler.compute), sampler.tokenizer
        self.grid = image_steps.image_grid(sampler.config, settings.height, settings.width)
        self.text_switches = (tokens.im_start, tokens.im_end)
        self.image_switches = (tokens.vision_start, tokens.vision_end)
        self.denoiser = Denoiser(sampler.config, sampler.compute, settings.image, self.image_switches)
        self.rows = [_Row(p, s, ["prompt"]) for p, s in zip(prompts, seeds)]
        self.prompt_ids = [self._prompt_ids(n, prompt) for n, prompt in enumerate(prompts)]
        self.batch = self._empty_batch()
        self.watch = Stopwatch(sampler.compiler)  # of the segment on its way
        self.keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))

    def _prompt_ids(self, number: int, prompt: str) -> list[int]:
        ids, limit = self.sampler.tokenizer.encode(prompt), self.settings.max_prompt_tokens
        if len(ids) > limit:
            raise SampleError(f"prompt {number + 1} of {len(self.rows)} has {len(ids)} tokens, at most {limit} are "
                              "allowed; shorten it or raise max_prompt_tokens")  # fmt: skip
        return ids

    def _empty_batch(self) -> _Batch:
        """Contexts with room for all that the settings allow: two texts an image, its plan and its inspection."""
        settings, rows = self.settings, len(self.rows)
        written = max(1, 2 * settings.max_images) * room(settings.text, self.sampler.grammar)
        texts = settings.max_prompt_tokens + 2 + written
        full = texts + settings.max_images * self.grid.cache_tokens
        guided = settings.image.text_scale > 1 and settings.image.image_scale > 1 and settings.max_images > 1
        dtype = jnp.dtype(self.sampler.compute.dtype)
        _check_memory(self.sampler.config, rows, full + texts * guided, dtype)
        make = functools.partial(empty_cache, self.sampler.config, rows, dtype=dtype)
        zero = jnp.zeros(rows, jnp.int32)
        return _Batch(make(full), make(texts) if guided else None, (zero, zero), zero > 0)

    def sample(self) -> list[Trajectory]:
        """Runs every row to its end."""
        watch = Stopwatch(self.sampler.compiler)
        self._add_texts(self.prompt_ids, copies=("full", "texts"))
        while due := {row.due for row in self.rows if row.stop_reason is None}:
            # Rows that write go first, so that those that draw next draw together.
            wanted = "text" if "text" in due else "image"
            active = np.array([row.stop_reason is None and row.due == wanted for row in self.rows])
            self.watch = Stopwatch(self.sampler.compiler)
            (self._write if wanted == "text" else self._draw)(active)
        costs = {"batch_seconds": watch.seconds, "compile_seconds": watch.compiling}
        return [self._trajectory(row, costs) for row in self.rows]

    def _call(self, function: Callable, static: tuple, *args: Any) -> Any:
        watch = Stopwatch(self.sampler.compiler)
        result = self.sampler.compiler(function, static, *args)
        if watch.compiling:
            self.progress(f"compiled {function.__name__.strip('_')} in {watch.compiling:.1f} s")
        return result

    def _add_texts(self, words: list[list[int] | None], copies: tuple[str, ...]) -> None:
        """Adds one finished text per row, None for no text, to the contexts named."""
        opening, closing = self.text_switches
        ids = [[] if row is None else [opening, *row, closing] for row in words]
        for first in range(0, max(map(len, ids)), _CHUNK):
            pieces = [row[first : first + _CHUNK] for row in ids]
            count = np.array([len(piece) for piece in pieces], np.int32)
            padded = np.array([piece + [0] * (_CHUNK - len(piece)) for piece in pieces], np.int32)
            for name in copies:
                cache = getattr(self.batch, name)
                if cache is not None:
                    cache = self._call(_add_text, (self.model,), self.sampler.params["model"], cache, padded, count)
                    self.batch = self.batch._replace(**{name: cache})

    def _segment_keys(self, draw: int | None = None) -> jax.Array:
        """The key of every row's next segment, or of one draw within it."""
        numbers = np.array([len(row.stages) for row in self.rows], np.uint32)
        keys = _fold(self.keys, numbers)
        return keys if draw is None else _fold(keys, np.full(len(numbers), draw, np.uint32))

    def _write(self, active: np.ndarray) -> None:
        """One text in every active row, and what follows it."""
        sampler, automaton = self.sampler, self.sampler.automaton
        starts = [automaton.starts[START_AFTER.get(row.kinds[-1], "plan")] for row in self.rows]
        written = self._call(
            _write_text, (self.model, self.settings.text, self.text_switches), sampler.params["model"],
            sampler.grammar, self.batch.full, (np.array(starts, np.int32), active, self._segment_keys()),
        )  # fmt: skip
        self.batch = self.batch._replace(full=written.cache)
        tokens, count, state, limited = (np.asarray(x) for x in written[1:5])
        words = [row[:n].tolist() if a else None for row, n, a in zip(tokens, count, active)]
        self._add_texts(words, copies=("texts",))
        kinds = [automaton.kind_of(s) for s in state]
        switches = self._switches(written.logits, kinds)
        seconds = self.watch.seconds
        for n in np.flatnonzero(active):
            row, text = self.rows[n], sampler.tokenizer.decode(words[n])
            stage = "plan" if kinds[n] == "plan" else "inspect"
            row.stages.append(TextStage(stage=stage, text=text, seconds=seconds, tokens=len(words[n])))
            row.kinds.append(kinds[n])
            row.cut += bool(limited[n])
            self._follow(row, switches[n], bool(limited[n]))
            self.progress(f"seed {row.seed}: {stage}, {len(words[n])} tokens, {seconds:.1f} s: {text!r}")

    def _switches(self, logits: jax.Array, kinds: list[str]) -> list[str]:
        """What follows in every row: the model's choice among what the grammar allows after ``kinds``."""
        automaton, temperature = self.sampler.automaton, self.settings.text.temperature
        allowed = jnp.asarray(automaton.switches[[KINDS.index(kind) for kind in kinds]])
        tokens, keys = jnp.asarray(automaton.switch_tokens), self._segment_keys(_SWITCH_DRAW)
        chosen = self._call(_pick_switch, (temperature,), logits, tokens, allowed, keys)
        return [SWITCHES[i] for i in np.asarray(chosen)]

    def _follow(self, row: _Row, switch: str, limited: bool = False) -> None:
        """Sets what a row does next, or why it stops."""
        row.due = switch
        full = len(row.images) >= self.settings.max_images
        if limited and row.kinds[-1] != "plan":  # a plan's tags were closed, it can be drawn
            row.stop_reason = "token limit"
        elif switch == "end":
            row.stop_reason = "finished"
        elif full and (switch == "image" or row.kinds[-1] != "image"):  # the last image may still be inspected
            row.stop_reason = "step limit"

    def _draw(self, active: np.ndarray) -> None:
        """One image in every active row; it is then read into the context, and what follows it."""
        sampler, batch = self.sampler, self.batch
        use_texts = batch.texts is not None and bool(np.asarray(batch.has_image)[active].any())
        contexts = Contexts(batch.full, *batch.view, batch.texts if use_texts else None, batch.has_image)
        pixels = self._call(
            _draw_image, (self.denoiser, self.grid), sampler.params, contexts, self._segment_keys(_NOISE_DRAW)
        )
        # The context sees what the PNG will hold: 8 bits a channel.
        pictures = [from_pixels(p) for p in np.asarray(pixels)]
        rows = (image_steps.prepare(sampler.config, pictures), active, self._segment_keys(_POSTERIOR_DRAW))
        full, logits = self._call(
            _read_image, (self.model, self.grid, self.image_switches), sampler.params, batch.full, rows
        )
        # Copies: the next call takes the context's own buffers.
        view = tuple(jnp.where(active, new, old) for new, old in zip((full.length, full.rotary), batch.view))
        self.batch = batch._replace(full=full, view=view, has_image=batch.has_image | active)
        self._record_images(active, pictures, self._switches(logits, ["image"] * len(active)))

    def _record_images(self, active: np.ndarray, pictures: list[PIL.Image.Image], switches: list[str]) -> None:
        seconds, (height, width) = self.watch.seconds, self.grid.pixels
        for n in np.flatnonzero(active):
            row = self.rows[n]
            stage = image_stage(row.kinds)
            row.images.append(pictures[n])
            row.kinds.append("image")
            row.stages.append(
                ImageStage(stage=stage, file=f"{len(row.images):02d}_{stage}.png", width=width, height=height,
                           seconds=seconds, tokens=self.grid.cache_tokens, steps=self.settings.image.num_timesteps - 1)
            )  # fmt: skip
            self._follow(row, switches[n])
            self.progress(f"seed {row.seed}: {stage}, {width}x{height}, {seconds:.1f} s")

    def _trajectory(self, row: _Row, costs: dict[str, float]) -> Trajectory:
        guided = self.batch.texts is not None
        evaluations = [network_evaluations(self.settings.image, guided and n > 0)[1] for n in range(len(row.images))]
        costs = {
            "network_evaluations": float(sum(evaluations)),
            "text_tokens": float(sum(s.tokens for s in row.stages if isinstance(s, TextStage))),
            "texts_cut": float(row.cut),
            **costs,
        }
        return Trajectory(
            prompt=row.prompt, stages=row.stages, stop_reason=row.stop_reason, seed=row.seed,
            checkpoint=self.sampler.checkpoint, settings=_flat(self.settings) | {"dtype": self.sampler.compute.dtype},
            costs=costs, images=row.images,
        )  # fmt: skip


def _flat(settings: SampleSettings) -> dict[str, Any]:
    """The settings as one flat object: "max_images", "text.temperature", "image.interval_from", ..."""
    values = dataclasses.asdict(settings)
    for group in ("text", "image"):
        values |= {f"{group}.{name}": value for name, value in values.pop(group).items()}
    values["image.interval_from"], values["image.interval_to"] = values.pop("image.interval")
    return values


def _check_memory(config: ModelConfig, rows: int, tokens: int, dtype: Any) -> None:
    """Raises SampleError where contexts of ``tokens`` slots a row cannot fit into the device's memory."""
    language = config.language
    needed = rows * tokens * 2 * language.num_layers * language.num_kv_heads * language.head_dim * dtype.itemsize
    stats = jax.local_devices()[0].memory_stats()
    if stats is None:  # a CPU
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        free = stats["bytes_limit"] - stats["bytes_in_use"]
    if needed > free:
        raise SampleError(f"no room: the contexts of {rows} trajectories of up to {tokens:,} tokens need {needed:,} "
                          f"bytes, the device has {free:,}; {_REMEDY}")  # fmt: skip


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _add_text(model: tuple, params: dict, cache: Cache, ids: jax.Array, count: jax.Array) -> Cache:
    return add_text(*model, params, cache, ids, count)[0]


_write_text = jax.jit(write_text, static_argnums=(0, 1, 2), donate_argnums=5)
_draw_image = jax.jit(image_steps.draw, static_argnums=(0, 1))
_read_image = jax.jit(image_steps.read, static_argnums=(0, 1, 2), donate_argnums=4)
_fold = jax.jit(jax.vmap(jax.random.fold_in))


@functools.partial(jax.jit, static_argnums=0)
def _pick_switch(
    temperature: float, logits: jax.Array, tokens: jax.Array, allowed: jax.Array, keys: jax.Array
) -> jax.Array:
    return pick(jnp.where(allowed, logits[:, tokens], -jnp.inf), keys, temperature)

"""Sampling whole trajectories: many at a time, driven by their grammars until the model ends each.

The host decides only which rows write a text and which draw an image next; every evaluation of the network happens in
a handful of compiled functions (``sample.steps``), always on the same number of rows. A row's randomness comes from
its own seed and the number of its own segment. So a trajectory does not depend on what is sampled beside it.
"""

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import PIL.Image
from jax.sharding import Mesh

from pdgen.checkpoints.load import load, make_shardings
from pdgen.config import ComputeConfig, ModelConfig
from pdgen.sample import steps
from pdgen.sample.batch import Batch, Event, Review
from pdgen.sample.capacity import check_memory
from pdgen.sample.compiled import Compiler
from pdgen.sample.image import check_size
from pdgen.sample.settings import MAX_TOGETHER, SampleError, SampleSettings, from_flat
from pdgen.sample.text import Grammar
from pdgen.sequence.grammar import Automaton, build_automaton
from pdgen.sequence.images import to_rgb
from pdgen.sequence.modes import TrajectoryError
from pdgen.sequence.tokenizer import Tokenizer
from pdgen.sequence.trajectory import ImageStage, Trajectory, image_file

MAX_GIVEN_PIXELS = 2**26  # 8192 x 8192: more is a mistake, or an attack

Say = Callable[[str], None]
_DEFAULTS = SampleSettings()


def _silent(line: str) -> None:
    """Tells nobody."""


class Sampler:
    """Samples trajectories from one checkpoint.

    Args:
      config: the model's sizes.
      params: ``{"model": tree, "autoencoder": tree}``.
      tokenizer: the checkpoint's tokenizer.
      checkpoint, model_hash: written into trajectories.
      compute: dtype and tiles; by default the dtype that the parameters are stored in.
      mesh: over which parameters and rows are split; None = one device.
      quick: compile sooner what then runs slower, for a few trajectories on a CPU; see ``Compiler``.

    Raises:
      ShardingError: the mesh's tensor axis does not divide the model's key/value heads.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict[str, Any],
        tokenizer: Tokenizer,
        checkpoint: str = "",
        compute: ComputeConfig | None = None,
        model_hash: str = "",
        mesh: Mesh | None = None,
        quick: bool = False,
    ) -> None:
        stored = params["model"]["language"]["head"]["kernel"].dtype.name
        self.config, self.tokenizer, self.mesh = config, tokenizer, mesh
        self.params = jax.device_put(params, make_shardings(config, mesh) if mesh else None)
        self.checkpoint, self.model_hash = checkpoint, model_hash
        self.compute = compute or ComputeConfig(dtype=stored)
        self.automaton: Automaton = build_automaton(tokenizer, config.language.vocab_size)
        self.grammar = Grammar(jnp.asarray(self.automaton.table), jnp.asarray(self.automaton.closings))
        self.compiler = Compiler(quick)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | pathlib.Path,
        compute: ComputeConfig | None = None,
        mesh: Mesh | None = None,
        quick: bool = False,
    ) -> "Sampler":
        """A sampler of the checkpoint at ``path``.

        Args:
          path: a pdgen checkpoint, the workdir of a training run or one of its steps, or the name of a model that the
            package brings along: "shapes" or "shapes_base". Nothing is written there.
          compute, mesh, quick: as for the class.

        Raises:
          CheckpointError, ConfigError, TokenizerError: there is no checkpoint, it is damaged or it has no
            tokenizer; one line says what to do.
          ShardingError: as for the class.
        """
        loaded = load(path, mesh)
        return cls(loaded.config, loaded.params, loaded.tokenizer, loaded.name, compute, loaded.digest, mesh, quick)

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        settings: SampleSettings = _DEFAULTS,
        given: Sequence[Sequence[PIL.Image.Image]] | None = None,
        progress: Say = _silent,
        review: Review | None = None,
        done: Callable[[int, Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """Samples one trajectory per prompt.

        Args:
          prompts: what to draw, edit or answer.
          seeds: one per prompt, within [0, 2^32); 0, 1, 2, ... by default.
          settings: how, ``settings.mode`` among them.
          given: for each prompt the images that stand before it.
          progress: called with a line after every segment and every compilation.
          review: called with the prompt's number, the stage and its image or None for all that the model draws; its
            ``Change`` or ``Stop`` is obeyed.
          done: called with the prompt's number and the trajectory as soon as one has ended. All of them, with their
            pictures, are held in memory until the last has ended, since they are returned together.

        Raises:
          SampleError: no prompt, an empty or overlong one, impossible seeds or images, or contexts that do not fit
            into the device's memory.
          TrajectoryError: a reviewer's text or image may not stand where it would.
          ValueError: a setting out of range.
        """
        starts = self.starts(prompts, seeds, settings, given)
        return _exhausted(self._run(starts, settings, progress, review, done))

    def stream(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        settings: SampleSettings = _DEFAULTS,
        given: Sequence[Sequence[PIL.Image.Image]] | None = None,
        progress: Say = _silent,
        review: Review | None = None,
        done: Callable[[int, Trajectory], None] | None = None,
    ) -> Generator[Event, None, list[Trajectory]]:
        """Yields (prompt's number, stage, image or None) as each stage is done; returns the trajectories.

        Arguments and errors are those of a call; errors come with the first step.
        """
        starts = self.starts(prompts, seeds, settings, given)
        return (yield from self._run(starts, settings, progress, review, done))

    def resume(
        self,
        trajectory: Trajectory,
        settings: SampleSettings | None = None,
        progress: Say = _silent,
        review: Review | None = None,
    ) -> Trajectory:
        """Goes on with one unfinished trajectory, by default with its own settings; see ``resume_all``."""
        return self.resume_all([trajectory], settings, progress, review)[0]

    def resume_all(
        self,
        trajectories: Sequence[Trajectory],
        settings: SampleSettings | None = None,
        progress: Say = _silent,
        review: Review | None = None,
        done: Callable[[int, Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """Goes on with unfinished trajectories where they stand, each in its own mode.

        What stands in them is read as it is, the rest drawn. Other arguments and errors are those of a call; as there,
        all stay in memory until the last has ended, also those that ``done`` has been given.

        Args:
          settings: by default those that they were drawn with.

        Raises:
          SampleError: there is none, one is finished already, or they were drawn with different settings and none are
            given.
          TrajectoryError: one breaks its grammar.
        """
        if not trajectories:
            raise SampleError("there is no trajectory to go on with; give at least one that has not ended")
        settings = _own_settings(trajectories) if settings is None else settings
        for number, start in enumerate(trajectories, 1):
            where = f"trajectory {number} of {len(trajectories)}"
            if start.stop_reason is not None:
                raise SampleError(f"{where} has ended ({start.stop_reason}); branch it where it should go on")
            self._check(where, start, settings)
        return _exhausted(self._run(list(trajectories), settings, progress, review, done))

    def starts(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        settings: SampleSettings = _DEFAULTS,
        given: Sequence[Sequence[PIL.Image.Image]] | None = None,
    ) -> list[Trajectory]:
        """A trajectory per prompt in which nothing is drawn yet; arguments and errors are those of a call."""
        seeds = list(range(len(prompts))) if seeds is None else list(seeds)
        given = [()] * len(prompts) if given is None else given
        if not prompts:
            raise SampleError("there is no prompt; say what to draw")
        for what, values in (("seeds", seeds), ("lists of given images", given)):
            if len(values) != len(prompts):
                raise SampleError(f"{len(prompts)} prompts need as many {what}, got {len(values)}")
        starts = []
        for number, (prompt, seed, pictures) in enumerate(zip(prompts, seeds, given, strict=True), 1):
            where = f"prompt {number} of {len(prompts)}"
            images = [_checked(where, picture) for picture in pictures]
            stages = [
                ImageStage("given", image_file(n, "given"), *image.size, origin="outside")
                for n, image in enumerate(images, 1)
            ]
            start = Trajectory(
                prompt=prompt,
                stages=stages,
                images=images,
                stop_reason=None,
                seed=seed,
                checkpoint=self.checkpoint,
                mode=settings.mode,
            )
            self._check(where, start, settings)
            starts.append(start)
        return starts

    def check_room(self, starts: Sequence[Trajectory], settings: SampleSettings = _DEFAULTS) -> None:
        """Raises SampleError where the contexts of trajectories that go on together do not fit into the memory."""
        self._places(starts, settings)

    def batch(
        self, starts: Sequence[Trajectory], settings: SampleSettings = _DEFAULTS, progress: Say = _silent
    ) -> Batch:
        """A batch to be driven by hand: slot n holds ``starts[n]``. Raises SampleError where there is no room."""
        settings = self.grouped(settings, len(starts))
        slots = -(-len(starts) // settings.together) * settings.together
        batch = Batch(self, settings, slots, check_memory(self, settings, starts, slots), progress=progress)
        batch.admit({slot: (slot, start) for slot, start in enumerate(starts)})
        return batch

    @property
    def shards(self) -> int:
        """Devices that the rows are split over."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"] if self.mesh else 1

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """Enters the mesh, if there is one."""
        return jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()

    def empty_state(self, rows: int, capacity: tuple[int, int]) -> steps.State:
        """See ``steps.empty_state``."""
        with self.on_mesh():
            return steps.empty_state((self.config, self.compute), rows, capacity)

    def _check(self, where: str, start: Trajectory, settings: SampleSettings) -> None:
        """Raises SampleError or TrajectoryError where a trajectory cannot be gone on with."""
        if not start.prompt.strip():
            raise SampleError(f"{where}: a prompt is empty; say what to draw")
        if not 0 <= start.seed < 2**32:
            raise SampleError(f"{where}: seed {start.seed}: must be at least 0 and below 2^32")
        tokens, limit = len(self.tokenizer.encode(start.prompt)), settings.max_prompt_tokens
        if tokens > limit:
            raise SampleError(
                f"{where} has {tokens} tokens, at most {limit} are allowed; shorten it or raise max_prompt_tokens"
            )
        if start.mode == "edit" and not start.images:
            raise SampleError(f"{where}: mode edit needs an image to edit; give one for every prompt")
        try:
            start.check()
        except TrajectoryError as fault:
            raise TrajectoryError(f"{where}: {fault}") from None
        if settings.height:
            check_size(self.config, settings.height, settings.width)

    def grouped(self, settings: SampleSettings, rows: int) -> SampleSettings:
        """The settings with ``together`` set: as asked for, or from the number of rows; a multiple of the shards."""
        together = settings.together or min(MAX_TOGETHER, 1 << (rows - 1).bit_length())
        return dataclasses.replace(settings, together=-(-together // self.shards) * self.shards)

    def _places(
        self, starts: Sequence[Trajectory], settings: SampleSettings
    ) -> tuple[SampleSettings, int, tuple[int, int]]:
        """The settings of a run over all starts, its places and their capacity. Raises SampleError for too little."""
        settings = self.grouped(settings, len(starts))
        # Twice as many places as rows are worked on at a time, so that there are always enough that do the same.
        slots = settings.together * (1 if len(starts) <= settings.together else 2)
        return settings, slots, check_memory(self, settings, starts, slots)

    def _run(
        self,
        starts: list[Trajectory],
        settings: SampleSettings,
        progress: Say,
        review: Review | None,
        done: Callable[[int, Trajectory], None] | None,
    ) -> Generator[Event, None, list[Trajectory]]:
        """Runs every trajectory to its end. A row that has ended gives its place to one that waits."""
        settings, slots, room = self._places(starts, settings)
        batch = Batch(self, settings, slots, room, review, progress)
        waiting, ended = collections.deque(enumerate(starts)), {}
        while waiting or batch.going():
            free = [slot for slot, row in enumerate(batch.rows) if row is None]
            if waiting and free:
                batch.admit({slot: waiting.popleft() for slot in free[: len(waiting)]})
            batch.step()
            yield from batch.told()
            for slot in batch.ended():
                number = batch.rows[slot].number
                ended[number] = batch.release(slot)
                if done:
                    done(number, ended[number])
        return [ended[number] for number in range(len(starts))]


def _own_settings(trajectories: Sequence[Trajectory]) -> SampleSettings:
    """Those that all trajectories were drawn with, whatever the mode of each."""
    told: list[SampleSettings] = []
    for number, one in enumerate(trajectories, 1):
        where = f"trajectory {number} of {len(trajectories)}"
        try:
            told.append(from_flat({**one.settings, "mode": trajectories[0].mode}))
        except ValueError as fault:
            raise SampleError(f"{where}: settings: {fault}; pass those to go on with") from None
        first, own = told[0].flat(), told[-1].flat()
        if other := [name for name in first | own if first.get(name) != own.get(name)]:
            raise SampleError(
                f"{where} was drawn with {other[0]}={own.get(other[0])}, the first with "
                f"{first.get(other[0])}; pass the settings to go on with"
            )
    return told[0]


def _exhausted(events: Iterator[Event]) -> list[Trajectory]:
    """What a generator returns in the end."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def _checked(where: str, picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.width * picture.height > MAX_GIVEN_PIXELS:
        raise SampleError(
            f"{where}: a given image has {picture.width} x {picture.height} pixels, at most "
            f"{MAX_GIVEN_PIXELS:,} are allowed; make it smaller"
        )
    return to_rgb(picture)

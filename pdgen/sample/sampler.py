"""Sampling of whole trajectories: many at a time, each until the model ends it.

The host decides only which rows write a text and which draw an image next. The network runs in a handful of compiled
functions (``sample.kernels``), always on the same number of rows. A row's randomness comes from its own seed and the
number of its own segment, so a trajectory does not depend on the rows beside it.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Generator, Sequence

import PIL.Image
from jax.sharding import Mesh

from pdgen.checkpoints.load import load
from pdgen.config import ComputeConfig
from pdgen.files import Log
from pdgen.sample.batch import Event, Review, TrajectoryBatch
from pdgen.sample.capacity import check_memory
from pdgen.sample.estimate import Estimate, Speed, estimate_run
from pdgen.sample.image import check_size
from pdgen.sample.model import Model, make_model
from pdgen.sample.settings import MAX_BATCH_SIZE, SampleError, SampleSettings, unflatten_settings
from pdgen.sequence.images import MAX_FILE_PIXELS, to_rgb
from pdgen.sequence.modes import TrajectoryError
from pdgen.sequence.trajectory import ImageStage, Trajectory, image_file

Done = Callable[[int, Trajectory], None]
_DEFAULTS = SampleSettings()


def _ignore(line: str) -> None:
    """Drop a line of progress."""


class Sampler:
    """Samples trajectories from one model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @classmethod
    def from_checkpoint(
        cls,
        path: str | pathlib.Path,
        compute: ComputeConfig | None = None,
        mesh: Mesh | None = None,
        quick: bool = False,
        offload: str | None = None,
    ) -> "Sampler":
        """Load the checkpoint at ``path``.

        Args:
          path: a pdgen checkpoint, the workdir of a training run or one of its steps, or the name of a shipped model:
            "shapes" or "shapes_base". Nothing is written there.
          compute, mesh, quick, offload: see ``make_model``.

        Raises:
          CheckpointError, ConfigError, TokenizerError: there is no checkpoint, it is damaged or it has no
            tokenizer; one line names the remedy.
          ShardingError: see ``make_model``.
        """
        return cls(make_model(load(path, mesh, offload=offload), compute, mesh, quick, offload))

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        settings: SampleSettings = _DEFAULTS,
        given: Sequence[Sequence[PIL.Image.Image]] | None = None,
        progress: Log = _ignore,
        review: Review | None = None,
        done: Done | None = None,
    ) -> list[Trajectory]:
        """Sample one trajectory per prompt.

        Args:
          prompts: what to draw, edit or answer.
          seeds: one per prompt, within [0, 2^32); 0, 1, 2, ... by default.
          settings: how to sample, with the mode.
          given: for each prompt the images that come before it.
          progress: takes a line after every segment and every compilation.
          review: takes the prompt's number, the stage and its image or None, for everything that the model makes;
            may return a ``Change`` or a ``Stop``.
          done: takes the prompt's number and the trajectory as soon as one has ended. All trajectories and their
            images stay in memory until the last has ended, since they are returned together.

        Raises:
          SampleError: no prompt, an empty or overlong one, impossible seeds or images, or contexts that do not fit
            into the device's memory.
          TrajectoryError: the grammar forbids a reviewer's text or image.
          ValueError: a setting out of range.
        """
        starts = self.make_starts(prompts, seeds, settings, given)
        return _exhaust(self._run(starts, settings, progress, review, done))

    def stream(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        settings: SampleSettings = _DEFAULTS,
        given: Sequence[Sequence[PIL.Image.Image]] | None = None,
        review: Review | None = None,
    ) -> Generator[Event, None, list[Trajectory]]:
        """Yield (prompt's number, stage, image or None) as each stage is done; return the trajectories.

        Arguments and errors are those of a call; errors come with the first step.
        """
        return (yield from self._run(self.make_starts(prompts, seeds, settings, given), settings, review=review))

    def resume(
        self,
        trajectory: Trajectory,
        settings: SampleSettings | None = None,
        progress: Log = _ignore,
        review: Review | None = None,
    ) -> Trajectory:
        """Continue one unfinished trajectory, by default with its own settings; see ``resume_all``."""
        return self.resume_all([trajectory], settings, progress, review)[0]

    def resume_all(
        self,
        trajectories: Sequence[Trajectory],
        settings: SampleSettings | None = None,
        progress: Log = _ignore,
        review: Review | None = None,
        done: Done | None = None,
    ) -> list[Trajectory]:
        """Continue unfinished trajectories after their last stage, each in its own mode.

        Their stages are read as they are. Other arguments and errors are those of a call.

        Args:
          settings: by default the settings that the trajectories were drawn with.

        Raises:
          SampleError: there is no trajectory, one has ended, or they were drawn with different settings and
            ``settings`` is None.
          TrajectoryError: one breaks its grammar.
        """
        if not trajectories:
            raise SampleError("there is no trajectory to continue; give at least one that has not ended")
        settings = _find_common_settings(trajectories) if settings is None else settings
        for number, start in enumerate(trajectories, 1):
            where = f"trajectory {number} of {len(trajectories)}"
            if start.stop_reason is not None:
                raise SampleError(f"{where} has ended ({start.stop_reason}); branch it where it should continue")
            self._check_start(where, start, settings)
        return _exhaust(self._run(list(trajectories), settings, progress, review, done))

    def make_starts(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        settings: SampleSettings = _DEFAULTS,
        given: Sequence[Sequence[PIL.Image.Image]] | None = None,
    ) -> list[Trajectory]:
        """Make a trajectory per prompt with no stage but the given images; arguments and errors as in a call."""
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
            images = [_convert_given(where, picture) for picture in pictures]
            start = Trajectory(
                prompt=prompt,
                stages=[
                    ImageStage("given", image_file(n, "given"), *image.size, origin="outside")
                    for n, image in enumerate(images, 1)
                ],
                images=images,
                stop_reason=None,
                seed=seed,
                checkpoint=self.model.name,
                mode=settings.mode,
            )
            self._check_start(where, start, settings)
            starts.append(start)
        return starts

    def check_memory(self, starts: Sequence[Trajectory], settings: SampleSettings = _DEFAULTS) -> None:
        """Raise SampleError where the contexts of trajectories that are resumed together exceed the memory."""
        self._size_batch(starts, settings)

    def estimate(self, starts: Sequence[Trajectory], settings: SampleSettings, speed: Speed) -> Estimate:
        """Estimate memory and time of trajectories that are resumed together; the parameters may be shapes."""
        settings, slots = self._choose_slots(settings, len(starts))
        return estimate_run(self.model, settings, starts, slots, speed)

    def make_batch(
        self, starts: Sequence[Trajectory], settings: SampleSettings = _DEFAULTS, progress: Log = _ignore
    ) -> TrajectoryBatch:
        """Make a batch for a strategy: slot n holds ``starts[n]``. Raises SampleError as ``check_memory``."""
        settings = self.resolve_batch_size(settings, len(starts))
        size = -(-len(starts) // settings.batch_size) * settings.batch_size
        capacity = check_memory(self.model, settings, starts, size)
        batch = TrajectoryBatch(self.model, settings, size, capacity, progress=progress)
        batch.admit({slot: (slot, start) for slot, start in enumerate(starts)})
        return batch

    def resolve_batch_size(self, settings: SampleSettings, rows: int) -> SampleSettings:
        """Set ``batch_size``: as asked for, or from the number of rows; a multiple of the mesh's row shards."""
        size = settings.batch_size or min(MAX_BATCH_SIZE, 1 << (rows - 1).bit_length())
        shards = self.model.row_shards
        return dataclasses.replace(settings, batch_size=-(-size // shards) * shards)

    def _check_start(self, where: str, start: Trajectory, settings: SampleSettings) -> None:
        """Raise SampleError or TrajectoryError where a trajectory cannot be continued."""
        if not start.prompt.strip():
            raise SampleError(f"{where}: a prompt is empty; say what to draw")
        if not 0 <= start.seed < 2**32:
            raise SampleError(f"{where}: seed {start.seed}: must be at least 0 and below 2^32")
        tokens, limit = len(self.model.tokenizer.encode(start.prompt)), settings.max_prompt_tokens
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
            check_size(self.model.config, settings.height, settings.width)

    def _size_batch(
        self, starts: Sequence[Trajectory], settings: SampleSettings
    ) -> tuple[SampleSettings, int, tuple[int, int]]:
        """Return resolved settings, number of slots and capacity for a run. Raises SampleError for too little room."""
        settings, size = self._choose_slots(settings, len(starts))
        return settings, size, check_memory(self.model, settings, starts, size)

    def _choose_slots(self, settings: SampleSettings, rows: int) -> tuple[SampleSettings, int]:
        """Return resolved settings and the number of slots."""
        settings = self.resolve_batch_size(settings, rows)
        # Twice as many slots as rows in a call, so that a call is seldom half empty.
        return settings, settings.batch_size * (1 if rows <= settings.batch_size else 2)

    def _run(
        self,
        starts: list[Trajectory],
        settings: SampleSettings,
        progress: Log = _ignore,
        review: Review | None = None,
        done: Done | None = None,
    ) -> Generator[Event, None, list[Trajectory]]:
        """Run every trajectory to its end. A waiting one takes the slot of one that has ended."""
        settings, size, capacity = self._size_batch(starts, settings)
        batch = TrajectoryBatch(self.model, settings, size, capacity, review, progress)
        waiting, ended = collections.deque(enumerate(starts)), {}
        while waiting or batch.list_active():
            free = [slot for slot in range(size) if slot not in batch.rows]
            if waiting and free:
                batch.admit({slot: waiting.popleft() for slot in free[: len(waiting)]})
            batch.step()
            yield from batch.drain_events()
            for slot in batch.list_ended():
                number = batch.rows[slot].number
                ended[number] = batch.release(slot)
                if done:
                    done(number, ended[number])
        return [ended[number] for number in range(len(starts))]


def _find_common_settings(trajectories: Sequence[Trajectory]) -> SampleSettings:
    """Return the settings that all trajectories were drawn with, whatever their modes. Raises SampleError."""
    first = None
    for number, one in enumerate(trajectories, 1):
        where = f"trajectory {number} of {len(trajectories)}"
        try:
            settings = unflatten_settings({**one.settings, "mode": trajectories[0].mode})
        except ValueError as fault:
            raise SampleError(f"{where}: settings: {fault}; pass the settings to continue with") from None
        first = first or settings
        expected, own = first.flatten(), settings.flatten()
        if other := [name for name in expected | own if expected.get(name) != own.get(name)]:
            raise SampleError(
                f"{where} was drawn with {other[0]}={own.get(other[0])}, the first with "
                f"{expected.get(other[0])}; pass the settings to continue with"
            )
    assert first is not None  # resume_all checks that there is a trajectory
    return first


def _exhaust(events: Generator[Event, None, list[Trajectory]]) -> list[Trajectory]:
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def _convert_given(where: str, picture: PIL.Image.Image) -> PIL.Image.Image:
    """Convert a given image to RGB. Raises SampleError where it is too large."""
    if picture.width * picture.height > MAX_FILE_PIXELS:
        raise SampleError(
            f"{where}: a given image has {picture.width} x {picture.height} pixels, at most "
            f"{MAX_FILE_PIXELS:,} are allowed; make it smaller"
        )
    return to_rgb(picture)

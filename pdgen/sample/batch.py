"""A batch of trajectories in different stages: contexts on the device, records on the host.

``Sampler`` steps a batch until every trajectory has ended. A strategy calls its methods: it writes texts or adds its
own, draws images or decodes them half-way, and copies the best rows over the others.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import PIL.Image

from pdgen.flow.denoise import describe_guidance
from pdgen.sample import kernels, pending
from pdgen.sample.compiled import Stopwatch
from pdgen.sample.denoising import Denoising, ImageGroup, ImageKind, check_finite
from pdgen.sample.image import make_grid, make_picture_grid, prepare_images
from pdgen.sample.model import Model
from pdgen.sample.rows import BatchRow, name_text_stage
from pdgen.sample.settings import SampleError, SampleSettings
from pdgen.sample.text import TO_THE_END, TextSettings
from pdgen.sample.writing import TextGroup, Writing
from pdgen.sequence.grammar import START_AFTER, SWITCHES
from pdgen.sequence.images import to_rgb
from pdgen.sequence.modes import END
from pdgen.sequence.trajectory import ImageStage, Stage, TextStage, Trajectory

_Key = TypeVar("_Key")


class Change(NamedTuple):
    """A reviewer's decision: replace the model's text or image."""

    text: str | None = None
    image: PIL.Image.Image | None = None


class Stop(NamedTuple):
    """A reviewer's decision: end the trajectory after the reviewed stage."""


class Event(NamedTuple):
    """A finished stage. ``row``: number of the trajectory; ``image``: of an image stage."""

    row: int
    stage: Stage
    image: PIL.Image.Image | None


Review = Callable[[int, Stage, PIL.Image.Image | None], Change | Stop | None]


class TrajectoryBatch:
    """Trajectories that are sampled side by side.

    A slot, from 0, holds one row. Methods that take slots work on ``settings.batch_size`` of them at a time.

    Args:
      settings: how to sample; ``batch_size`` must be set.
      size: number of slots.
      capacity: tokens of one row's contexts, with and without images; see ``capacity.compute_capacity``.
      review: sees every stage that the model makes.
      progress: takes a line after every segment and every compilation.

    Attributes:
      rows: by slot; empty slots are missing.
      state: the contexts.
    """

    def __init__(
        self,
        model: Model,
        settings: SampleSettings,
        size: int,
        capacity: tuple[int, int],
        review: Review | None = None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.model, self.settings, self.size = model, settings, size
        self.rows: dict[int, BatchRow] = {}
        self._review, self._progress = review, progress
        self._events: collections.deque[Event] = collections.deque()
        self._watch = Stopwatch(model.compiler)
        self._has_texts = bool(capacity[1])
        with model.enter_mesh():
            self.state = kernels.make_empty_state(model.static, size, capacity)

    # Admission and release.

    def admit(self, starts: Mapping[int, tuple[int, Trajectory]], settings: SampleSettings | None = None) -> None:
        """Put trajectories, each with its number, into free slots; their history is read before the next step.

        Args:
          settings: of these trajectories, by default those of the batch, whose ``batch_size`` holds in any case.
        """
        settings = dataclasses.replace(settings or self.settings, batch_size=self.settings.batch_size)
        admitted = np.zeros(self.size, bool)
        for slot, (number, start) in starts.items():
            latents = dict(start.latents or {})
            row = BatchRow(
                number, start, start.kinds, [*start.stages], [*start.images], latents, start.seed, settings=settings
            )
            system = settings.find_system(self.model.config, start.mode)
            row.pending.extend(pending.read_history(self.model, system, start, self._has_texts))
            self.rows[slot] = row
            admitted[slot] = True
        self.state = self._call(kernels.clear_rows, (), self.state, admitted)

    def release(self, slot: int) -> Trajectory:
        """Free a slot and return its trajectory."""
        trajectory = self.make_trajectory(slot)
        del self.rows[slot]
        return trajectory

    def make_trajectory(self, slot: int) -> Trajectory:
        """Return the trajectory in a slot so far. Its seconds of sampling and compilation are those of the batch."""
        model, row = self.model, self.rows[slot]
        trajectory = row.make_trajectory()
        seconds = {"batch_seconds": self._watch.seconds, "compile_seconds": self._watch.compiling}
        return dataclasses.replace(
            trajectory,
            checkpoint=model.name,
            model_hash=model.digest,
            settings=row.settings.flatten()
            | {"mode": row.mode, "system": row.settings.find_system(model.config, row.mode)}
            | {"dtype": model.compute.dtype}
            | row.flatten_guidance(),
            costs={**trajectory.costs, **seconds},
            latents=dict(row.latents) if row.settings.keep_latents else None,
        )

    def copy_rows(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Replace all rows: slot n becomes a copy of slot ``slots[n]`` with ``seeds[n]``.

        Raises:
          SampleError: there are more than the batch has slots.
        """
        self.settle()
        if len(slots) > self.size:
            raise SampleError(f"copy_rows: {len(slots)} rows into a batch of {self.size}")
        index = np.arange(self.size, dtype=np.int32)
        index[: len(slots)] = slots
        self.rows = {n: self.rows[slot].copy(seed) for n, (slot, seed) in enumerate(zip(slots, seeds, strict=True))}
        self.state = self._call(kernels.copy_rows, (), self.state, index)

    def list_active(self) -> list[int]:
        """Return the slots of the trajectories that have not ended."""
        return sorted(slot for slot, row in self.rows.items() if row.stop_reason is None)

    def list_ended(self) -> list[int]:
        """Return the slots of the trajectories that have ended."""
        return sorted(slot for slot, row in self.rows.items() if row.stop_reason is not None)

    def list_due(self, what: str) -> list[int]:
        """Return the slots whose next segment is a "text" or an "image"."""
        self.settle()
        return [slot for slot in self.list_active() if self.rows[slot].due == what]

    def drain_events(self) -> Iterator[Event]:
        """Yield the stages that were finished since the last call."""
        while self._events:
            yield self._events.popleft()

    def step(self) -> None:
        """Write the next text of all rows that are due to write; if none is, draw one group of images.

        Texts come first, so that more images are due at the same time.
        """
        if texts := self.list_due("text"):
            self.write_texts(texts)
        elif images := self.list_due("image"):
            self.draw_images(max((group for _, group in self._group(images, self._get_image_kind)), key=len))
        self.settle()

    # Reading and switches.

    def settle(self) -> None:
        """Read all that is pending and decide for every row what comes next."""
        for slot in self.list_active():
            if self.rows[slot].must_end:
                self.rows[slot].pending.clear()
                self.rows[slot].follow_switch(END, self.rows[slot].settings)
        while slots := [slot for slot in self.list_active() if self.rows[slot].pending]:
            for _, group in self._group(slots, lambda row: pending.get_reading_key(row.pending[0])):
                parts = [self.rows[slot].pending.popleft() for slot in group]
                if pieces := [part for part in parts if isinstance(part, pending.Piece)]:
                    self._read_pieces(group, pieces)
                else:
                    self._read_pictures(group, [part for part in parts if isinstance(part, pending.Picture)])
        undecided = [slot for slot in self.list_active() if self.rows[slot].due is None]
        for settings, group in self._group(undecided, lambda row: row.settings.text):
            self._decide(settings, group)

    def _read_pieces(self, slots: list[int], pieces: list[pending.Piece]) -> None:
        """Add one piece of text to the contexts of each row."""
        missing = self.settings.batch_size - len(slots)
        padded = [piece.ids + [0] * (pending.PIECE_TOKENS - len(piece.ids)) for piece in pieces]
        ids = np.array(padded + [[0] * pending.PIECE_TOKENS] * missing, np.int32)
        count = np.array([len(piece.ids) for piece in pieces] + [0] * missing, np.int32)
        ends_view = np.array([piece.ends_view for piece in pieces] + [False] * missing)
        rows = self._pad_rows(slots)
        for context in pieces[0].contexts:
            static = (self.model.static, context)
            self.state = self._call(
                kernels.prefill, static, self.model.params, self.state, rows, (ids, count, ends_view)
            )
        if "full" in pieces[0].contexts:
            for slot, piece in zip(slots, pieces):
                self.rows[slot].costs["prefilled_tokens"] += len(piece.ids)

    def _read_pictures(self, slots: list[int], pictures: list[pending.Picture]) -> None:
        """Add one picture to the full context of each row."""
        grid, given = pictures[0].grid, pictures[0].given
        padding = [pictures[0].image] * (self.settings.batch_size - len(slots))
        images = prepare_images(self.model.config, [picture.image for picture in pictures] + padding, given)
        static, rows = (self.model.static, grid, self.model.image_switches), self._pad_rows(slots)
        self.state = self._call(kernels.read_image, static, self.model.params, self.state, rows, images)
        for slot in slots:
            self.rows[slot].costs["prefilled_tokens"] += grid.cache_tokens

    def _decide(self, settings: TextSettings, slots: list[int]) -> None:
        """Set what follows in every row: what the grammar prescribes, or the model's choice among what it allows."""
        automaton = self.model.automaton
        allowed = [self.rows[slot].find_allowed_switches(automaton) for slot in slots]
        chosen = np.argmax(allowed, axis=1)
        if np.sum(allowed, axis=1).max() > 1:
            padded = np.array(allowed + [allowed[0]] * (self.settings.batch_size - len(slots)))
            tokens, rows = np.asarray(automaton.switch_tokens), self._pad_rows(slots)
            chosen = self._call(kernels.pick_switch, (settings,), self.state, rows, tokens, padded)
            check_finite("reading a segment", np.asarray(chosen)[: len(slots)] >= 0)
        for slot, choice in zip(slots, np.asarray(chosen)):
            self.rows[slot].follow_switch(SWITCHES[choice], self.rows[slot].settings)

    # Texts.

    def write_texts(self, slots: Sequence[int]) -> None:
        """Let the model write the next text of each row. Raises SampleError where a trajectory has ended."""
        writing = self.begin_texts(slots)
        self.advance_texts(writing)
        self.finish_texts(writing)

    def begin_texts(self, slots: Sequence[int]) -> Writing:
        """Begin the next text of each row, to be written in parts. Raises as ``write_texts``."""
        self._check_active(slots)
        groups = []
        for settings, group in self._group(slots, lambda row: row.settings.text):
            rows = [self.rows[slot] for slot in group]
            states = [START_AFTER[row.kinds[-1]] if row.mode == "process" else "free" for row in rows]
            states += states[:1] * (self.settings.batch_size - len(group))
            starts = np.array([self.model.automaton.starts[state] for state in states], np.int32)
            groups.append(TextGroup(settings, group, self._pad_rows(group), starts))
        return Writing(self.model, self._call, groups)

    def advance_texts(self, writing: Writing, to: int = TO_THE_END) -> None:
        """Write every text to its end, or up to step ``to`` of the loop."""
        self.state = writing.advance(self.state, to)

    def finish_texts(self, writing: Writing) -> None:
        """Record the texts, which have all closed. Rows whose text was dropped must be released."""
        rewound = np.zeros(self.size, np.int32)
        for group in writing.groups:
            self._finish_group(group, rewound)
        if rewound.any():
            self.state = self._call(kernels.rewind, (), self.state, rewound)

    def _finish_group(self, group: TextGroup, rewound: np.ndarray) -> None:
        """Record one group; add the tokens that the contexts must forget to ``rewound``."""
        model, automaton, written = self.model, self.model.automaton, group.written
        if not group.slots:
            return
        assert written is not None
        index = group.rows.index.tolist()
        places = [index.index(slot) for slot in group.slots]
        check_finite("writing a text", np.isfinite(np.asarray(written.logits)[places]))
        tokens, count, state, limited = (
            np.asarray(values) for values in (written.tokens, written.count, written.state, written.limited)
        )
        for n, slot in zip(places, group.slots):
            row, ids = self.rows[slot], tokens[n, : count[n]].tolist()
            kind, text = automaton.kind_of(int(state[n])), model.tokenizer.decode(ids)
            name = name_text_stage(row.mode, text) if kind == "free" else "plan" if kind == "plan" else "inspect"
            row.costs["text_tokens"] += len(ids)
            row.costs["prefilled_tokens"] += len(ids) + 2
            row.costs["texts_cut"] += bool(limited[n])
            row.costs["seconds"] += group.seconds
            row.text_cut = bool(limited[n])
            if not self._add_written(row, TextStage(name, text, seconds=group.seconds, tokens=len(ids), ids=ids)):
                rewound[slot] = len(ids) + 2

    def _add_written(self, row: BatchRow, stage: TextStage) -> bool:
        """Record a text that the full context holds. Return False where the reviewer's text replaces it."""
        decision = self._review_stage(row, stage)
        if isinstance(decision, Change):
            if decision.text is None:
                raise SampleError(f"review of a {stage.stage}: Change needs a text")
            row.text_cut = False
            self._add_text(row, self._make_outside_text(row, decision.text))
            return False
        self._add_text(row, stage, in_full=True)
        if isinstance(decision, Stop):
            row.stop_reason = "stopped"
        return True

    def add_texts(self, texts: Mapping[int, str]) -> None:
        """Add texts from outside, by slot, as if the model had written them.

        Raises:
          TrajectoryError: the grammar forbids one.
          SampleError: one is longer than the model's may be, or its trajectory has ended.
        """
        self._check_active(texts)
        for slot, text in texts.items():
            self._add_text(self.rows[slot], self._make_outside_text(self.rows[slot], text))

    def _add_text(self, row: BatchRow, stage: TextStage, in_full: bool = False) -> None:
        """Record a text; the contexts that do not hold it yet read it later."""
        row.add_text(stage)
        contexts = pending.choose_contexts(stage.stage, self._has_texts, in_full)
        row.pending.extend(pending.split_text(self.model, pending.encode_text(self.model.tokenizer, stage), contexts))
        self._events.append(Event(row.number, stage, None))
        self._progress(f"seed {row.seed}: {stage.stage}, {stage.tokens} tokens, {stage.seconds:.1f} s: {stage.text!r}")

    def _make_outside_text(self, row: BatchRow, text: str) -> TextStage:
        tokens, limit = len(self.model.tokenizer.encode(text)), row.settings.text.max_tokens
        if tokens > limit:
            raise SampleError(
                f"a text from outside has {tokens} tokens, at most {limit} are allowed: {text[:40]!r}; shorten it or "
                "raise max_tokens"
            )
        return TextStage(name_text_stage(row.mode, text), text, tokens=tokens, origin="outside")

    # Images.

    def draw_images(self, slots: Sequence[int]) -> None:
        """Let the model draw the next image of each row. Raises SampleError where a trajectory has ended."""
        self.finish_images(self.begin_images(slots))

    def begin_images(self, slots: Sequence[int]) -> Denoising:
        """Begin the next image of each row, to be drawn in parts. Raises as ``draw_images``."""
        self._check_active(slots)
        groups = self._group(slots, self._get_image_kind)
        groups = [ImageGroup(kind, group, self._pad_rows(group)) for kind, group in groups]
        return Denoising(self.model, self._call, self.state, groups)

    def finish_images(self, denoising: Denoising) -> None:
        """Draw the remaining steps; record the images, and the costs of the dropped ones too."""
        drawn = denoising.finish()
        for slot, costs in denoising.costs.items():
            for name, value in costs.items():
                self.rows[slot].costs[name] += value
        for slot, (image, latents, seconds, steps) in drawn.items():
            row, kind = self.rows[slot], self._get_image_kind(self.rows[slot])
            tokens = kind.grid.cache_tokens
            stage = row.make_image_stage(image, tokens, seconds, steps)
            decision = self._review_stage(row, stage, image)
            if isinstance(decision, Change):
                if decision.image is None:
                    raise SampleError(f"review of a {stage.stage}: Change needs an image")
                self._add_outside_image(row, decision.image)
                continue
            row.guidance[stage.file] = describe_guidance(kind.settings, kind.image_guidance)
            if row.settings.keep_latents:
                row.latents[stage.file] = latents
            self._add_image(row, stage, image)
            if isinstance(decision, Stop):
                row.stop_reason = "stopped"

    def add_images(self, images: Mapping[int, PIL.Image.Image]) -> None:
        """Add images from outside, by slot, as if the model had drawn them. Raises as ``add_texts``."""
        self._check_active(images)
        for slot, image in images.items():
            self._add_outside_image(self.rows[slot], image)

    def _add_outside_image(self, row: BatchRow, image: PIL.Image.Image) -> None:
        grid = self._get_image_kind(row).grid
        height, width = grid.pixels
        if image.size != (width, height):
            raise SampleError(
                f"an image from outside is {image.width}x{image.height} pixels, this trajectory's are "
                f"{width}x{height}; resize it"
            )
        image = to_rgb(image)
        self._add_image(row, row.make_image_stage(image, grid.cache_tokens, origin="outside"), image)

    def _add_image(self, row: BatchRow, stage: ImageStage, image: PIL.Image.Image) -> None:
        """Record an image; the full context reads it later."""
        row.add_image(stage, image)
        row.pending.append(pending.make_picture(self.model, image, row.mode, given=False))
        self._events.append(Event(row.number, stage, image))
        self._progress(f"seed {row.seed}: {stage.stage}, {image.width}x{image.height}, {stage.seconds:.1f} s")

    def _get_image_kind(self, row: BatchRow) -> ImageKind:
        """Return the grid, settings and guidance of a row's next image."""
        config, height, width = self.model.config, row.settings.height, row.settings.width
        if not height and row.images:
            last = next(stage for stage in reversed(row.stages) if isinstance(stage, ImageStage))
            height, width = make_picture_grid(config, row.images[-1], last.stage == "given").pixels
        settings = row.settings.select_image_settings(row.next_image)
        image_guidance = bool(row.images) and min(settings.text_scale, settings.image_scale) > 1
        return ImageKind(make_grid(config, height, width), settings, image_guidance)

    # Groups of rows and calls.

    def _check_active(self, slots: Collection[int]) -> None:
        """Settle; raise SampleError where a trajectory has ended: its contexts have no room for more."""
        self.settle()
        if ended := sorted({*slots} - {*self.list_active()}):
            raise SampleError(f"slots {ended}: no active trajectory; choose from TrajectoryBatch.list_active()")

    def _review_stage(self, row: BatchRow, stage: Stage, image: PIL.Image.Image | None = None) -> Change | Stop | None:
        return self._review(row.number, stage, image) if self._review else None

    def _group(self, slots: Iterable[int], key: Callable[[BatchRow], _Key]) -> list[tuple[_Key, list[int]]]:
        """Split slots by the key of their rows, into groups of at most ``batch_size``."""
        by_key = collections.defaultdict(list)
        for slot in slots:
            by_key[key(self.rows[slot])].append(slot)
        width = self.settings.batch_size
        return [(k, s[first : first + width]) for k, s in by_key.items() for first in range(0, len(s), width)]

    def _pad_rows(self, slots: list[int]) -> kernels.RowGroup:
        """Return the rows in these slots, at most ``batch_size``, as compiled functions take them."""
        missing, rows = self.settings.batch_size - len(slots), [self.rows[slot] for slot in slots]
        return kernels.RowGroup(
            np.array([*slots, *[self.size] * missing], np.int32),
            np.array([row.seed for row in rows] + [0] * missing, np.uint32),
            np.array([len(row.stages) for row in rows] + [0] * missing, np.uint32),
        )

    def _call(self, function: Any, static: tuple, *args: Any) -> Any:
        """Return ``function(*static, *args)``; compile it at its first call and report that."""
        watch = Stopwatch(self.model.compiler)
        try:
            with self.model.enter_mesh():
                result = self.model.compiler(function, static, *args)
        except jax.errors.JaxRuntimeError as fault:
            if "RESOURCE_EXHAUSTED" not in str(fault):
                raise
            raise SampleError(
                f"no room on the device for {self.size} trajectories ({fault}); lower max_images, max_tokens, the "
                "image size or batch_size"
            ) from fault
        if watch.compiling:
            self._progress(f"compiled {function.__name__} in {watch.compiling:.1f} s")
        return result

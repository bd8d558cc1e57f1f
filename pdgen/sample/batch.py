"""Trajectories that grow together: their contexts on the device, their records on the host, one step at a time.

``Sampler`` drives a batch until every trajectory has ended. A strategy drives it by hand: writes texts or brings its
own, draws images or stops half way to look at them, copies the best rows over the others.
"""

import collections
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import PIL.Image

from pdgen.flow.denoise import ImageSettings
from pdgen.sample import steps
from pdgen.sample.compiled import Stopwatch
from pdgen.sample.drawing import Drawing
from pdgen.sample.image import ImageGrid, grid_of, image_grid, prepare
from pdgen.sample.rows import PIECE, Picture, Piece, Row, pieces, text_stage
from pdgen.sample.settings import SampleError, SampleSettings
from pdgen.sequence.grammar import KINDS, START_AFTER, SWITCHES
from pdgen.sequence.images import to_rgb
from pdgen.sequence.modes import END
from pdgen.sequence.trajectory import ImageStage, Stage, TextStage, Trajectory, image_file

if TYPE_CHECKING:
    from pdgen.sample.engine import Sampler


class Change(NamedTuple):
    """A reviewer's own text or image in the place of the model's."""

    text: str | None = None
    image: PIL.Image.Image | None = None


class Stop(NamedTuple):
    """A reviewer ends the trajectory; the stage reviewed is kept."""


class Event(NamedTuple):
    """A stage is done. ``row``: number of the trajectory; ``image``: of an image stage."""

    row: int
    stage: Stage
    image: PIL.Image.Image | None


Review = Callable[[int, Stage, PIL.Image.Image | None], Change | Stop | None]


class Batch:
    """Some trajectories on their way.

    A row is named by its slot, from 0. All that takes slots works on them in groups of ``settings.together``.

    Args:
      sampler: the model.
      settings: how; ``together`` must be set.
      slots: rows that there is room for.
      capacity: tokens of one row's context, with and without images; see ``capacity.capacity``.
      review: sees every stage that the model has drawn.
      progress: called with a line after every segment and every compilation.

    Attributes:
      rows: by slot; None where no trajectory is.
      events: the stages done so far, for whoever takes them.
    """

    def __init__(
        self,
        sampler: "Sampler",
        settings: SampleSettings,
        slots: int,
        capacity: tuple[int, int],
        review: Review | None = None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.sampler, self.settings, self.review, self.progress = sampler, settings, review, progress
        self.model, tokens = (sampler.config, sampler.compute), sampler.tokenizer
        self.text_switches = (tokens.im_start, tokens.im_end)
        self.image_switches = (tokens.vision_start, tokens.vision_end)
        self.rows: list[Row | None] = [None] * slots
        self.events: collections.deque[Event] = collections.deque()
        self.watch = Stopwatch(sampler.compiler)
        self.has_texts = bool(capacity[1])
        self.state = sampler.empty_state(slots, capacity)

    # Trajectories come and go.

    def admit(self, starts: Mapping[int, tuple[int, Trajectory]]) -> None:
        """Puts trajectories, each with its number, into free slots; what they hold already is still to be read."""
        taken = np.zeros(len(self.rows), bool)
        for slot, (number, start) in starts.items():
            self.rows[slot] = Row(
                number, start, start.kinds, [*start.stages], [*start.images], dict(start.latents or {}), seed=start.seed
            )
            self.rows[slot].pending.extend(self._history(start))
            taken[slot] = True
        self.state = self.call(steps.clear, (), self.state, taken)

    def release(self, slot: int) -> Trajectory:
        """Frees a slot; returns the trajectory as it stands."""
        trajectory, self.rows[slot] = self.trajectory(slot), None
        return trajectory

    def trajectory(self, slot: int) -> Trajectory:
        """The trajectory in a slot as it stands."""
        sampler, row = self.sampler, self.rows[slot]
        times = {"batch_seconds": self.watch.seconds, "compile_seconds": self.watch.compiling}
        settings = self.settings.flat() | {"mode": row.mode, "dtype": sampler.compute.dtype}
        return row.trajectory(
            {
                "checkpoint": sampler.checkpoint,
                "model_hash": sampler.model_hash,
                "settings": settings,
                "costs": times,
                "latents": dict(row.latents) if self.settings.keep_latents else None,
            }
        )

    def take(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Slot n becomes a copy of slot ``slots[n]`` that goes on with ``seeds[n]``; there is room for as many rows.

        Raises:
          SampleError: there are more than the batch has slots.
        """
        self.settle()
        if len(slots) > len(self.rows):
            raise SampleError(f"take: {len(slots)} rows into a batch of {len(self.rows)}")
        index = np.arange(len(self.rows), dtype=np.int32)
        index[: len(slots)] = slots
        rows = [self.rows[slot].copy(seed) for slot, seed in zip(slots, seeds, strict=True)]
        self.rows = rows + [None] * (len(self.rows) - len(rows))
        self.state = self.call(steps.take, (), self.state, index)

    def going(self) -> list[int]:
        """Slots of the trajectories that have not ended."""
        return [slot for slot, row in enumerate(self.rows) if row and row.stop_reason is None]

    def ended(self) -> list[int]:
        """Slots of the trajectories that have."""
        return [slot for slot, row in enumerate(self.rows) if row and row.stop_reason is not None]

    def told(self) -> Iterable[Event]:
        """The stages done since the last time."""
        while self.events:
            yield self.events.popleft()

    def step(self) -> None:
        """The next text of all rows that write one, or else the next image of as many as are drawn together.

        Rows that write go first, so that those that draw next draw together.
        """
        if texts := self.due("text"):
            self.write(texts)
        elif images := self.due("image"):
            self.draw(max((group for _, group in self.groups(images, self.drawn_alike)), key=len))
        self.settle()

    def due(self, what: str) -> list[int]:
        """Slots whose next segment is a "text" or an "image"."""
        self.settle()
        return [slot for slot in self.going() if self.rows[slot].due == what]

    # What is finished is read.

    def settle(self) -> None:
        """Reads all that is still to be read, and decides for every row what comes next."""
        for slot in self.going():
            if self.rows[slot].over:
                self.rows[slot].pending.clear()
                self.rows[slot].follow(END, self.settings)
        while waiting := [slot for slot in self.going() if self.rows[slot].pending]:
            for (kind, *_), group in self.groups(waiting, lambda row: _reading(row.pending[0])):
                (self._read_text if kind == "text" else self._read_image)(group)
        for _, group in self.groups([s for s in self.going() if self.rows[s].due is None], lambda row: 0):
            self._decide(group)

    def _history(self, start: Trajectory) -> Iterable[Piece | Picture]:
        """All that stands in a trajectory, to be read."""
        if self.settings.system:
            yield from self._text(self.sampler.tokenizer.encode(self.settings.system), kept=True)
        images, prompt = iter(start.images), self.sampler.tokenizer.encode(start.prompt)
        for kind, stage in _in_order(start):
            if kind == "prompt":
                yield from self._text(prompt)
            elif isinstance(stage, ImageStage):
                yield self._picture(next(images), start.mode, stage)
            else:
                yield from self._text(self._ids(stage), stage.stage)

    def _ids(self, stage: TextStage) -> list[int]:
        """A text's tokens: those that the model wrote as long as they spell it."""
        tokenizer = self.sampler.tokenizer
        return stage.ids if stage.ids and tokenizer.decode(stage.ids) == stage.text else tokenizer.encode(stage.text)

    def _text(self, ids: list[int], stage: str = "prompt", kept: bool = False, full: bool = True) -> list:
        """The pieces of a text with its switch tokens; image guidance never sees a thought."""
        opening, closing = self.text_switches
        contexts = ("full",) * full + ("texts",) * (self.has_texts and stage != "thought")
        return pieces([opening, *ids, closing], contexts, kept) if contexts else []

    def _picture(self, image: PIL.Image.Image, mode: str, stage: ImageStage) -> Picture:
        given = stage.stage == "given"
        return Picture(image, grid_of(self.sampler.config, image, given, looked_at=mode == "understand"), given)

    def _read_text(self, slots: list[int]) -> None:
        """The next piece of each row's text."""
        now = [self.rows[slot].pending.popleft() for slot in slots]
        missing = self.settings.together - len(slots)
        padded = [piece.ids + [0] * (PIECE - len(piece.ids)) for piece in now]
        ids = np.array(padded + [[0] * PIECE] * missing, np.int32)
        count = np.array([len(piece.ids) for piece in now] + [0] * missing, np.int32)
        kept = np.array([piece.kept for piece in now] + [False] * missing)
        for context in now[0].contexts:
            self.state = self.call(
                steps.prefill,
                (self.model, context),
                self.sampler.params,
                self.state,
                self.group(slots),
                (ids, count, kept),
            )
        if "full" in now[0].contexts:
            for slot, piece in zip(slots, now):
                self.rows[slot].costs["prefilled_tokens"] += len(piece.ids)

    def _read_image(self, slots: list[int]) -> None:
        now = [self.rows[slot].pending.popleft() for slot in slots]
        filled = [one.image for one in now] + [now[0].image] * (self.settings.together - len(now))
        self.state = self.call(
            steps.read,
            (self.model, now[0].grid, self.image_switches),
            self.sampler.params,
            self.state,
            self.group(slots),
            prepare(self.sampler.config, filled, now[0].given),
        )
        for slot in slots:
            self.rows[slot].costs["prefilled_tokens"] += now[0].grid.cache_tokens

    def _decide(self, slots: list[int]) -> None:
        """What follows in every row: what the grammar prescribes, or the model's choice among what it allows."""
        automaton = self.sampler.automaton
        choices = [self.rows[slot].choices(automaton) for slot in slots]
        chosen = np.argmax(choices, axis=1)
        if np.sum(choices, axis=1).max() > 1:
            allowed = np.array(choices + [choices[0]] * (self.settings.together - len(slots)))
            tokens = np.asarray(automaton.switch_tokens)
            rows = self.group(slots)
            chosen = self.call(steps.pick_switch, (self.settings.text,), self.state, rows, tokens, allowed)
        for slot, choice in zip(slots, np.asarray(chosen)):
            self.rows[slot].follow(SWITCHES[choice], self.settings)

    # New segments.

    def _ready(self, slots: Iterable[int]) -> None:
        """Settles; raises SampleError where a row has ended, for which no room is kept."""
        self.settle()
        if ended := sorted({*slots} - {*self.going()}):
            raise SampleError(f"slots {ended}: no trajectory there goes on; choose from Batch.going()")

    def write(self, slots: Sequence[int]) -> None:
        """The model writes the next text of each of these rows. Raises SampleError where one has ended."""
        self._ready(slots)
        for _, group in self.groups(slots, lambda row: 0):
            self._write(group)

    def _write(self, slots: list[int]) -> None:
        sampler, automaton, watch = self.sampler, self.sampler.automaton, Stopwatch(self.sampler.compiler)
        starts = [
            automaton.starts[START_AFTER[row.kinds[-1]] if row.mode == "process" else "free"]
            for row in map(self.rows.__getitem__, slots)
        ]
        starts = np.array(starts + starts[:1] * (self.settings.together - len(slots)), np.int32)
        self.state, written = self.call(
            steps.write_text,
            (self.model, self.settings.text, self.text_switches),
            sampler.params,
            self.state,
            self.group(slots),
            (sampler.grammar, starts),
        )
        tokens, count, state, limited = (np.asarray(x) for x in written[:4])
        back, seconds = np.zeros(len(self.rows), np.int32), watch.seconds
        for n, slot in enumerate(slots):
            row, ids = self.rows[slot], tokens[n, : count[n]].tolist()
            kind, text = KINDS[automaton.kind[state[n]]], sampler.tokenizer.decode(ids)
            name = text_stage(row.mode, text) if kind == "free" else "plan" if kind == "plan" else "inspect"
            stage = TextStage(name, text, seconds=seconds, tokens=len(ids), ids=ids)
            row.costs["text_tokens"] += len(ids)
            row.costs["prefilled_tokens"] += len(ids) + 2
            row.costs["texts_cut"] += bool(limited[n])
            row.costs["seconds"] += seconds
            row.cut = bool(limited[n])
            if not self._add_text(slot, stage, self._reviewed(row, stage)):
                back[slot] = len(ids) + 2
        if back.any():
            self.state = self.call(steps.rewind, (), self.state, back)

    def _add_text(self, slot: int, stage: TextStage, verdict: Change | Stop | None) -> bool:
        """Records a text that the context holds; False where the reviewer's own takes its place."""
        row, changed = self.rows[slot], isinstance(verdict, Change)
        if changed:
            stage, row.cut = self._outside(row, verdict.text), False
        row.pending.extend(self._text(self._ids(stage), stage.stage, full=changed))
        row.add_text(stage)
        self._done(row, stage, None, verdict)
        return not changed

    def _outside(self, row: Row, text: str) -> TextStage:
        tokens = len(self.sampler.tokenizer.encode(text))
        if tokens > self.settings.text.max_tokens:
            raise SampleError(
                f"a text from outside has {tokens} tokens, at most {self.settings.text.max_tokens} are "
                f"allowed: {text[:40]!r}; shorten it or raise max_tokens"
            )
        return TextStage(text_stage(row.mode, text), text, tokens=tokens, origin="outside")

    def add_texts(self, texts: Mapping[int, str]) -> None:
        """Texts from outside, by slot, as if the model had written them.

        Raises:
          TrajectoryError: one may not stand where it would.
          SampleError: one is longer than the model's may be, or its row has ended.
        """
        self._ready(texts)
        for slot, text in texts.items():
            row = self.rows[slot]
            stage = self._outside(row, text)
            row.add_text(stage)
            row.pending.extend(self._text(self._ids(stage), stage.stage))
            self._done(row, stage, None)

    def draw(self, slots: Sequence[int]) -> None:
        """The model draws the next image of each of these rows. Raises SampleError where one has ended."""
        drawing = self.begin(slots)
        drawing.advance()
        drawing.finish()

    def begin(self, slots: Sequence[int]) -> Drawing:
        """The next image of each of these rows as noise, to be drawn in stretches. Raises like ``draw``."""
        self._ready(slots)
        return Drawing(self, slots)

    def add_images(self, images: Mapping[int, PIL.Image.Image]) -> None:
        """Images from outside, by slot, as if the model had drawn them. Raises like ``add_texts``."""
        self._ready(images)
        for slot, image in images.items():
            self._add_image(slot, to_rgb(image), {"origin": "outside"})

    def add_drawn(self, slot: int, image: PIL.Image.Image, latents: np.ndarray, values: dict[str, Any]) -> None:
        """Records an image that the model has drawn, or the reviewer's in its place; ``values`` go into its stage."""
        row = self.rows[slot]
        name = row.next_image
        shown = ImageStage(name, image_file(len(row.images) + 1, name), image.width, image.height, **values)
        verdict = self._reviewed(row, shown, image)
        if isinstance(verdict, Change):
            image, values = to_rgb(verdict.image), {"origin": "outside"}
        elif self.settings.keep_latents:
            row.latents[shown.file] = latents
        self._add_image(slot, image, values, verdict)

    def _add_image(self, slot: int, image: PIL.Image.Image, values: dict, verdict: Change | Stop | None = None) -> None:
        row = self.rows[slot]
        height, width = self.grid(row).pixels
        if image.size != (width, height):
            raise SampleError(
                f"an image from outside is {image.width}x{image.height} pixels, this trajectory's are "
                f"{width}x{height}; resize it"
            )
        stage = row.add_image(image, tokens=self.grid(row).cache_tokens, **values)
        row.pending.append(self._picture(image, row.mode, stage))
        self._done(row, stage, image, verdict)

    def _reviewed(self, row: Row, stage: Stage, image: PIL.Image.Image | None = None) -> Change | Stop | None:
        """What the reviewer says. Raises SampleError where he changes a text into an image or the other way round."""
        verdict = self.review(row.number, stage, image) if self.review else None
        if isinstance(verdict, Change) and (verdict.text if image is None else verdict.image) is None:
            raise SampleError(f"review of a {stage.stage}: Change needs {'a text' if image is None else 'an image'}")
        return verdict

    def _done(
        self, row: Row, stage: Stage, image: PIL.Image.Image | None, verdict: Change | Stop | None = None
    ) -> None:
        """Tells of a stage that stands in its row now."""
        if isinstance(verdict, Stop):
            row.stop_reason = "stopped"
        self.events.append(Event(row.number, stage, image))
        what = f"{stage.tokens} tokens" if image is None else f"{image.width}x{image.height}"
        text = f": {stage.text!r}" if image is None else ""
        self.progress(f"seed {row.seed}: {stage.stage}, {what}, {stage.seconds:.1f} s{text}")

    # How rows are put together.

    def grid(self, row: Row) -> ImageGrid:
        """The grid of the image that a row draws next."""
        config, (height, width) = self.sampler.config, (self.settings.height, self.settings.width)
        if not height and row.images:
            last = next(stage for stage in reversed(row.stages) if isinstance(stage, ImageStage))
            height, width = grid_of(config, row.images[-1], last.stage == "given", False).pixels
        side = config.latent_stride * config.max_latent_size
        return image_grid(config, height or side, width or side)

    def image_settings(self, row: Row) -> tuple[ImageSettings, bool]:
        """How a row's next image is denoised, and whether images guide it."""
        settings = self.settings.of_image(row.next_image)
        return settings, row.has_image and min(settings.text_scale, settings.image_scale) > 1

    def drawn_alike(self, row: Row) -> tuple[ImageGrid, ImageSettings, bool]:
        """What rows must have in common for their next images to be drawn together, see ``Drawing``."""
        return self.grid(row), *self.image_settings(row)

    def groups(self, slots: Iterable[int], key: Callable[[Row], Hashable]) -> list[tuple[Any, list[int]]]:
        """Each key with slots of it, at most ``together`` at a time."""
        alike = collections.defaultdict(list)
        for slot in slots:
            alike[key(self.rows[slot])].append(slot)
        width = self.settings.together
        return [(k, s[first : first + width]) for k, s in alike.items() for first in range(0, len(s), width)]

    def group(self, slots: list[int]) -> steps.Rows:
        """The rows in these slots, at most ``together``, as compiled functions take them."""
        missing = self.settings.together - len(slots)
        rows = [self.rows[slot] for slot in slots]
        return steps.Rows(
            np.array([*slots, *[len(self.rows)] * missing], np.int32),
            np.array([row.seed for row in rows] + [0] * missing, np.uint32),
            np.array([len(row.stages) for row in rows] + [0] * missing, np.uint32),
        )

    def call(self, function: Callable, static: tuple, *args: Any) -> Any:
        """``function(*static, *args)``, compiled at its first call; progress tells of that."""
        watch = Stopwatch(self.sampler.compiler)
        try:
            with self.sampler.on_mesh():
                result = self.sampler.compiler(function, static, *args)
        except jax.errors.JaxRuntimeError as fault:
            if "RESOURCE_EXHAUSTED" not in str(fault):
                raise
            raise SampleError(
                f"no room on the device for {len(self.rows)} trajectories ({fault}); lower max_images, "
                "max_tokens, the image size or together"
            ) from fault
        if watch.compiling:
            self.progress(f"compiled {function.__name__} in {watch.compiling:.1f} s")
        return result


def _reading(one: Piece | Picture) -> tuple:
    """What rows must have in common to be read together."""
    return ("image", one.grid, one.given) if isinstance(one, Picture) else ("text", one.contexts)


def _in_order(trajectory: Trajectory) -> Iterable[tuple[str, Stage | None]]:
    """Each segment's kind and stage; None for the prompt."""
    stages = iter(trajectory.stages)
    for kind in trajectory.kinds:
        yield kind, None if kind == "prompt" else next(stages)

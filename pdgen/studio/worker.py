"""The thread that owns the sampler and its one batch, and serves the queue of a studio.

Texts are written and pictures drawn in stretches. Between two of them it reports how far they are, and drops the rows
that are no longer wanted.
"""

import dataclasses
import io
import threading
import traceback

import PIL.Image

from pdgen.files import Log
from pdgen.sample.batch import TrajectoryBatch
from pdgen.sample.capacity import check_memory
from pdgen.sample.image import make_grid
from pdgen.sample.model import Model
from pdgen.sample.settings import SampleSettings
from pdgen.sample.strategies.task import sum_costs
from pdgen.sequence.trajectory import ImageStage, Trajectory
from pdgen.studio import api
from pdgen.studio.studio import Job, Studio

TOKENS = 4  # of a stretch of a text, once it has begun
PARTS = 4  # of a picture's schedule; each is compiled on its own
_WARM_UP_STAGES = 5  # plan, picture, inspection, plan, and a picture that another one guides
_WAIT = 1.0  # seconds between looks for clients that went away


def choose_capacity(model: Model, settings: SampleSettings, slots: int) -> tuple[int, int]:
    """Choose the room of a row: for the default settings with the maximum of given images.

    Raises:
      SampleError: so many rows do not fit into the memory.
    """
    height, width = make_grid(model.config, settings.height, settings.width).pixels
    stages = [ImageStage("given", f"{n}.png", width, height) for n in range(1, api.MAX_GIVEN + 1)]
    images = [PIL.Image.new("RGB", (width, height))] * len(stages)
    longest = Trajectory(prompt="x", stages=stages, images=images, stop_reason=None, seed=0, checkpoint="")
    return check_memory(model, settings, [longest], slots)


class Worker:
    """Draws what waits in the studio's queue, in a thread of its own.

    Args:
      slots: trajectories at a time.
      log: takes a line after every compilation and for every fault.
    """

    def __init__(self, studio: Studio, slots: int, log: Log) -> None:
        self._studio, self._slots, self._log = studio, slots, log
        self._thread = threading.Thread(target=self._run, name="studio worker", daemon=True)
        self._jobs: dict[int, Job] = {}  # by slot
        self._spent: dict[int, dict[str, float]] = {}  # by slot, the costs before its admission
        self._count = 0
        self._batch = self._make_batch()

    def start(self) -> None:
        """Start the thread: it compiles the model, then serves the queue."""
        self._thread.start()

    def close(self) -> None:
        """Stop at the next stretch and wait for the end. Finished stages are saved."""
        self._studio.close()
        self._thread.join()

    def _make_batch(self) -> TrajectoryBatch:
        studio = self._studio
        return TrajectoryBatch(
            studio.sampler.model, studio.settings, self._slots, studio.capacity, progress=self._note_compiling
        )

    def _note_compiling(self, line: str) -> None:
        if line.startswith("compiled"):
            self._log(line)
            if not self._studio.ready:
                self._studio.set_status(f"The model is being compiled: {line}.")

    def _run(self) -> None:
        try:
            self._warm_up()
        except Exception as fault:
            self._recover(fault)
        self._studio.set_status("", ready=True)
        while self._await_work():
            try:
                self._step()
            except Exception as fault:  # of one trajectory or of the device; the others and the server continue
                self._recover(fault)

    def _warm_up(self) -> None:
        """Compile what a trajectory with the default settings calls, by sampling one that nobody sees."""
        studio, model = self._studio, self._studio.sampler.model
        start = studio.sampler.make_starts(["a picture"], [0], studio.settings)[0]
        job = Job("", start, studio.settings, left=_WARM_UP_STAGES, progress="running")
        self._admit([job])
        while self._jobs and not studio.closing:
            self._step()
        self._log(f"{model.name}: compiled in {model.compiler.seconds:.1f} s")

    def _await_work(self) -> bool:
        """Wait until there is something to do, and admit what waits; return False when the studio closes."""
        studio = self._studio
        with studio.changed:
            while not (studio.closing or studio.waiting or self._jobs):
                studio.changed.wait(_WAIT)
            if studio.closing:
                for slot in [*self._jobs]:
                    self._release(slot)
                return False
            taken = studio.take_waiting(self._slots - len(self._jobs))
        self._admit(taken)
        return True

    def _admit(self, jobs: list[Job]) -> None:
        free = [slot for slot in range(self._slots) if slot not in self._jobs]
        for slot, job in zip(free, jobs):
            # Known before the batch takes it, so that a fault there is a fault of this trajectory.
            self._jobs[slot], self._spent[slot] = job, dict(job.trajectory.costs)
            self._batch.admit({slot: (slot, job.trajectory)}, job.settings)

    def _step(self) -> None:
        """Write a stretch of texts until they are finished, or draw pictures; then record them."""
        self._drop_unwanted()
        batch = self._batch
        if texts := batch.list_due("text"):
            self._write(texts)
        elif images := batch.list_due("image"):
            self._draw(images)
        finished = [event.row for event in batch.drain_events()]
        self._drop_unwanted()
        batch.settle()
        for slot in finished:
            if slot in self._jobs:
                self._record(slot)
        for slot in [slot for slot in batch.list_ended() if slot in self._jobs]:
            self._record(slot)
            self._release(slot)

    def _write(self, slots: list[int]) -> None:
        studio, batch, tokenizer = self._studio, self._batch, self._studio.sampler.model.tokenizer
        writing = batch.begin_texts(slots)
        for slot in slots:
            studio.report("text", self._jobs[slot], text="", tokens=0)
        while not writing.is_done:
            batch.advance_texts(writing, writing.steps + (TOKENS if writing.steps else 1))
            for slot, ids in writing.read().items():
                studio.report("text", self._jobs[slot], text=tokenizer.decode(ids), tokens=len(ids))
            writing.keep(self._find_wanted(writing.slots))
        batch.finish_texts(writing)

    def _draw(self, slots: list[int]) -> None:
        studio, batch = self._studio, self._batch
        denoising = batch.begin_images(slots)
        steps = {slot: batch.rows[slot].settings.image.num_timesteps - 1 for slot in slots}
        for slot in slots:
            studio.report("preview", self._jobs[slot], step=0, steps=steps[slot], url=None)
        while denoising.slots and denoising.step < denoising.steps:
            denoising.advance(min(denoising.step + -(-denoising.steps // PARTS), denoising.steps))
            if denoising.step < denoising.steps:
                self._preview(denoising.decode_estimates(), denoising.step, steps)
            wanted = self._find_wanted(denoising.slots)
            if len(wanted) < len(denoising.slots):
                denoising.keep(wanted)
        batch.finish_images(denoising)

    def _preview(self, pictures: dict[int, PIL.Image.Image], step: int, steps: dict[int, int]) -> None:
        for slot, picture in pictures.items():
            job, buffer = self._jobs[slot], io.BytesIO()
            picture.save(buffer, "WEBP", quality=90)
            job.preview = buffer.getvalue()
            url = f"/api/trajectories/{job.name}/preview?stage={len(job.trajectory.stages)}&step={step}"
            self._studio.report("preview", job, step=step, steps=steps[slot], url=url)

    def _record(self, slot: int) -> None:
        """Save what the slot's trajectory has; release it if it has run as far as it was asked to."""
        job, drawn = self._jobs[slot], self._batch.make_trajectory(slot)
        new = len(drawn.stages) - len(job.trajectory.stages)
        if not new and drawn.stop_reason == job.trajectory.stop_reason:
            return
        drawn = dataclasses.replace(drawn, costs=sum_costs([self._spent[slot], drawn.costs]))
        self._studio.update(job, drawn)
        if job.left and new:
            job.left -= new
            if job.left <= 0:
                self._release(slot)

    def _find_wanted(self, slots: list[int]) -> list[int]:
        return [slot for slot in slots if self._studio.is_wanted(self._jobs[slot])]

    def _drop_unwanted(self) -> None:
        for slot in {*self._jobs} - {*self._find_wanted([*self._jobs])}:
            self._release(slot)

    def _release(self, slot: int, fault: str = "") -> None:
        """Free a slot; its trajectory stays as it was saved last."""
        self._batch.rows.pop(slot, None)
        self._studio.pause(self._jobs.pop(slot), fault)

    def _recover(self, fault: Exception) -> None:
        """Begin with an empty batch; the trajectories that were running say why they stopped."""
        words = " ".join(str(fault).split()) or type(fault).__name__
        if not isinstance(fault, ValueError):
            words = f"the server failed ({type(fault).__name__}); its log says more. Run it again"
            self._log(traceback.format_exc())
        self._log(f"studio: {words}")
        for slot in [*self._jobs]:
            self._release(slot, words)
        self._batch = self._make_batch()

"""All trajectories of the studio, their queue and their events. The server changes them; the worker draws them."""

import collections
import dataclasses
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import PIL.Image

from pdgen.files import Log
from pdgen.sample.capacity import compute_capacity
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings, unflatten_settings
from pdgen.sample.strategies.task import derive_seed
from pdgen.sequence.images import ImageError, decode_image, image_size
from pdgen.sequence.trajectory import ImageStage, Stage, Trajectory
from pdgen.studio import api
from pdgen.studio.errors import StudioError
from pdgen.studio.events import EventLog
from pdgen.studio.store import Store

MAX_WAITING = 64  # trajectories in the queue
MAX_TRAJECTORIES = 10_000
GRACE = 20.0  # seconds that a client may be away before its trajectories stop
_FORGOTTEN = 3600.0  # seconds after which an absent client is forgotten
_FIXED = ("batch_size", "keep_latents")  # of the server, not of a request


@dataclasses.dataclass(eq=False)
class Job:
    """One trajectory of the studio.

    Attributes:
      name: of its folder.
      trajectory: as saved.
      settings: how it is continued.
      left: stages to run before it waits; 0 = to its end.
      progress: of ``api.Progress``, except that a trajectory that has ended is "idle" too.
      wanted: whether it continues; False stops it at the next stretch.
      client: whose it is; "" = of nobody whose absence would stop it.
      fault: why it stopped.
      preview: the picture that is being drawn, as WebP.
    """

    name: str
    trajectory: Trajectory
    settings: SampleSettings
    left: int = 0
    progress: str = "idle"
    wanted: bool = True
    client: str = ""
    fault: str = ""
    preview: bytes = b""


class Studio:
    """The trajectories in memory, their queue, and the log of events.

    All methods may be called from any thread.

    Args:
      settings: the defaults; ``batch_size`` is set.
      capacity: tokens of one row's contexts; a trajectory that needs more is refused.
    """

    def __init__(
        self, sampler: Sampler, store: Store, settings: SampleSettings, capacity: tuple[int, int], log: Log
    ) -> None:
        self.sampler, self.store, self.settings, self.capacity = sampler, store, settings, capacity
        self.events = EventLog()
        self.changed = threading.Condition(threading.RLock())
        self.waiting: collections.deque[Job] = collections.deque()
        self.closing = self.ready = False
        self.message = "The model is being compiled."
        self._clients: collections.Counter[str] = collections.Counter()
        self._last_seen: dict[str, float] = {}
        self._jobs: dict[str, Job] = {}
        for name, trajectory in store.load(log):
            self._jobs[name] = Job(name, trajectory, self._recall_settings(trajectory))

    def _recall_settings(self, trajectory: Trajectory) -> SampleSettings:
        try:
            settings = unflatten_settings({**self.settings.flatten(), **trajectory.settings, "mode": trajectory.mode})
        except ValueError:  # of another version
            settings = dataclasses.replace(self.settings, mode=trajectory.mode)
        return dataclasses.replace(settings, batch_size=self.settings.batch_size, keep_latents=False)

    # Reading.

    def find(self, name: str) -> Job:
        """Return a trajectory by its name. Raises StudioError (404)."""
        with self.changed:
            if job := self._jobs.get(name):
                return job
        raise StudioError(f"there is no trajectory {name[:40]!r}; GET /api/trajectories lists them", 404)

    def list_all(self) -> api.Listing:
        """List all trajectories."""
        with self.changed:
            cursor = self.events.cursor  # first: an event that is seen twice does no harm
            return api.Listing(trajectories=[self.summarize(job) for job in self._jobs.values()], cursor=cursor)

    def summarize(self, job: Job) -> api.Summary:
        """Summarize the state of a trajectory."""
        with self.changed:
            trajectory, parent = job.trajectory, job.name.rpartition("-")[0]
            done = job.progress == "idle" and trajectory.stop_reason is not None
            return api.Summary(
                id=job.name,
                prompt=trajectory.prompt,
                mode=trajectory.mode,
                seed=trajectory.seed,
                progress=msgspec.convert("done" if done else job.progress, api.Progress),
                place=self.waiting.index(job) + 1 if job in self.waiting else 0,
                stages=len(trajectory.stages),
                stop_reason=trajectory.stop_reason,
                parent=parent or None,
                stage=trajectory.parent.stage if trajectory.parent else None,
                fault=job.fault,
            )

    def view(self, name: str) -> api.TrajectoryView:
        """Return a whole trajectory. Raises StudioError (404)."""
        job = self.find(name)
        trajectory = job.trajectory
        return api.TrajectoryView(
            summary=self.summarize(job),
            stages=[view_stage(name, stage) for stage in trajectory.stages],
            settings=job.settings.flatten(),
            costs=dict(trajectory.costs),
        )

    # Changes by clients.

    def create(self, request: api.Create, client: str = "") -> list[Job]:
        """Create trajectories and put them into the queue. Raises StudioError, SampleError or another ValueError."""
        settings = self._change_settings(self.settings, request.settings)
        given = [read_picture(data, f"image {number}") for number, data in enumerate(request.images, 1)]
        seed = secrets.randbits(32) if request.seed is None else request.seed
        seeds = [derive_seed(seed, number) for number in range(request.n)]
        starts = self.sampler.make_starts([request.prompt] * request.n, seeds, settings, [given] * request.n)
        return self._add(None, starts, settings, request.stages, client)

    def branch(self, name: str, request: api.Branch, client: str = "") -> list[Job]:
        """Branch a trajectory and put the branches into the queue. Raises as ``create``."""
        parent = self.find(name)
        trajectory = parent.trajectory
        settings = self._change_settings(parent.settings, request.settings)
        if settings.mode != trajectory.mode:
            raise StudioError(f"settings: mode {settings.mode!r}: a branch keeps mode {trajectory.mode!r}")
        image = None if request.image is None else fit_picture(read_picture(request.image), trajectory)
        given = image is not None or request.plan is not None or request.critique is not None
        seed = request.seed if request.seed is not None else trajectory.seed if given else secrets.randbits(32)
        starts = [
            trajectory.branch(
                request.stage,
                plan=request.plan,
                critique=request.critique,
                image=image,
                seed=derive_seed(seed, number),
            )
            for number in range(request.n)
        ]
        return self._add(name, starts, settings, request.stages, client)

    def run(self, name: str, request: api.Run, client: str = "") -> Job:
        """Put an unfinished trajectory into the queue. Raises StudioError."""
        with self.changed:
            job = self.find(name)
            if job.progress != "idle" or job.trajectory.stop_reason is not None:
                state = job.progress if job.progress != "idle" else f"done ({job.trajectory.stop_reason})"
                raise StudioError(f"{name} is {state}; branch it, or wait", 409)
            self._check_queue(1)
            self._check_room(job.trajectory, job.settings)
            self._enqueue(job, request.stages, client)
            return job

    def stop(self, name: str) -> Job:
        """Stop a trajectory: one that waits at once, one that runs at the next stretch. Raises StudioError (404)."""
        with self.changed:
            job = self.find(name)
            job.wanted = False
            if job in self.waiting:
                self.waiting.remove(job)
                job.progress = "idle"
                self.announce(job)
                self._announce_places()
            return job

    def remove(self, name: str) -> None:
        """Stop a trajectory and delete its folder; its branches stay. Raises StudioError (404) or OSError."""
        with self.changed:
            self.stop(name)
            self.store.remove(name)
            del self._jobs[name]
            self.events.add("removed", {"id": name}, ends=name)

    def _add(
        self, parent: str | None, starts: list[Trajectory], settings: SampleSettings, stages: int, client: str
    ) -> list[Job]:
        """Save new trajectories and put them into the queue."""
        with self.changed:
            self._check_queue(len(starts))
            jobs = []
            for start in starts:
                # What continues it after a restart; the checkpoint and its digest are the server's.
                model = self.sampler.model
                start = dataclasses.replace(
                    start, settings=settings.flatten(), checkpoint=model.name, model_hash=model.digest
                )
                self._check_texts(start, settings)
                self._check_room(start, settings)
                jobs.append(Job("", start, settings))
            for job in jobs:
                job.name = self.store.name_branch(parent) if parent else self.store.name_root()
                self.store.save(job.name, job.trajectory)
                self._jobs[job.name] = job
                self._enqueue(job, stages, client)
            return jobs

    def _enqueue(self, job: Job, stages: int, client: str) -> None:
        job.left, job.client, job.wanted, job.fault, job.progress = stages, client, True, "", "waiting"
        self.waiting.append(job)
        self._last_seen[client] = time.monotonic()
        self.announce(job)
        self.changed.notify_all()

    def _check_queue(self, more: int) -> None:
        if len(self.waiting) + more > MAX_WAITING:
            raise StudioError(f"{len(self.waiting)} trajectories are waiting; try again when fewer do", 429)
        if len(self._jobs) + more > MAX_TRAJECTORIES:
            raise StudioError(f"the studio holds {len(self._jobs)} trajectories; delete some", 429)

    def _check_texts(self, start: Trajectory, settings: SampleSettings) -> None:
        """Refuse a text from outside that the model could not have written for its length."""
        limit, tokenizer = settings.text.max_tokens, self.sampler.model.tokenizer
        for stage in start.stages:
            if isinstance(stage, ImageStage) or stage.origin == "model":
                continue
            if (tokens := len(tokenizer.encode(stage.text))) > limit:
                raise StudioError(f"the {stage.stage} has {tokens} tokens, at most {limit} are allowed; shorten it")

    def _check_room(self, start: Trajectory, settings: SampleSettings) -> None:
        needed = compute_capacity(self.sampler.model, settings, [start])
        if any(tokens > room for tokens, room in zip(needed, self.capacity)):
            raise StudioError(
                f"this trajectory may need {sum(needed):,} tokens of context, the server has {sum(self.capacity):,}; "
                "lower max_images or text.max_tokens, or give fewer images"
            )

    def _change_settings(self, base: SampleSettings, changes: Mapping[str, Any]) -> SampleSettings:
        """Apply a request's settings. Raises ValueError for an unknown name or a value out of range."""
        refine = {name.replace("image.", "refine.") for name in base.flatten() if name.startswith("image.")}
        allowed = ({*base.flatten()} | refine) - {*_FIXED}
        if unknown := sorted({*changes} - allowed):
            raise StudioError(f"settings: {unknown[0]!r} is no setting; choose from {', '.join(sorted(allowed))}")
        values = base.flatten()
        if any(name.startswith("refine.") for name in changes):  # refinements begin as the images are
            values = {name.replace("image.", "refine."): v for name, v in values.items() if "image." in name} | values
        settings = unflatten_settings(values | dict(changes))
        for image in filter(None, (settings.image, settings.refine)):
            if image.num_timesteps > api.MAX_STEPS:
                raise StudioError(f"settings: num_timesteps={image.num_timesteps}: at most {api.MAX_STEPS}")
        return settings

    # Clients that listen.

    def add_client(self, client: str) -> None:
        """Note that a client listens."""
        with self.changed:
            self._clients[client] += 1

    def remove_client(self, client: str) -> None:
        """Note that a client listens no longer."""
        with self.changed:
            self._clients[client] -= 1
            now = self._last_seen[client] = time.monotonic()
            for other in [other for other, then in self._last_seen.items() if now - then > _FORGOTTEN]:
                if not self._clients[other]:
                    del self._last_seen[other], self._clients[other]

    def is_wanted(self, job: Job) -> bool:
        """Return whether a running trajectory continues: it was not stopped, and its client did not go away."""
        with self.changed:
            away = job.client and not self._clients[job.client]
            if away and time.monotonic() - self._last_seen.get(job.client, 0.0) > GRACE:
                job.wanted = False
            return job.wanted and not self.closing

    # Reports of the worker.

    def take_waiting(self, places: int) -> list[Job]:
        """Return the next trajectories of the queue, which are running from now on."""
        with self.changed:
            taken = [self.waiting.popleft() for _ in range(min(places, len(self.waiting)))]
            for job in taken:
                job.progress = "running"
                self.announce(job)
            if taken:
                self._announce_places()
            return taken

    def update(self, job: Job, trajectory: Trajectory) -> None:
        """Save a trajectory with its newest stages and announce them."""
        with self.changed:
            if self._jobs.get(job.name) is not job:  # deleted meanwhile
                return
            old, job.trajectory, job.preview = len(job.trajectory.stages), trajectory, b""
            try:
                self.store.save(job.name, trajectory)
            except OSError as fault:
                job.wanted, job.fault = False, f"not saved: {fault.strerror or fault}; make room and run it again"
            for index in range(old, len(trajectory.stages)):
                content = {"id": job.name, "index": index, "stage": view_stage(job.name, trajectory.stages[index])}
                self.events.add("stage", content, ends=job.name)

    def pause(self, job: Job, fault: str = "") -> None:
        """Pause a running trajectory; ``fault`` says why if it is not what its client asked for."""
        with self.changed:
            job.progress, job.preview, job.fault = "idle", b"", fault or job.fault
            if self._jobs.get(job.name) is job:
                self.events.add("paused", {"id": job.name}, ends=job.name)
                self.announce(job)

    def announce(self, job: Job) -> None:
        """Announce the state of a trajectory."""
        self.events.add("trajectory", self.summarize(job), passing=f"summary {job.name}")

    def report(self, kind: str, job: Job, **content: Any) -> None:
        """Report how far the next stage is; only the last such event of a trajectory is kept."""
        with self.changed:
            if self._jobs.get(job.name) is job:
                content = {"id": job.name, "index": len(job.trajectory.stages)} | content
                self.events.add(kind, content, passing=job.name)

    def set_status(self, message: str, ready: bool = False) -> None:
        """Announce what the server is doing."""
        with self.changed:
            self.message, self.ready = message, ready
            self.events.add("status", {"ready": ready, "message": message}, passing="status")

    def close(self) -> None:
        """Let the worker and the streams of events end at the next stretch."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.set_status("The server is shutting down.")

    def _announce_places(self) -> None:
        for job in self.waiting:
            self.announce(job)


def view_stage(name: str, stage: Stage) -> api.TextView | api.ImageView:
    """Return a stage of the trajectory ``name`` as clients see it."""
    if isinstance(stage, ImageStage):
        return api.ImageView(
            stage=stage.stage,
            url=f"/api/trajectories/{name}/images/{stage.file}",
            width=stage.width,
            height=stage.height,
            steps=stage.steps,
            seconds=stage.seconds,
            origin=stage.origin,
        )
    return api.TextView(
        stage=stage.stage, text=stage.text, tokens=stage.tokens, seconds=stage.seconds, origin=stage.origin
    )


def read_picture(data: bytes, name: str = "image") -> PIL.Image.Image:
    """Decode an uploaded picture, upright and without metadata. Raises StudioError; a large one is not decoded."""
    try:
        width, height = image_size(data, name)
        if width * height > api.MAX_IMAGE_PIXELS:
            raise StudioError(f"{name}: {width} x {height} pixels, at most {api.MAX_IMAGE_PIXELS:,}; make it smaller")
        return decode_image(data, name)
    except ImageError as fault:
        raise StudioError(str(fault)) from None


def fit_picture(picture: PIL.Image.Image, trajectory: Trajectory) -> PIL.Image.Image:
    """Resize a picture to the size of those that a trajectory has drawn, if any."""
    images = (stage for stage in trajectory.stages if isinstance(stage, ImageStage))
    drawn = [(stage.width, stage.height) for stage in images if stage.stage != "given"]
    if not drawn or picture.size == drawn[0]:
        return picture
    return picture.resize(drawn[0], PIL.Image.Resampling.LANCZOS)

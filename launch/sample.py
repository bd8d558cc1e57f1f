"""Samples trajectories: for each prompt plans, sketches, inspections and refinements until the model ends.

python launch/sample.py --prompt="a red circle left of a blue square" --output=out/circle
python launch/sample.py --checkpoint=out/process --prompts=prompts.txt --samples=4 --batch=8 --output=out/many
python launch/sample.py --branch=out/circle/000 --step=0 --plan="<ins>Draw a star.</ins> <des>A star.</des>"

OUTPUT holds a folder per trajectory, 000, 001, ..., with trajectory.json, one PNG per image and strip.png, and one
page over all, index.html. SIGTERM or Ctrl-C leaves with status 75 and keeps what is finished, as any other end does:
the same command goes on with the trajectories that are missing. With --overwrite the run that is there goes when the
new one has its first trajectory. A branch is a trajectory of its own, 000-1, beside its parent.

With --distributed this is one of several processes, as Slurm or Kubernetes start them; each samples a part, and what
ends one of them early ends all.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import time
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import msgspec
import numpy as np
from absl import app, flags, logging
from jax.experimental import multihost_utils
from tqdm import tqdm

from pdgen.checkpoints.shipped import PROCESS
from pdgen.cli import fail, parse
from pdgen.flow.denoise import ImageSettings
from pdgen.flow.guidance import RENORMS
from pdgen.sample.compiled import Stopwatch, keep_compiled
from pdgen.sample.runs.folder import (
    PAGE,
    RunFolderError,
    SampleRun,
    find_missing,
    list_trajectories,
    lock_run,
    name_branch,
    open_run,
    read_run,
)
from pdgen.sample.runs.gallery import RunGallery
from pdgen.sample.runs.jobs import PromptError, PromptLine, SampleJob, make_jobs, read_picture, read_prompts
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import MAX_BATCH_SIZE, SampleSettings, make_base_settings
from pdgen.sample.strategies import table as strategies
from pdgen.sample.text import TextSettings
from pdgen.sequence.modes import MODES
from pdgen.sequence.trajectory import ImageStage, Trajectory
from pdgen.sequence.trajectory_folder import load_trajectory, save_trajectory
from pdgen.sharding import make_mesh
from pdgen.teachers.advisers import Advisers, endpoint_advisers, exact_advisers
from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.endpoint import Settings as EndpointSettings
from pdgen.train.planning.processes import join_processes, say_once
from pdgen.train.stop import EXIT_STATUS, Stopped

_PAGE_EVERY = 60  # seconds between two pages of a run on its way
_FEW = 64  # trajectories that are sampled sooner than code that is three times as fast would be compiled
_LINE, _STOPPED = 1024, "\N{END OF TEXT}"  # bytes of what processes tell each other; what a signal's process tells
_Result = TypeVar("_Result")

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    f"A pdgen checkpoint or a training run's workdir; by default {PROCESS}, the model that the "
    "package brings along, or a branch's run's.",
)
MESH = flags.DEFINE_list(
    "mesh",
    None,
    "Split parameters and rows over this process's devices: sizes of data, fsdp and "
    "tensor, such as 1,1,4; by default the first device has all.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Begin anew where a run is.")
ANIMATE = flags.DEFINE_bool("animate", False, "Also an animation of each trajectory's strokes.")
KEEP_COMPILED = flags.DEFINE_bool("keep_compiled", True, "Keep compiled functions in the user's cache folder.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of the processes that Slurm, Kubernetes or MPI has started.")

PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw; repeat it for several trajectories.")
PROMPTS = flags.DEFINE_string("prompts", None, "File of prompts, one a line, or of JSON objects: prompt, seed, images.")
IMAGE = flags.DEFINE_multi_string("image", [], "PNG or JPEG given before the prompt; repeat it for several.")
SEED = flags.DEFINE_integer(
    "seed", None, "Of the first trajectory, each further one has the next; 0, or a branch's parent's.", lower_bound=0
)
SAMPLES = flags.DEFINE_integer("samples", 1, "Trajectories of each prompt.", lower_bound=1)
BATCH = flags.DEFINE_integer(
    "batch",
    None,
    "Trajectories that a process samples together; its share, at most 8, or a branch's run's.",
    lower_bound=1,
)

STRATEGY = flags.DEFINE_enum(
    "strategy", None, list(strategies.STRATEGIES), "How to come to a picture; by default as --mode says."
)
OPTION = flags.DEFINE_multi_string("option", [], "Setting of the strategy, such as n=8; repeat it for several.")
ADVISERS = flags.DEFINE_string(
    "advisers",
    None,
    "JSON file of a chat endpoint that plans, criticises and verifies; by default the exact ones of shapes world.",
)

BRANCH = flags.DEFINE_string("branch", None, "Folder of a trajectory to branch off, with the settings of its run.")
STEP = flags.DEFINE_integer("step", None, "Number of the first stage that the branch has of its own.", lower_bound=0)
PLAN = flags.DEFINE_string("plan", None, "Plan (in mode think: thought) that stands there.")
CRITIQUE = flags.DEFINE_string("critique", None, "Inspection that stands there.")
DRAFT = flags.DEFINE_string("draft", None, "Image, PNG or JPEG, that stands there.")
_OF_BRANCHES = ("step", "plan", "critique", "draft")
_OF_RUNS = (
    "output",
    "overwrite",
    "distributed",
    "prompt",
    "prompts",
    "image",
    "samples",
    "strategy",
    "option",
    "advisers",
    "mode",
)

# The names of these flags are those of the settings' fields; without a flag the default of the mode holds.
flags.DEFINE_enum("mode", None, list(MODES), "What the model does.")
flags.DEFINE_integer("height", None, "Pixels; by default those of the given image, or the most the model can.")
flags.DEFINE_integer("width", None, "Pixels; give both or none.")
flags.DEFINE_integer("max_images", None, "Images drawn in a trajectory, at most.")
flags.DEFINE_integer("max_steps", None, "Sketches of a trajectory, at most; 0 = as many as images.")
flags.DEFINE_integer("max_prompt_tokens", None, "Tokens of a prompt, at most.")
flags.DEFINE_string("system", None, "Text before everything else.")
flags.DEFINE_bool("keep_latents", None, "Keep the latents of every drawn image.")
flags.DEFINE_integer("max_tokens", None, "Tokens of one text, at most.")
flags.DEFINE_float("temperature", None, "Of texts; 0 = greedy.")
flags.DEFINE_float("top_p", None, "Draw from the likeliest tokens that together reach this probability; 1 = all.")
flags.DEFINE_integer("top_k", None, "Draw from this many of the likeliest tokens; 0 = all.")
flags.DEFINE_integer("num_timesteps", None, "Points of an image's schedule; one less steps.")
flags.DEFINE_float("timestep_shift", None, "Of the schedule towards noise.")
flags.DEFINE_float("text_scale", None, "Text guidance; 1 = none at all.")
flags.DEFINE_float("image_scale", None, "Image guidance; 1 = none.")
flags.DEFINE_list("interval", None, "Timesteps with guidance, such as 0.4,1.")
flags.DEFINE_enum("renorm", None, list(RENORMS), "What guidance leaves of the norm.")
flags.DEFINE_float("renorm_min", None, "Least factor of that renormalisation.")
flags.DEFINE_bool("taylorseer", None, "Extrapolate two steps of three.")
REFINE = flags.DEFINE_multi_string("refine", [], "Setting of refinements alone, such as text_scale=3; repeat it.")


def refuse(names: tuple[str, ...], why: str) -> None:
    """Raises ValueError where one of these flags is given."""
    for name in names:
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name}: {why}")


def converted(words: str, value: Any, kind: Any) -> Any:
    """A flag's value as a field's type. Raises ValueError that begins with the flag's ``words``."""
    if typing.get_origin(kind) is tuple and isinstance(value, str):
        value = value.split(",")
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as fault:
        raise ValueError(f"{words}: {fault}") from None


def given(kind: Any) -> dict[str, Any]:
    """The fields of a settings class that flags of their names give. Raises ValueError for one that does not fit."""
    fields = [field for field in dataclasses.fields(kind) if field.name in flags.FLAGS]
    held = [(field, flags.FLAGS[field.name]) for field in fields if field.name not in (IMAGE.name, REFINE.name)]
    return {field.name: converted(f.serialize(), f.value, field.type) for field, f in held if f.value is not None}


def pairs(flag: flags.FlagHolder, kind: Any) -> dict[str, Any]:
    """KEY=VALUE of every occurrence of a flag, lists with commas. Raises ValueError for keys and values of no use."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    values = {}
    for text in flag.value:
        key, equals, value = text.partition("=")
        if not equals or key not in types:
            raise ValueError(f"--{flag.name}={text}: write KEY=VALUE, KEY one of {', '.join(types) or 'none at all'}")
        values[key] = converted(f"--{flag.name}={text}", value, types[key])
    return values


def read_settings(base: SampleSettings) -> SampleSettings:
    """``base`` with what flags say. Raises ValueError for values out of range."""
    image, refine = dataclasses.replace(base.image, **given(ImageSettings)), base.refine
    if own := pairs(REFINE, ImageSettings):
        refine = dataclasses.replace(refine or image, **own)
    text = dataclasses.replace(base.text, **given(TextSettings))
    return dataclasses.replace(base, **given(SampleSettings), text=text, image=image, refine=refine)


def read_strategy() -> tuple[str, dict[str, Any]]:
    """Name and settings of the strategy that flags name, "" for none. Raises ValueError for impossible options."""
    if STRATEGY.value is None:
        if OPTION.value or ADVISERS.value:
            raise ValueError("--option and --advisers are for a --strategy; name one")
        return "", {}
    if IMAGE.value:
        raise ValueError("--image: strategies draw from the prompt alone; leave --strategy out")
    options = pairs(OPTION, strategies.STRATEGIES[STRATEGY.value])
    return STRATEGY.value, dataclasses.asdict(strategies.make_strategy(STRATEGY.value, **options))


def read_endpoint() -> EndpointSettings | None:
    """The endpoint that --advisers describes, if any. Raises ValueError."""
    if ADVISERS.value is None:
        return None
    path = pathlib.Path(ADVISERS.value)
    try:
        return msgspec.json.decode(path.read_bytes(), type=EndpointSettings)
    except msgspec.DecodeError as fault:
        raise ValueError(f"--advisers: {path}: {fault}") from None


def make_advisers(endpoint: EndpointSettings | None) -> Advisers:
    """Those of the endpoint, or the exact ones. Raises TeacherError where its key is missing."""
    return endpoint_advisers(Endpoint(endpoint)) if endpoint else exact_advisers()


def load_sampler(checkpoint: str, trajectories: int) -> Sampler:
    """The checkpoint on the devices that --mesh says, compiled for so many trajectories. Raises ValueError."""
    quick = trajectories <= _FEW
    if MESH.value is None:
        return Sampler.from_checkpoint(checkpoint, quick=quick)
    try:
        sizes = [int(size) for size in MESH.value]
    except ValueError:
        raise ValueError(f"--mesh={','.join(MESH.value)}: give three numbers, such as 1,1,4") from None
    return Sampler.from_checkpoint(checkpoint, mesh=make_mesh(sizes, jax.local_devices()), quick=quick)


def read_jobs() -> list[SampleJob]:
    """What is to be sampled. Raises PromptError."""
    lines = [PromptLine(prompt, images=IMAGE.value) for prompt in PROMPT.value]
    for line in read_prompts(pathlib.Path(PROMPTS.value)) if PROMPTS.value else []:
        lines.append(msgspec.structs.replace(line, images=[*IMAGE.value, *line.images]))
    if not lines:
        raise PromptError("nothing to draw; give --prompt or --prompts")
    return make_jobs(lines, SAMPLES.value, SEED.value or 0)


class Share(NamedTuple):
    """What one process samples: a start for each of its trajectories, by name. ``run`` is of all processes."""

    sampler: Sampler
    run: SampleRun
    advisers: Advisers
    starts: dict[str, Trajectory]


def prepare() -> Share:
    """Reads all that is asked for, and looks for every fault that shows before anything is written or drawn.

    Raises:
      ValueError: of any error class of pdgen, for input that cannot be used.
    """
    refuse(_OF_BRANCHES, "is for a --branch; name its trajectory")
    if not OUTPUT.value:
        raise ValueError("give --output, or --branch")
    settings = read_settings(make_base_settings(flags.FLAGS["mode"].value or "process"))
    (strategy, options), jobs, endpoint = read_strategy(), read_jobs(), read_endpoint()
    number, processes = jax.process_index(), jax.process_count()
    share = min(MAX_BATCH_SIZE, -(-len(jobs) // processes))  # the same in all processes, and so a trajectory's bits
    settings = dataclasses.replace(settings, batch_size=min(BATCH.value or share, len(jobs)))
    advisers, sampler = make_advisers(endpoint), load_sampler(CHECKPOINT.value or PROCESS, len(jobs))
    run = SampleRun(
        checkpoint=sampler.model.name,
        model_hash=sampler.model.digest,
        settings=settings,
        jobs=jobs,
        strategy=strategy,
        options=options,
        advisers={name: getattr(endpoint, name) for name in ("url", "model", "parameters")} if endpoint else {},
    )
    mine = jobs[number::processes]
    if not mine:
        return Share(sampler, run, advisers, {})
    paths = dict.fromkeys(image.path for job in mine for image in job.images)
    pictures = {path: read_picture(path) for path in paths}
    given = [[pictures[image.path] for image in job.images] for job in mine]
    starts = sampler.make_starts([job.prompt for job in mine], [job.seed for job in mine], settings, given)
    if not strategy:  # a strategy has its own trajectories
        sampler.check_memory(starts, settings)
    return Share(sampler, run, advisers, {job.name: start for job, start in zip(mine, starts)})


def draw(share: Share, done: Callable[[str, Trajectory], None]) -> None:
    """Samples trajectories from their starts; ``done`` takes each, by name, as soon as it has ended."""
    run, starts = share.run, share.starts
    names, say = list(starts), say_once if len(starts) <= run.settings.batch_size else lambda line: None
    if not run.strategy:
        if starts:
            share.sampler.resume_all(
                [*starts.values()], run.settings, say, done=lambda n, trajectory: done(names[n], trajectory)
            )
        return
    strategy = strategies.make_strategy(run.strategy, **run.options)
    for first in range(0, len(names), run.settings.batch_size):
        group = names[first : first + run.settings.batch_size]
        prompts, seeds = [starts[name].prompt for name in group], [starts[name].seed for name in group]
        task = strategies.Task(share.sampler, prompts, seeds, run.settings, share.advisers, say)
        for name, trajectory in zip(group, strategies.run_strategy(strategy, task)):
            done(name, trajectory)


def fill(folder: pathlib.Path, share: Share, gallery: RunGallery) -> tuple[int, int]:
    """Samples what is missing into ``folder``, with progress; the numbers of trajectories and of images drawn.

    The first process keeps the page up to date, also where a fault or a signal ends it.
    """
    lacking = {job.name for job in find_missing(folder, [job for job in share.run.jobs if job.name in share.starts])}
    todo = share._replace(starts={name: start for name, start in share.starts.items() if name in lacking})
    first, images, shown = not jax.process_index(), 0, time.monotonic()
    quiet = not first or len(lacking) <= share.run.settings.batch_size  # then every stage is told of
    with tqdm(total=len(lacking), unit=" trajectories", disable=quiet) as bar:

        def done(name: str, trajectory: Trajectory) -> None:
            nonlocal images, shown
            save_trajectory(folder / name, trajectory)
            images += sum(isinstance(stage, ImageStage) and stage.stage != "given" for stage in trajectory.stages)
            bar.update()
            if first and time.monotonic() - shown > _PAGE_EVERY:
                gallery.update()
                shown = time.monotonic()

        try:
            draw(todo, done)
        finally:
            if first and list_trajectories(folder):
                gallery.update()
    return len(lacking), images


def in_step(step: Callable[[], _Result]) -> _Result:
    """What ``step`` returns, once every process has done its own.

    Raises:
      ValueError: another process had a fault, told in its words; of this one's the fault itself.
      KeyboardInterrupt: a signal has stopped a process.
    """
    if jax.process_count() == 1:
        return step()
    result: Any = None
    own = None
    try:
        result = step()
    except BaseException as fault:  # whatever it is, the others would wait for ever
        own = fault
    stopped = isinstance(own, KeyboardInterrupt)
    words = b"" if own is None else (_STOPPED if stopped else str(own) or repr(own)).encode()[:_LINE]
    told = np.frombuffer(words.ljust(_LINE, b"\0"), np.uint8)
    lines = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(told)]
    if own is not None:
        raise own
    for line in filter(None, lines):
        raise KeyboardInterrupt if line == _STOPPED else ValueError(line)
    return result


def claim(stack: contextlib.ExitStack, folder: pathlib.Path, run: SampleRun, gallery: RunGallery) -> None:
    """Opens the folder until ``stack`` closes, and reads what is there: nothing damaged is to end the run later."""
    stack.enter_context(open_run(folder, run, OVERWRITE.value))
    gallery.read()


def sample() -> str:
    """Samples what is missing and returns a line that sums it up.

    Raises:
      Stopped: a signal asked for it; all that was finished is there.
      ValueError: of any error class of pdgen, for input that cannot be used.
    """
    share, first = in_step(prepare), not jax.process_index()
    assert OUTPUT.value is not None  # checked with the other flags
    folder, jobs, watch = pathlib.Path(OUTPUT.value), share.run.jobs, Stopwatch(share.sampler.model.compiler)
    gallery = RunGallery(folder, ANIMATE.value)
    with contextlib.ExitStack() as stack:
        try:
            in_step(lambda: claim(stack, folder, share.run, gallery) if first else None)
            new, images = in_step(lambda: fill(folder, share, gallery))
            if first and jax.process_count() > 1:
                gallery.update()
        except KeyboardInterrupt:
            left = len({job.name for job in jobs} - set(list_trajectories(folder)))
            anew = " without --overwrite" * (OVERWRITE.value and left < len(jobs))
            raise Stopped(f"stopped, {left} of {len(jobs)} are missing; the same command{anew} goes on") from None
    there = len(share.starts) - new
    return (
        f"{folder / PAGE}: trajectories {new}, images {images}, sampling {watch.seconds:.1f} s, compiling "
        f"{watch.compiling:.1f} s" + f"; {there} were there" * bool(there)
    )


def branch() -> str:
    """Continues an edited trajectory beside its parent and returns a line that sums it up.

    Raises:
      Stopped: a signal asked for it.
      ValueError: of any error class of pdgen, for input that cannot be used.
    """
    refuse(_OF_RUNS, "a --branch has its run's; leave it out")
    if STEP.value is None:
        raise ValueError("--branch needs --step: the number of the first stage that is not the parent's")
    assert BRANCH.value is not None
    parent = pathlib.Path(BRANCH.value)
    folder, gallery = parent.resolve().parent, RunGallery(parent.resolve().parent, ANIMATE.value)
    draft = None if DRAFT.value is None else read_picture(DRAFT.value)
    with lock_run(folder):
        begun = read_run(folder)
        edited = load_trajectory(parent).branch(
            STEP.value, plan=PLAN.value, critique=CRITIQUE.value, image=draft, seed=SEED.value
        )
        gallery.read()
        settings = dataclasses.replace(read_settings(begun.settings), mode=edited.mode)
        if BATCH.value:
            settings = dataclasses.replace(settings, batch_size=BATCH.value)
        sampler = load_sampler(CHECKPOINT.value or begun.checkpoint, 1)
        if sampler.model.digest != begun.model_hash:
            hashes = f"model_hash is {sampler.model.digest[:8]}, was {begun.model_hash[:8]}"
            raise RunFolderError(
                f"{sampler.model.name}: is another model than {folder} was sampled from ({hashes}); name "
                "that one with --checkpoint"
            )
        watch = Stopwatch(sampler.model.compiler)
        try:
            drawn = sampler.resume(edited, settings, progress=say_once)
        except KeyboardInterrupt:
            raise Stopped("stopped; of the branch nothing is kept, the same command begins it again") from None
        name = name_branch(folder, parent.resolve().name)
        save_trajectory(folder / name, drawn)
        page = gallery.update()
    return (
        f"{page}: {name} branches off {parent.resolve().name} at stage {STEP.value}, sampling {watch.seconds:.1f} s, "
        f"compiling {watch.compiling:.1f} s"
    )


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    if KEEP_COMPILED.value:
        keep_compiled()
    try:
        if DISTRIBUTED.value:
            join_processes()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # after JAX, which takes it when processes join
        say_once(branch() if BRANCH.value else sample())
        return
    except (Stopped, KeyboardInterrupt) as line:
        words = str(line) or "stopped"
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)
    print(f"sample: {words}", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        jax.distributed.shutdown()  # waits for the others
        sys.stdout.flush()
        os._exit(EXIT_STATUS)  # the interpreter's own end now and then crashes in XLA, and the status would be lost
    sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

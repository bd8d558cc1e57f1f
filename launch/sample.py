"""Samples trajectories: for each prompt plans, sketches, inspections and refinements until the model ends.

python launch/sample.py --prompt="a red circle left of a blue square" --output=out/circle
python launch/sample.py --checkpoint=out/process --prompts=prompts.txt --samples=4 --batch=8 --output=out/many
python launch/sample.py --branch=out/circle/000 --step=0 --plan="<ins>Draw a star.</ins> <des>A star.</des>"

OUTPUT holds a folder for each trajectory, 000, 001, ..., with trajectory.json, one PNG per image and strip.png, and a
page of all trajectories, index.html. SIGTERM or Ctrl-C ends with status 75 and keeps finished trajectories: the same
command samples the missing ones. With --overwrite the existing run is removed when the first new trajectory is
finished. A branch is a separate trajectory, 000-1, in its parent's run.

--dry_run prints the memory and the time that a run needs, at most, before any weight is read; nothing is written.

With --distributed this is one of several processes that Slurm or Kubernetes starts. Each samples a part. If one ends
early, all end.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import time
import typing
from typing import Any

import jax
import msgspec
from absl import flags

from pdgen.checkpoints.load import describe
from pdgen.checkpoints.shipped import PROCESS
from pdgen.cli import run_command
from pdgen.files import check_writable
from pdgen.flow.denoise import ImageSettings
from pdgen.flow.guidance import RENORMS
from pdgen.models.mot import EXPERTS
from pdgen.progress_bar import ProgressBar
from pdgen.sample.compiled import Stopwatch, keep_compiled
from pdgen.sample.model import describe_model
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
from pdgen.sample.runs.layout import report_layout
from pdgen.sample.runs.share import Share, describe_share, make_share, sample_share
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import MAX_BATCH_SIZE, SampleSettings, make_base_settings
from pdgen.sample.strategies import table as strategies
from pdgen.sample.text import TextSettings
from pdgen.sequence.modes import MODES
from pdgen.sequence.trajectory import ImageStage, Trajectory
from pdgen.sequence.trajectory_folder import load_trajectory, save_trajectory
from pdgen.sharding import make_mesh
from pdgen.teachers.advisers import make_endpoint_advisers, make_exact_advisers
from pdgen.teachers.endpoint import Endpoint, EndpointSettings, read_endpoint_settings
from pdgen.teachers.protocols import TeacherError
from pdgen.train.monitor.watchers import Watchers
from pdgen.train.planning.processes import join_processes, print_once, synchronize
from pdgen.train.stop import EXIT_STATUS, Stopped

_PAGE_EVERY = 60  # seconds between two updates of the page
_FEW = 64  # trajectories; for fewer, quick compilation saves more time than faster code

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    f"A pdgen checkpoint or a training run's workdir; by default the shipped model {PROCESS}, or for a branch "
    "its run's checkpoint.",
)
MESH = flags.DEFINE_list(
    "mesh",
    None,
    "Sizes of the mesh axes data, fsdp and tensor, such as 1,1,4, over which this process's devices split "
    "parameters and rows; by default one device is used.",
)
OFFLOAD = flags.DEFINE_enum(
    "offload",
    None,
    list(EXPERTS),
    "Expert whose layers stay in the host's memory and are copied to the device one by one wherever it runs.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing run.")
ANIMATE = flags.DEFINE_bool("animate", False, "Write an animation of each trajectory too.")
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the memory, the bytes that a step reads and the time that the run needs, and stop."
)
KEEP_COMPILED = flags.DEFINE_bool("keep_compiled", True, "Keep compiled functions in the user's cache folder.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the processes of a job, as described by Slurm, Kubernetes, MPI or the JAX_* variables."
)

PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw (repeat it).")
PROMPTS = flags.DEFINE_string(
    "prompts", None, "File of prompts, or of JSON objects with prompt, seed, images, one a line."
)
IMAGE = flags.DEFINE_multi_string(
    "image", [], "Image given before the prompt: PNG, JPEG, WebP, BMP or GIF (repeat it)."
)
SEED = flags.DEFINE_integer(
    "seed", None, "First trajectory's seed, then counted up. Default: 0; for a branch, its parent's.", lower_bound=0
)
SAMPLES = flags.DEFINE_integer("samples", 1, "Trajectories of each prompt.", lower_bound=1)
BATCH = flags.DEFINE_integer(
    "batch",
    None,
    "Trajectories that a process samples at once. Default: its share, at most 8; for a branch, its run's.",
    lower_bound=1,
)

STRATEGY = flags.DEFINE_enum(
    "strategy", None, list(strategies.STRATEGIES), "Sampling strategy; by default that of --mode."
)
OPTION = flags.DEFINE_multi_string("option", [], "Setting of the strategy, such as n=8 (repeat it).")
ADVISERS = flags.DEFINE_string(
    "advisers",
    None,
    "JSON file of a chat endpoint that plans, criticises and verifies; by default shapes world's exact advisers.",
)

BRANCH = flags.DEFINE_string("branch", None, "Folder of a trajectory to branch off, with its run's settings.")
STEP = flags.DEFINE_integer("step", None, "Index of the first stage that differs from the parent.", lower_bound=0)
PLAN = flags.DEFINE_string("plan", None, "The plan at that stage (in mode think: the thought).")
CRITIQUE = flags.DEFINE_string("critique", None, "The inspection at that stage.")
DRAFT = flags.DEFINE_string("draft", None, "The image at that stage, a file as for --image.")
_BRANCH_FLAGS = ("step", "plan", "critique", "draft")
_JOB_FLAGS = ("prompt", "prompts", "image", "samples", "strategy", "option", "advisers")
_RUN_FLAGS = ("output", "overwrite", "distributed", "dry_run", "mode", *_JOB_FLAGS)

# These flags have the names of the settings' fields. Their defaults are the mode's.
flags.DEFINE_enum("mode", None, list(MODES), "The model's mode.")
flags.DEFINE_integer("height", None, "In pixels; by default the given image's, or the model's largest.")
flags.DEFINE_integer("width", None, "In pixels; give both or neither.")
flags.DEFINE_integer("max_images", None, "Largest number of images drawn in a trajectory.")
flags.DEFINE_integer("max_steps", None, "Largest number of sketches of a trajectory; 0 = as for images.")
flags.DEFINE_integer("max_prompt_tokens", None, "Largest number of tokens of a prompt.")
flags.DEFINE_string("system", None, "System prompt; by default the model's own: BAGEL has one in mode think.")
flags.DEFINE_bool("keep_latents", None, "Keep the latents of every drawn image.")
flags.DEFINE_integer("max_tokens", None, "Largest number of tokens of one text.")
flags.DEFINE_float("temperature", None, "Temperature of texts; 0 = greedy.")
flags.DEFINE_float("top_p", None, "Sample from the most likely tokens with this total probability; 1 = all.")
flags.DEFINE_integer("top_k", None, "Sample from this many of the most likely tokens; 0 = all.")
flags.DEFINE_integer("num_timesteps", None, "Points of an image's schedule, one more than its steps.")
flags.DEFINE_float("timestep_shift", None, "Shift of the schedule towards noise.")
flags.DEFINE_float("text_scale", None, "Text guidance scale; 1 = no guidance.")
flags.DEFINE_float("image_scale", None, "Image guidance scale; 1 = no image guidance.")
flags.DEFINE_list("interval", None, "Timesteps with guidance, such as 0.4,1.")
flags.DEFINE_enum("renorm", None, list(RENORMS), "Renormalization of the guided velocity.")
flags.DEFINE_float("renorm_min", None, "Smallest factor of the renormalization.")
flags.DEFINE_bool("taylorseer", None, "Extrapolate two of three steps.")
REFINE = flags.DEFINE_multi_string("refine", [], "Setting of refinements only, such as text_scale=3 (repeat it).")


def reject_flags(names: tuple[str, ...], why: str) -> None:
    """Raise ValueError if one of these flags is given."""
    if given := [name for name in names if flags.FLAGS[name].present]:
        raise ValueError(f"--{given[0]}: {why}")


def convert_value(label: str, value: Any, kind: Any) -> Any:
    """Convert a flag's value to a field's type. Raises ValueError that starts with ``label`` if it does not fit."""
    if typing.get_origin(kind) is tuple and isinstance(value, str):
        value = value.split(",")
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as fault:
        raise ValueError(f"{label}: {fault}") from None


def read_flag_fields(kind: Any) -> dict[str, Any]:
    """Return the fields of a settings class that flags give. Raises ValueError for a value that does not fit."""
    fields = [field for field in dataclasses.fields(kind) if field.name in flags.FLAGS]
    given = [(field, flags.FLAGS[field.name]) for field in fields if field.name not in (IMAGE.name, REFINE.name)]
    return {field.name: convert_value(f.serialize(), f.value, field.type) for field, f in given if f.value is not None}


def parse_pairs(flag: flags.FlagHolder, kind: Any) -> dict[str, Any]:
    """Parse KEY=VALUE of every occurrence of a flag; lists have commas. Raises ValueError for a wrong key or value."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    values = {}
    for text in flag.value:
        key, equals, value = text.partition("=")
        if not equals or key not in types:
            raise ValueError(f"--{flag.name}={text}: write KEY=VALUE, KEY one of {', '.join(types) or 'none at all'}")
        values[key] = convert_value(f"--{flag.name}={text}", value, types[key])
    return values


def read_settings(base: SampleSettings) -> SampleSettings:
    """Return ``base`` updated with the flags. Raises ValueError for a value out of range."""
    image, refine = dataclasses.replace(base.image, **read_flag_fields(ImageSettings)), base.refine
    if own := parse_pairs(REFINE, ImageSettings):
        refine = dataclasses.replace(refine or image, **own)
    text = dataclasses.replace(base.text, **read_flag_fields(TextSettings))
    return dataclasses.replace(base, **read_flag_fields(SampleSettings), text=text, image=image, refine=refine)


def read_strategy() -> tuple[str, dict[str, Any]]:
    """Return the strategy's name, or "", and its settings. Raises ValueError for an invalid option."""
    if STRATEGY.value is None:
        if OPTION.value or ADVISERS.value:
            raise ValueError("--option and --advisers are for a --strategy; name one")
        return "", {}
    if IMAGE.value:
        raise ValueError("--image: strategies use only the prompt; leave --strategy out")
    options = parse_pairs(OPTION, strategies.STRATEGIES[STRATEGY.value])
    return STRATEGY.value, dataclasses.asdict(strategies.make_strategy(STRATEGY.value, **options))


def read_endpoint() -> EndpointSettings | None:
    """Return the endpoint that --advisers describes, if any. Raises ValueError for an invalid file."""
    if ADVISERS.value is None:
        return None
    try:
        return read_endpoint_settings(pathlib.Path(ADVISERS.value))
    except TeacherError as fault:
        raise ValueError(f"--advisers: {fault}") from None


def load_sampler(checkpoint: str, trajectories: int) -> Sampler:
    """Load the checkpoint on the devices of --mesh. For few trajectories compilation is fast and sampling slower."""
    mesh = None
    if MESH.value is not None:
        try:
            sizes = [int(size) for size in MESH.value]
        except ValueError:
            raise ValueError(f"--mesh={','.join(MESH.value)}: give three numbers, such as 1,1,4") from None
        mesh = make_mesh(sizes, jax.local_devices())
    if DRY_RUN.value:
        return Sampler(describe_model(describe(checkpoint), mesh=mesh, offload=OFFLOAD.value))
    return Sampler.from_checkpoint(checkpoint, mesh=mesh, quick=trajectories <= _FEW, offload=OFFLOAD.value)


def read_jobs() -> list[SampleJob]:
    """Return the jobs to sample. Raises PromptError if there is no prompt, or a file is invalid."""
    lines = [PromptLine(prompt, images=IMAGE.value) for prompt in PROMPT.value]
    for line in read_prompts(pathlib.Path(PROMPTS.value)) if PROMPTS.value else []:
        lines.append(msgspec.structs.replace(line, images=[*IMAGE.value, *line.images]))
    if not lines:
        raise PromptError("nothing to draw; give --prompt or --prompts")
    return make_jobs(lines, SAMPLES.value, SEED.value or 0)


def prepare() -> Share:
    """Read all flags and inputs, and check them before anything is written or drawn."""
    reject_flags(_BRANCH_FLAGS, "is only for a --branch; name its trajectory")
    if DRY_RUN.value and STRATEGY.value:
        raise ValueError("--dry_run counts the texts and images of a --mode; leave --strategy out")
    if not OUTPUT.value and not DRY_RUN.value:
        raise ValueError("give --output, or --branch")
    if OUTPUT.value:
        check_writable(OUTPUT.value)
    settings = read_settings(make_base_settings(flags.FLAGS["mode"].value or "process"))
    (strategy, options), jobs, endpoint = read_strategy(), read_jobs(), read_endpoint()
    # Equal in all processes, and so are the bits of a trajectory.
    share_size = min(MAX_BATCH_SIZE, -(-len(jobs) // jax.process_count()))
    settings = dataclasses.replace(settings, batch_size=min(BATCH.value or share_size, len(jobs)))
    advisers = make_endpoint_advisers(Endpoint(endpoint)) if endpoint else make_exact_advisers()
    sampler = load_sampler(CHECKPOINT.value or PROCESS, len(jobs))
    run = SampleRun(
        checkpoint=sampler.model.name,
        model_hash=sampler.model.digest,
        settings=settings,
        jobs=jobs,
        strategy=strategy,
        options=options,
        advisers={name: getattr(endpoint, name) for name in ("url", "model", "parameters")} if endpoint else {},
    )
    share = make_share(sampler, run, advisers)
    starts = [*share.starts.values()]
    if starts and not jax.process_index():
        report_layout(sampler.model, settings, starts)
    if starts and not strategy and not DRY_RUN.value:  # a strategy has its own trajectories
        sampler.check_memory(starts, settings)
    return share


def fill_folder(folder: pathlib.Path, share: Share, gallery: RunGallery) -> tuple[int, int]:
    """Sample the missing trajectories into ``folder``, with progress; return the numbers of them and of images drawn.

    The first process keeps the page up to date.
    """
    lacking = {job.name for job in find_missing(folder, [job for job in share.run.jobs if job.name in share.starts])}
    todo = share._replace(starts={name: start for name, start in share.starts.items() if name in lacking})
    first, images, shown, watchers = not jax.process_index(), 0, time.monotonic(), Watchers(print_once)
    quiet = not first or len(lacking) <= share.run.settings.batch_size  # a single batch logs every stage instead
    with ProgressBar(total=len(lacking), unit=" trajectories", disable=quiet) as bar:

        def update_page() -> None:
            if first and list_trajectories(folder):
                gallery.update()

        def done(name: str, trajectory: Trajectory) -> None:
            nonlocal images, shown
            save_trajectory(folder / name, trajectory)
            images += sum(isinstance(stage, ImageStage) and stage.stage != "given" for stage in trajectory.stages)
            bar.update()
            if first and time.monotonic() - shown > _PAGE_EVERY:
                watchers.call(str(folder / PAGE), update_page)
                shown = time.monotonic()

        try:
            sample_share(todo, print_once if quiet else lambda line: None, done)
        except BaseException:
            with contextlib.suppress(OSError):  # of a full disk, which is then the reason of the end as well
                update_page()
            raise
    update_page()
    return len(lacking), images


def claim(stack: contextlib.ExitStack, folder: pathlib.Path, run: SampleRun, gallery: RunGallery) -> None:
    """Open the folder until ``stack`` closes, and read its trajectories: a damaged one must not end the run later."""
    stack.enter_context(open_run(folder, run, OVERWRITE.value))
    gallery.read()


def sample() -> str:
    """Sample the missing trajectories and return a summary line. Raises Stopped if a signal arrives."""
    share, first = synchronize(prepare), not jax.process_index()
    if DRY_RUN.value:
        return describe_share(share) if first else ""
    assert OUTPUT.value is not None  # ``prepare`` checks it
    folder, jobs, watch = pathlib.Path(OUTPUT.value), share.run.jobs, Stopwatch(share.sampler.model.compiler)
    gallery = RunGallery(folder, ANIMATE.value)
    with contextlib.ExitStack() as stack:
        try:
            synchronize(lambda: claim(stack, folder, share.run, gallery) if first else None)
            for line in share.run.settings.list_idle_guidance():
                print_once(line)
            new, images = synchronize(lambda: fill_folder(folder, share, gallery))
            if first and jax.process_count() > 1:
                gallery.update()
        except KeyboardInterrupt:
            left = len({job.name for job in jobs} - set(list_trajectories(folder)))
            hint = " without --overwrite" * (OVERWRITE.value and left < len(jobs))
            raise Stopped(f"stopped, {left} of {len(jobs)} are missing; the same command{hint} resumes") from None
    existing = len(share.starts) - new
    return (
        f"{folder / PAGE}: trajectories {new}, images {images}, sampling {watch.seconds:.1f} s, compiling "
        f"{watch.compiling:.1f} s" + f"; {existing} existed" * bool(existing)
    )


def branch() -> str:
    """Continue an edited trajectory in its parent's run and return a summary line. Raises Stopped on a signal."""
    reject_flags(_RUN_FLAGS, "a --branch uses its run's; leave it out")
    if STEP.value is None:
        raise ValueError("--branch needs --step: the index of the first stage that differs from the parent")
    assert BRANCH.value is not None
    parent = pathlib.Path(BRANCH.value)
    folder, gallery = parent.resolve().parent, RunGallery(parent.resolve().parent, ANIMATE.value)
    draft = None if DRAFT.value is None else read_picture(DRAFT.value)
    with lock_run(folder):
        check_writable(folder)
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
        for line in settings.list_idle_guidance():
            print_once(line)
        watch = Stopwatch(sampler.model.compiler)
        try:
            drawn = sampler.resume(edited, settings, progress=print_once)
        except KeyboardInterrupt:
            raise Stopped("stopped; nothing of the branch is kept, the same command starts it again") from None
        name = name_branch(folder, parent.resolve().name)
        save_trajectory(folder / name, drawn)
        page = gallery.update()
    return (
        f"{page}: {name} branches off {parent.resolve().name} at stage {STEP.value}, sampling {watch.seconds:.1f} s, "
        f"compiling {watch.compiling:.1f} s"
    )


def main() -> int:
    """Sample or branch, and return the exit status."""
    if KEEP_COMPILED.value:
        keep_compiled()
    try:
        if DISTRIBUTED.value:
            join_processes()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # after JAX, which sets its own handler
        print_once(branch() if BRANCH.value else sample())
        return 0
    except (Stopped, KeyboardInterrupt) as line:
        print(f"sample: {str(line) or 'stopped'}", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        jax.distributed.shutdown()  # waits for the others
        sys.stdout.flush()
        os._exit(EXIT_STATUS)  # at the interpreter's normal exit XLA sometimes crashes, which changes the status
    return EXIT_STATUS


if __name__ == "__main__":
    run_command(main)

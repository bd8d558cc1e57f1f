"""Folders of images in the layouts of the benchmarks: prompt lists, what must be in a folder, and making it.

GenEval's layout is ``00000/metadata.jsonl`` and ``00000/samples/00000.png``, numbered from 0 in the order of the
list; WISE's is ``<prompt_id>.png``.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import PIL.Image
import PIL.ImageOps

from pdgen.data.prompts import PromptError, read_prompt_file
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval import Prompt
from pdgen.evaluate.metadata import Metadata
from pdgen.files import check_settings, new_file
from pdgen.sequence.trajectory import Trajectory
from pdgen.sequence.trajectory_folder import save_trajectory

DIGITS = 5
SAMPLES = 4  # images of a prompt in GenEval's protocol
RECORD = "generation.json"
NAMED = 8  # faults that one message lists


def listed(names: Iterable[Any]) -> str:
    """The first few names, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def read_prompts(path: pathlib.Path) -> list[Prompt]:
    """GenEval's prompt list, one JSON object a line.

    Raises:
      EvaluationError: the file cannot be read, is empty, or a line is not of GenEval's form; says which.
    """
    try:
        metadata, raw = read_prompt_file(path, Metadata), read_prompt_file(path, dict)
    except PromptError as fault:
        wise = path.is_file() and b'"prompt_id"' in path.read_bytes()
        other = " (this is a list of WISE; pass --benchmark=wise)" if wise else ""
        raise EvaluationError(f"{fault}; name GenEval's evaluation_metadata.jsonl{other}") from None
    return [Prompt(asked, line) for asked, line in zip(metadata, raw)]


def write_prompts(path: pathlib.Path, prompts: Sequence[Prompt]) -> None:
    """Writes a list that ``read_prompts`` reads."""
    with new_file(path) as partial:
        partial.write_text("".join(json.dumps(prompt.raw) + "\n" for prompt in prompts), encoding="utf-8")


def prompt_folder(number: int) -> str:
    """ "00017" for prompt 17, counted from 0."""
    return f"{number:0{DIGITS}d}"


def find_samples(folder: pathlib.Path, prompts: Sequence[Prompt], samples: int = SAMPLES) -> list[list[pathlib.Path]]:
    """The images of every prompt, ``samples`` of each, in order; nothing is opened but the metadata.

    Raises:
      EvaluationError: naming folders that are missing, too many or misnumbered, that belong to another prompt,
        or whose samples are missing or misnumbered.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    _check_numbering(folder, len(prompts))
    for number, prompt in enumerate(prompts):
        _check_metadata(folder / prompt_folder(number) / "metadata.jsonl", prompt, number)
    found = [_samples(folder / prompt_folder(number)) for number in range(len(prompts))]
    wrong = [i for i, files in enumerate(found) if [int(file.stem) for file in files] != list(range(samples))]
    if wrong:
        names = listed(file.name for file in found[wrong[0]]) or "no numbered .png at all"
        raise EvaluationError(
            f"{folder}: {len(wrong)} of {len(prompts)} prompts do not hold samples 0 to {samples - 1}: "
            f"{listed(map(prompt_folder, wrong))}; the first holds {names}; generate what is missing, or name "
            "another number by --samples"
        )
    return found


def _check_numbering(folder: pathlib.Path, count: int) -> None:
    names = {path.name for path in folder.iterdir() if path.is_dir() and path.name.isdigit()}
    wanted = {prompt_folder(number) for number in range(count)}
    if not names:
        raise EvaluationError(f"{folder}: holds no folders 00000, 00001, ... as GenEval's images do")
    if surplus := sorted(names - wanted):
        raise EvaluationError(
            f"{folder}: {listed(surplus)}: no prompt of the list has that number ({count} prompts are 00000 to "
            f"{prompt_folder(count - 1)}); name the list that these images were made from, or number them from 00000"
        )
    if missing := sorted(wanted - names):
        raise EvaluationError(
            f"{folder}: {len(missing)} of {count} prompts are missing: {listed(missing)}; "
            "generate them, there is no score without them"
        )


def _check_metadata(path: pathlib.Path, prompt: Prompt, number: int) -> None:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise EvaluationError(f"{path}: {fault}") from None
    if raw != prompt.raw:
        said = raw.get("prompt", raw) if isinstance(raw, dict) else raw
        raise EvaluationError(
            f"{path}: is of {said!r}, but line {number + 1} of the list is {prompt.metadata.prompt!r} "
            "(or asks for something else of it); name the list that these images were made from"
        )


def _samples(folder: pathlib.Path) -> list[pathlib.Path]:
    files = [path for path in folder.glob("samples/*.png") if path.stem.isdecimal()]
    return sorted(files, key=lambda path: int(path.stem))


def read_image(path: pathlib.Path) -> PIL.Image.Image:
    """The image in RGB, upright, its ``info["file"]`` the path. Raises EvaluationError where it cannot be read."""
    try:
        with PIL.Image.open(path) as image:
            upright = PIL.ImageOps.exif_transpose(image).convert("RGB")
        upright.info["file"] = str(path)
        return upright
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as fault:
        raise EvaluationError(f"{path}: not a readable image ({fault}); make it again") from None


class Sample(NamedTuple):
    """What a generator makes of one prompt: the final image, and how it came about where that is known."""

    image: PIL.Image.Image
    trajectory: Trajectory | None = None


Generate = Callable[[Sequence[str], Sequence[int]], Sequence[Sample]]  # (prompts, seeds) -> a sample of each


class Job(NamedTuple):
    """One image to be made: where (path without suffix, below the folder), of what, from which seed."""

    name: str
    prompt: str
    seed: int


def geneval_jobs(prompts: Sequence[Prompt], samples: int, seed: int) -> list[Job]:
    """Jobs in GenEval's layout; prompt i, sample j has the seed ``seed + i * samples + j``."""
    return [
        Job(f"{prompt_folder(i)}/samples/{j:0{DIGITS}d}", prompt.metadata.prompt, seed + i * samples + j)
        for i, prompt in enumerate(prompts)
        for j in range(samples)
    ]


def write_metadata(folder: pathlib.Path, prompts: Sequence[Prompt]) -> None:
    """Writes ``metadata.jsonl`` of every prompt in GenEval's layout."""
    for number, prompt in enumerate(prompts):
        path = folder / prompt_folder(number) / "metadata.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            partial.write_text(json.dumps(prompt.raw) + "\n", encoding="utf-8")


def begin(folder: pathlib.Path, made_by: dict[str, Any], jobs: Sequence[Job]) -> None:
    """Records what the images are made by and from which seeds, in ``generation.json``.

    Raises:
      EvaluationError: the folder was begun otherwise, or holds images that nobody recorded.
    """
    record = {"made_by": made_by, "jobs": {job.name: [job.prompt, job.seed] for job in jobs}}
    path = folder / RECORD
    if path.exists():
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
            before, jobs_before = dict(begun["made_by"]), begun["jobs"]
        except (ValueError, KeyError, TypeError) as fault:
            raise EvaluationError(f"{path}: not the record of a generation ({fault}); choose another folder") from None
        check_settings(folder, before, made_by, remedy="choose another folder", error=EvaluationError, show=repr)
        if jobs_before != record["jobs"]:
            raise EvaluationError(f"{folder}: was begun with other prompts, seeds or samples; choose another folder")
        return
    if any(folder.rglob("*.png")):
        raise EvaluationError(f"{folder}: holds images but no {RECORD}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def make(
    folder: pathlib.Path,
    trajectories: pathlib.Path,
    jobs: Sequence[Job],
    generate: Generate,
    batch: int,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Makes the images that are not there yet, ``batch`` at a time; killed, it goes on where it was.

    Args:
      trajectories: folder of the trajectories, under the names of the jobs, of samples that have one.
      generate: called with ``batch`` prompts and seeds, in the last call perhaps fewer.
      progress: told how many images are done, first those that were there.
    """
    waiting = [job for job in jobs if not (folder / f"{job.name}.png").exists()]
    progress(len(jobs) - len(waiting))
    for start in range(0, len(waiting), batch):
        part = waiting[start : start + batch]
        samples = generate([job.prompt for job in part], [job.seed for job in part])
        for job, sample in zip(part, samples, strict=True):
            if sample.trajectory is not None:
                _save(trajectories / job.name, sample.trajectory)
            path = folder / f"{job.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as partial:
                sample.image.save(partial, format="PNG")
        progress(len(part))


def _save(folder: pathlib.Path, trajectory: Trajectory) -> None:
    # Its image is written after it: a trajectory that is there without one is of a run that was killed between.
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_trajectory(folder, trajectory)

"""Folders of images in the benchmarks' layouts: prompt lists, checks, and resumable generation.

GenEval's layout is ``00000/metadata.jsonl`` and ``00000/samples/00000.png``, numbered from 0 in the order of the list.
WISE's layout is ``<prompt_id>.png``.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec
import PIL.Image

from pdgen.data.prompts import PromptError, read_prompt_file
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval.metadata import Metadata, decode_metadata
from pdgen.evaluate.geneval.rule import GenEvalPrompt
from pdgen.files import check_settings, new_file
from pdgen.json_text import decode_json, load_json
from pdgen.messages import name_some
from pdgen.sequence.images import ImageError, ImageTooLargeError, decode_image
from pdgen.sequence.trajectory import Trajectory
from pdgen.sequence.trajectory_folder import save_trajectory
from pdgen.shapes.graph import SceneError

DIGITS = 5  # of the numbers in GenEval's file names
SAMPLES = 4  # images of a prompt in GenEval's protocol
RECORD = "generation.json"
_Value = TypeVar("_Value")


def write_lines(path: pathlib.Path, records: Iterable[Any]) -> None:
    """Write records as JSON, one a line."""
    with new_file(path) as partial:
        partial.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def append_line(log: BinaryIO, record: msgspec.Struct) -> None:
    """Append a record to a log of JSON lines, after a newline: a line that a kill cut short is not continued."""
    log.write(b"\n" + msgspec.json.encode(record))


def read_log(path: pathlib.Path, record: type[_Value]) -> list[_Value]:
    """Read the records of a log that ``append_line`` wrote, without lines cut short; none if there is no file."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(msgspec.DecodeError):
            records.append(decode_json(line, record))
    return records


def read_prompts(path: pathlib.Path) -> list[GenEvalPrompt]:
    """Read GenEval's prompt list, one JSON object a line.

    Raises:
      EvaluationError: The file cannot be read or is empty, or a line does not have GenEval's form.
    """
    try:
        metadata, raw = read_prompt_file(path, Metadata), read_prompt_file(path, dict)
    except PromptError as fault:
        wise = path.is_file() and b'"prompt_id"' in path.read_bytes()
        other = " (this is a list of WISE; pass --benchmark=wise)" if wise else ""
        raise EvaluationError(f"{fault}; name GenEval's evaluation_metadata.jsonl{other}") from None
    return [GenEvalPrompt(one, line) for one, line in zip(metadata, raw)]


def write_prompts(path: pathlib.Path, prompts: Sequence[GenEvalPrompt]) -> None:
    """Write a list that ``read_prompts`` reads."""
    write_lines(path, [prompt.raw for prompt in prompts])


def format_prompt_folder(number: int) -> str:
    """Return the name of a prompt's folder, such as "00017" for prompt 17, counted from 0."""
    return f"{number:0{DIGITS}d}"


def find_samples(
    folder: pathlib.Path, prompts: Sequence[GenEvalPrompt], samples: int = SAMPLES
) -> list[list[pathlib.Path]]:
    """Return the paths of ``samples`` images of each prompt. Only the metadata is opened.

    Raises:
      EvaluationError: Folders are missing, superfluous or misnumbered, belong to another prompt, or hold other samples
        than 0 to ``samples`` - 1.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    _check_numbering(folder, len(prompts))
    for number, prompt in enumerate(prompts):
        _check_metadata(folder / format_prompt_folder(number) / "metadata.jsonl", prompt, number)
    found = [_list_samples(folder / format_prompt_folder(number)) for number in range(len(prompts))]
    wrong = [i for i, files in enumerate(found) if [int(file.stem) for file in files] != list(range(samples))]
    if wrong:
        names = name_some(file.name for file in found[wrong[0]]) or "no numbered .png at all"
        raise EvaluationError(
            f"{folder}: {len(wrong)} of {len(prompts)} prompts do not hold samples 0 to {samples - 1}: "
            f"{name_some(map(format_prompt_folder, wrong))}; the first holds {names}; generate what is "
            "missing, or pass another number with --samples"
        )
    return found


def _check_numbering(folder: pathlib.Path, count: int) -> None:
    names = {path.name for path in folder.iterdir() if path.is_dir() and path.name.isdigit()}
    wanted = {format_prompt_folder(number) for number in range(count)}
    if not names:
        raise EvaluationError(f"{folder}: holds no folders 00000, 00001, ... as GenEval's images do")
    if surplus := sorted(names - wanted):
        raise EvaluationError(
            f"{folder}: {name_some(surplus)}: no prompt of the list has that number ({count} prompts are 00000 to "
            f"{format_prompt_folder(count - 1)}); name the list that these images were made from, or number them from "
            "00000"
        )
    if missing := sorted(wanted - names):
        raise EvaluationError(
            f"{folder}: {len(missing)} of {count} prompts are missing: {name_some(missing)}; generate them first"
        )


def _check_metadata(path: pathlib.Path, prompt: GenEvalPrompt, number: int) -> None:
    try:
        found = decode_metadata(path.read_bytes())  # without keys that GenEval does not have: they ask for nothing
    except OSError as fault:
        raise EvaluationError(f"{path}: {fault.strerror or fault}; generate the images again") from None
    except SceneError as fault:
        raise EvaluationError(f"{path}: {fault}; generate the images again") from None
    if found != prompt.metadata:
        raise EvaluationError(
            f"{path}: is of {found.prompt!r}, but line {number + 1} of the list is {prompt.metadata.prompt!r} "
            "(or asks for something else of it); name the list that these images were made from"
        )


def _list_samples(folder: pathlib.Path) -> list[pathlib.Path]:
    files = [path for path in folder.glob("samples/*.png") if path.stem.isdecimal()]
    return sorted(files, key=lambda path: int(path.stem))


def read_image_file(path: pathlib.Path, decode: Callable[[bytes, str], _Value]) -> _Value:
    """Return ``decode`` of an image file's bytes and path. Raises EvaluationError if it is not a readable image."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as fault:
        raise EvaluationError(f"{path}: {fault.strerror or fault}") from None
    except ImageTooLargeError as fault:
        raise EvaluationError(str(fault)) from None
    except ImageError as fault:
        raise EvaluationError(f"{fault}; make it again") from None


def read_image(path: pathlib.Path) -> PIL.Image.Image:
    """Read an image, whose ``info["file"]`` is its path. Raises EvaluationError if the file is not a readable image."""
    image = read_image_file(path, decode_image)
    image.info["file"] = str(path)
    return image


# (prompts, seeds) -> a trajectory of each; its last image is the result
ImageGenerator = Callable[[Sequence[str], Sequence[int]], Sequence[Trajectory]]


class ImageJob(NamedTuple):
    """An image to generate: the file's path in the folder, without suffix, and the prompt and seed of the sampling."""

    name: str
    prompt: str
    seed: int


def make_geneval_jobs(prompts: Sequence[GenEvalPrompt], samples: int, seed: int) -> list[ImageJob]:
    """Return the jobs in GenEval's layout. Sample j of prompt i has the seed ``seed + i * samples + j``."""
    return [
        ImageJob(f"{format_prompt_folder(i)}/samples/{j:0{DIGITS}d}", prompt.metadata.prompt, seed + i * samples + j)
        for i, prompt in enumerate(prompts)
        for j in range(samples)
    ]


def write_metadata(folder: pathlib.Path, prompts: Sequence[GenEvalPrompt]) -> None:
    """Write ``metadata.jsonl`` of every prompt in GenEval's layout."""
    for number, prompt in enumerate(prompts):
        path = folder / format_prompt_folder(number) / "metadata.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, [prompt.raw])


def begin_generation(folder: pathlib.Path, made_by: dict[str, Any], jobs: Sequence[ImageJob]) -> None:
    """Record in ``generation.json`` how the images are made and from which prompts and seeds.

    Args:
      folder: The folder of the images. It is created if it does not exist.
      made_by: All settings that decide an image, besides prompt and seed.
      jobs: All images of the folder.

    Raises:
      EvaluationError: The folder was begun with other settings or jobs, or holds images without a record.
    """
    record = {"made_by": made_by, "jobs": {job.name: [job.prompt, job.seed] for job in jobs}}
    path = folder / RECORD
    if path.exists():
        try:
            begun = load_json(path.read_bytes())
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


def generate_images(
    folder: pathlib.Path,
    trajectories: pathlib.Path,
    jobs: Sequence[ImageJob],
    generate: ImageGenerator,
    batch_size: int,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Generate the images that are missing. A run that was killed resumes where it stopped.

    Args:
      folder: The folder of the images.
      trajectories: The folder of the trajectories, under the names of the jobs.
      jobs: All images of the folder.
      generate: Makes the images of ``batch_size`` prompts and seeds, or fewer in the last call.
      batch_size: The number of images made in one call.
      progress: Called with the number of images done since the last call, first with those that existed.
    """
    missing = [job for job in jobs if not (folder / f"{job.name}.png").exists()]
    progress(len(jobs) - len(missing))
    for start in range(0, len(missing), batch_size):
        part = missing[start : start + batch_size]
        drawn = generate([job.prompt for job in part], [job.seed for job in part])
        for job, trajectory in zip(part, drawn, strict=True):
            own, path = trajectories / job.name, folder / f"{job.name}.png"
            if not own.exists():  # else it was saved just before the run was killed, and only its image is missing
                own.parent.mkdir(parents=True, exist_ok=True)
                save_trajectory(own, trajectory)
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as partial:
                trajectory.images[-1].save(partial, format="PNG")
        progress(len(part))

"""A sampled run's folder: the run's inputs, and one folder per trajectory, each of them whole or missing.

    RUN/run.json       settings, model and the list of prompts; written first
    RUN/000/           a trajectory: trajectory.json, PNGs; further files and RUN/index.html are made from these
    RUN/000-1/         a branch of it
    RUN/.before/       while a run is overwritten: the run before, whole

A killed run continues with the missing trajectories. An overwritten run is removed only when the new one has a
trajectory; until then the next process that opens the folder restores it. ``.before`` holds a run.json exactly while
the old run is whole in there: run.json is the last file to be moved in and the first to be moved out.
"""

import contextlib
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Generator, Sequence
from typing import Any

import msgspec

from pdgen import files
from pdgen.files import check_settings, new_file
from pdgen.json_text import decode_json
from pdgen.sample.runs.jobs import SampleJob
from pdgen.sample.settings import SampleSettings, replace_earlier_names

VERSION = 1
RUN, PAGE = "run.json", "index.html"
_BEFORE = ".before"
_NAME = re.compile(r"\d{3,}(-\d+)*")
# Files that a killed process was writing (see ``pdgen.files``) or removing.
_LEFTOVER = re.compile(rf"\.({_NAME.pattern}|{re.escape(RUN)}|{re.escape(PAGE)}|before)\.partial(-\d+)?")


class RunFolderError(ValueError):
    """A run's folder cannot be used; one line names it and the remedy."""


class SampleRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The inputs of a run, as run.json holds them.

    Attributes:
      checkpoint, model_hash: name and manifest digest of the model; only the digest must stay the same.
      strategy: its name, "" for the mode of the settings alone; ``options`` are its own settings.
      advisers: url, model and parameters of the advisers' endpoint; empty for shapes world's exact advisers.
    """

    checkpoint: str
    model_hash: str
    settings: SampleSettings
    jobs: list[SampleJob]
    strategy: str = ""
    options: dict[str, Any] = {}
    advisers: dict[str, Any] = {}
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}")


def read_run(folder: pathlib.Path) -> SampleRun:
    """Read the inputs of the run in ``folder``. Raises RunFolderError."""
    path = folder / RUN
    try:
        content = decode_json(path.read_bytes())
        if isinstance(content, dict) and isinstance(content.get("settings"), dict):
            content["settings"] = replace_earlier_names(content["settings"])
        return msgspec.convert(content, SampleRun)
    except OSError as fault:
        raise RunFolderError(f"{path}: {fault.strerror or fault}; expected the folder of a sampled run") from None
    except (msgspec.DecodeError, ValueError) as fault:
        raise RunFolderError(f"{path}: {fault}") from None


@contextlib.contextmanager
def open_run(folder: pathlib.Path, run: SampleRun, overwrite: bool = False) -> Generator[None, None, None]:
    """Claim ``folder`` for ``run``, a new one or one to continue.

    If nothing was sampled when the block ends, a new run is removed, and an overwritten run is restored.

    Raises:
      RunFolderError: the folder holds something else, or a run with other inputs that ``overwrite`` does not replace,
        or another process is sampling into it.
    """
    if folder.exists() and not _is_run(folder):
        only_leftovers = folder.is_dir() and all(_LEFTOVER.fullmatch(path.name) for path in folder.iterdir())
        if not only_leftovers:
            raise RunFolderError(f"{folder}: exists and is no sampled run ({RUN} is missing); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with lock_run(folder):
        begun = (folder / RUN).is_file()
        if begun and not overwrite:
            _check_same_inputs(folder, read_run(folder), run)
            yield
            return
        try:
            if begun:
                _set_aside(folder)
            with new_file(folder / RUN) as partial:
                partial.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
            yield
        finally:
            _finish_overwriting(folder)
            if not begun and not list_trajectories(folder):
                (folder / RUN).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # files of others stay
                    folder.rmdir()


@contextlib.contextmanager
def lock_run(folder: pathlib.Path) -> Generator[None, None, None]:
    """Keep other processes out of a run's ``folder``, and repair it after a kill.

    Raises:
      RunFolderError: there is no such folder, or another process is sampling into it.
    """
    try:
        os.listdir(folder)
    except OSError as fault:
        raise RunFolderError(f"{folder}: {fault.strerror}; expected the folder of a sampled run") from None
    with files.lock_folder(folder, "sampling into it", error=RunFolderError):
        _finish_overwriting(folder)
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / RUN).is_file() or (folder / _BEFORE / RUN).is_file()


def _set_aside(folder: pathlib.Path) -> None:
    """Move a run into ``.before``; files that are not the run's own stay."""
    (folder / _BEFORE).mkdir()
    for name in [*list_trajectories(folder), *([PAGE] if (folder / PAGE).is_file() else []), RUN]:
        (folder / name).rename(folder / _BEFORE / name)


def _finish_overwriting(folder: pathlib.Path) -> None:
    """Remove the old run if the new one has a trajectory, else restore it.

    After a kill at any moment, the next call completes the work.
    """
    before = folder / _BEFORE
    if not (before.is_dir() and _is_run(folder)):
        return
    if (before / RUN).is_file():
        if list_trajectories(folder):
            gone = folder / f"{_BEFORE}.partial-{os.getpid()}"
            before.rename(gone)  # in one step: a run that is half removed must not be restored
            shutil.rmtree(gone)
            return
        (before / RUN).replace(folder / RUN)  # first: from here on, trajectories outside belong to the old run
    for path in list(before.iterdir()):
        path.replace(folder / path.name)
    before.rmdir()


def _check_same_inputs(folder: pathlib.Path, begun: SampleRun, wanted: SampleRun) -> None:
    """Raise RunFolderError where a run would continue with other inputs; the checkpoint may lie elsewhere."""
    stored = msgspec.json.decode(msgspec.json.encode(wanted), type=SampleRun)  # tuples are lists there
    remedy = "pass --overwrite to begin anew, or name another folder"
    check_settings(
        folder, _list_inputs(begun), _list_inputs(stored), remedy=remedy, error=RunFolderError, show=_shorten_job
    )


def _list_inputs(run: SampleRun) -> dict[str, Any]:
    """List all inputs that must stay the same, by name; of a given image its content, not its path."""
    options = {f"{run.strategy}.{key}": value for key, value in run.options.items()}
    options |= {f"advisers.{key}": value for key, value in run.advisers.items()}
    model = {"model_hash": run.model_hash, "strategy": run.strategy or None}
    jobs = {}
    for job in run.jobs:
        images = [msgspec.structs.replace(image, path="") for image in job.images]
        jobs[f"trajectory {job.name}"] = msgspec.structs.replace(job, images=images)
    return model | {"number of trajectories": len(run.jobs)} | jobs | options | run.settings.flatten()


def _shorten_job(value: Any) -> Any:
    """Describe a job in a few words; return any other value as it is."""
    if not isinstance(value, SampleJob):
        return value
    images = "".join(f", image {given.sha256[:8]}" for given in value.images)
    return f"{value.prompt!r} with seed {value.seed}{images}"


def list_trajectories(folder: pathlib.Path) -> list[str]:
    """Return the names of the run's saved trajectories, branches after their parents."""
    return sorted(path.parent.name for path in folder.glob("*/trajectory.json") if _NAME.fullmatch(path.parent.name))


def find_missing(folder: pathlib.Path, jobs: Sequence[SampleJob]) -> list[SampleJob]:
    """Return the jobs without a trajectory. Raises RunFolderError where something else has its name."""
    saved = set(list_trajectories(folder))
    missing = [job for job in jobs if job.name not in saved]
    for job in missing:
        if os.path.lexists(folder / job.name):
            raise RunFolderError(
                f"{folder / job.name}: exists and is no trajectory (trajectory.json is missing); remove it"
            )
    return missing


def name_branch(folder: pathlib.Path, name: str) -> str:
    """Return a free name for a branch of the trajectory ``name``."""
    return next(branch for n in itertools.count(1) if not os.path.lexists(folder / (branch := f"{name}-{n}")))

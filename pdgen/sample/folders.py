"""A run's folder: what it was begun with, and one folder per trajectory, each there whole or not at all.

    RUN/run.json       settings, model and the list of prompts; written first
    RUN/000/           a trajectory: trajectory.json, PNGs; further files and RUN/index.html are made from these
    RUN/000-1/         a branch of it
    RUN/.before/       while a run is overwritten: all of the above, as it was

So a run that is killed goes on with the trajectories that are missing. One that is overwritten is gone only when the
new one has a trajectory of its own; until then the next that opens the folder puts it back. For that ``.before`` holds
a run.json exactly while the old run lies there whole: it comes last on the way in, and first on the way out.
"""

import contextlib
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import msgspec

from pdgen import files
from pdgen.files import check_settings, new_file
from pdgen.sample.prompts import Job
from pdgen.sample.settings import SampleSettings

VERSION = 1
RUN, PAGE = "run.json", "index.html"
_BEFORE = ".before"
_NAME = re.compile(r"\d{3,}(-\d+)*")
# What a killed process was writing (see ``pdgen.files``) or removing.
_LEFTOVER = re.compile(rf"\.({_NAME.pattern}|{re.escape(RUN)}|{re.escape(PAGE)}|before)\.partial(-\d+)?")


class RunError(ValueError):
    """A run's folder cannot be used; one line names it and the remedy."""


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run is begun with.

    Attributes:
      checkpoint, model_hash: name and manifest digest of the model; the digest alone must be the same to go on.
      strategy: its name, "" for the settings' mode alone, and ``options`` its own settings.
      advisers: of the endpoint that advises it what its answers depend on: url, model and parameters; empty for shapes
        world's exact advisers.
    """

    checkpoint: str
    model_hash: str
    settings: SampleSettings
    jobs: list[Job]
    strategy: str = ""
    options: dict[str, Any] = {}
    advisers: dict[str, Any] = {}
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}")


def read_run(folder: pathlib.Path) -> Run:
    """What the run in ``folder`` was begun with. Raises RunError."""
    path = folder / RUN
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except OSError as fault:
        raise RunError(f"{path}: {fault.strerror or fault}; expected the folder of a sampled run") from None
    except (msgspec.DecodeError, ValueError) as fault:
        raise RunError(f"{path}: {fault}") from None


@contextlib.contextmanager
def opened(folder: pathlib.Path, run: Run, overwrite: bool = False) -> Generator[None, None, None]:
    """Claims ``folder`` for ``run``, which begins there or goes on.

    Where the block ends and nothing was sampled, a run that has begun here is removed again, and one that was to be
    overwritten is back.

    Raises:
      RunError: the folder holds something else, or a run from other settings that ``overwrite`` does not replace,
        or another process is sampling into it.
    """
    if folder.exists() and not _is_run(folder) and (not folder.is_dir() or any(_foreign(folder))):
        raise RunError(f"{folder}: exists and is no sampled run ({RUN} is missing); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        begun = (folder / RUN).is_file()
        if begun and not overwrite:
            _agree(folder, read_run(folder), run)
            yield
            return
        try:
            if begun:
                _set_aside(folder)
            with new_file(folder / RUN) as partial:
                partial.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
            yield
        finally:
            _settle(folder)
            if not begun and not trajectories(folder):
                (folder / RUN).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # whatever else stands there stays
                    folder.rmdir()


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Generator[None, None, None]:
    """Keeps other processes out of a run's ``folder``, and puts right what a killed one left there.

    Raises:
      RunError: there is no such folder, or another process is sampling into it.
    """
    try:
        os.listdir(folder)
    except OSError as fault:
        raise RunError(f"{folder}: {fault.strerror}; expected the folder of a sampled run") from None
    with files.lock_folder(folder, "sampling into it", error=RunError):
        _settle(folder)
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / RUN).is_file() or (folder / _BEFORE / RUN).is_file()


def _foreign(folder: pathlib.Path) -> Iterable[pathlib.Path]:
    """What no run has written, nor a process that was killed before it had one."""
    return (path for path in folder.iterdir() if not _LEFTOVER.fullmatch(path.name))


def _set_aside(folder: pathlib.Path) -> None:
    """Moves a run into ``.before``; what is not the run's own stays."""
    (folder / _BEFORE).mkdir()
    for name in [*trajectories(folder), *([PAGE] if (folder / PAGE).is_file() else []), RUN]:
        (folder / name).rename(folder / _BEFORE / name)


def _settle(folder: pathlib.Path) -> None:
    """Ends an overwriting: the old run goes if the new one has a trajectory, else it comes back.

    A kill at any moment leaves what this does right when it is called again.
    """
    before = folder / _BEFORE
    if not (before.is_dir() and _is_run(folder)):
        return
    if (before / RUN).is_file():
        if trajectories(folder):
            gone = folder / f"{_BEFORE}.partial-{os.getpid()}"
            before.rename(gone)  # in one step: what is half removed is no run to put back
            shutil.rmtree(gone)
            return
        (before / RUN).replace(folder / RUN)  # first: from here on trajectories outside are no new ones
    for path in list(before.iterdir()):
        path.replace(folder / path.name)
    before.rmdir()


def _agree(folder: pathlib.Path, begun: Run, wanted: Run) -> None:
    """Raises RunError where a run would go on otherwise than it was begun; where the checkpoint lies is no matter."""
    stored = msgspec.json.decode(msgspec.json.encode(wanted), type=Run)  # tuples are lists there
    remedy = "pass --overwrite to begin anew, or name another folder"
    check_settings(folder, _told(begun), _told(stored), remedy=remedy, error=RunError, show=_words)


def _told(run: Run) -> dict[str, Any]:
    """All that must be the same, each under its name. Of a given image that is what it shows, not where it lies."""
    options = {f"{run.strategy}.{key}": value for key, value in run.options.items()}
    options |= {f"advisers.{key}": value for key, value in run.advisers.items()}
    model = {"model_hash": run.model_hash, "strategy": run.strategy or None}
    jobs = {}
    for job in run.jobs:
        images = [msgspec.structs.replace(image, path="") for image in job.images]
        jobs[f"trajectory {job.name}"] = msgspec.structs.replace(job, images=images)
    return model | {"number of trajectories": len(run.jobs)} | jobs | options | run.settings.flat()


def _words(value: Any) -> Any:
    """A value for the reader's eyes, jobs in short."""
    if not isinstance(value, Job):
        return value
    images = "".join(f", image {given.sha256[:8]}" for given in value.images)
    return f"{value.prompt!r} with seed {value.seed}{images}"


def trajectories(folder: pathlib.Path) -> list[str]:
    """The names of the run's trajectories that are there, branches after their parents."""
    return sorted(path.parent.name for path in folder.glob("*/trajectory.json") if _NAME.fullmatch(path.parent.name))


def missing(folder: pathlib.Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose trajectories are not there. Raises RunError where something else has the place of one."""
    there = set(trajectories(folder))
    lacking = [job for job in jobs if job.name not in there]
    for job in lacking:
        if os.path.lexists(folder / job.name):
            raise RunError(f"{folder / job.name}: exists and is no trajectory (trajectory.json is missing); remove it")
    return lacking


def next_branch(folder: pathlib.Path, name: str) -> str:
    """A free name for a branch of the trajectory ``name``."""
    return next(branch for n in itertools.count(1) if not os.path.lexists(folder / (branch := f"{name}-{n}")))

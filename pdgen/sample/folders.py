"""A run's folder: what it was begun with, and one folder per trajectory, each there whole or not at all.

    RUN/run.json       settings, model and the list of prompts; written first
    RUN/000/           a trajectory: trajectory.json, PNGs; further files and RUN/index.html are made from these
    RUN/000-1/         a branch of it

So a run that is killed goes on with the trajectories that are missing.
"""

import contextlib
import fcntl
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pdgen.files import new_file
from pdgen.sample.prompts import Job
from pdgen.sample.settings import SampleSettings

VERSION = 1
RUN = "run.json"
_NAME = re.compile(r"\d{3,}(-\d+)*")


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
def opened(folder: pathlib.Path, run: Run, overwrite: bool = False) -> Iterator[None]:
    """Claims ``folder`` for ``run``, which begins there or goes on. It is removed again where nothing was sampled.

    Raises:
      RunError: the folder holds something else, or a run from other settings that ``overwrite`` does not replace,
        or another process is sampling into it.
    """
    begun = (folder / RUN).is_file()
    if folder.exists() and not begun and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: exists and is no sampled run ({RUN} is missing); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if begun and not overwrite:
            _agree(folder, read_run(folder), run)
        else:
            for name in trajectories(folder):
                shutil.rmtree(folder / name)
            with new_file(folder / RUN) as partial:
                partial.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
        try:
            yield
        finally:
            if not trajectories(folder):
                (folder / RUN).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # whatever else stands there stays
                    folder.rmdir()


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of ``folder``, and removes what a killed one left half-written.

    Raises:
      RunError: another process is sampling into it.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another process is sampling into it; wait for its end") from None
        for leftover in folder.glob(".*.partial-*"):
            shutil.rmtree(leftover)
        yield
    finally:
        os.close(lock)


def _agree(folder: pathlib.Path, begun: Run, wanted: Run) -> None:
    """Raises RunError where a run would go on otherwise than it was begun; where the checkpoint lies is no matter."""
    before, now = _told(begun), _told(wanted)
    for key in [*now, *sorted(before.keys() - now.keys())]:
        if before.get(key) != now.get(key):
            raise RunError(f"{folder}: was begun with {key}={before.get(key)}, now it is {now.get(key)}; "
                           "pass --overwrite to begin anew, or name another folder")  # fmt: skip


def _told(run: Run) -> dict[str, Any]:
    """All that must be the same, one line each."""
    options = {f"{run.strategy}.{key}": value for key, value in run.options.items()}
    options |= {f"advisers.{key}": value for key, value in run.advisers.items()}
    model = {"model_hash": run.model_hash, "strategy": run.strategy or None}
    jobs = {f"trajectory {job.name}": _job(job) for job in run.jobs}
    return model | {"number of trajectories": len(run.jobs)} | jobs | options | run.settings.flat()


def _job(job: Job) -> str:
    images = "".join(f", {given.path} ({given.sha256[:8]})" for given in job.images)
    return f"{job.prompt[:60]!r} with seed {job.seed}{images}"


def trajectories(folder: pathlib.Path) -> list[str]:
    """The names of the run's trajectories that are there, branches after their parents."""
    return sorted(path.parent.name for path in folder.glob("*/trajectory.json") if _NAME.fullmatch(path.parent.name))


def missing(folder: pathlib.Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose trajectories are not there."""
    there = set(trajectories(folder))
    return [job for job in jobs if job.name not in there]


def next_branch(folder: pathlib.Path, name: str) -> str:
    """A free name for a branch of the trajectory ``name``."""
    there = set(trajectories(folder))
    return next(branch for n in itertools.count(1) if (branch := f"{name}-{n}") not in there)

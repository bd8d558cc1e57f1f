"""The folder of a sampled trajectory: ``trajectory.json``, a PNG for each image stage and, on request, the latents."""

import pathlib
from typing import Any

import msgspec
import numpy as np
import PIL.Image

from pdgen.files import load_arrays, new_file, new_folder
from pdgen.json_text import decode_json
from pdgen.sequence.images import ImageError, decode_image
from pdgen.sequence.trajectory import ImageStage, Trajectory, TrajectoryError, TrajectoryFile

_JSON, _LATENTS = "trajectory.json", "latents.npz"


def save_trajectory(folder: str | pathlib.Path, trajectory: Trajectory) -> None:
    """Write ``trajectory.json``, a PNG for each image stage and the latents to a new folder, atomically.

    Its parents are created.

    Raises:
      TrajectoryError: the folder exists, or the trajectory violates its grammar.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise TrajectoryError(f"{folder}: exists already; name another folder or remove it")
    _check(folder, trajectory)
    files = [stage.file for stage in trajectory.stages if isinstance(stage, ImageStage)]
    with new_folder(folder, kind="trajectory", replaceable=lambda _: False) as partial:
        for file, image in zip(files, trajectory.images):
            image.save(partial / file)
        if trajectory.latents is not None:
            arrays: dict[str, Any] = dict(trajectory.latents)
            np.savez(partial / _LATENTS, **arrays)
        (partial / _JSON).write_bytes(_format(trajectory))


def extend_trajectory(folder: str | pathlib.Path, trajectory: Trajectory) -> None:
    """Save a trajectory without latents in a new folder, or in the folder that holds its first stages.

    Pictures are written before the ``trajectory.json`` that names them, each file atomically. So whoever reads the
    folder finds a whole trajectory, the earlier one or this one.

    Raises:
      TrajectoryError: the trajectory violates its grammar.
      OSError: a file cannot be written.
    """
    folder = pathlib.Path(folder)
    if not folder.exists():
        save_trajectory(folder, trajectory)
        return
    _check(folder, trajectory)
    files = [stage.file for stage in trajectory.stages if isinstance(stage, ImageStage)]
    for file, image in zip(files, trajectory.images):
        if not (folder / file).exists():
            with new_file(folder / file) as partial:
                image.save(partial, "PNG")
    with new_file(folder / _JSON) as partial:
        partial.write_bytes(_format(trajectory))


def _format(trajectory: Trajectory) -> bytes:
    return msgspec.json.format(msgspec.json.encode(trajectory.file), indent=1) + b"\n"


def _check(folder: pathlib.Path, trajectory: Trajectory) -> None:
    try:
        trajectory.check()
    except TrajectoryError as fault:
        raise TrajectoryError(f"{folder}: {fault}") from None


def load_trajectory(folder: str | pathlib.Path) -> Trajectory:
    """Read a trajectory with its images (RGB) and, if the folder has them, its latents.

    Raises:
      TrajectoryError: a file is missing or malformed, an image's size differs from its stage's, or the stages
        violate the mode's grammar.
    """
    folder = pathlib.Path(folder)
    path = folder / _JSON
    try:
        stored = decode_json(path.read_bytes(), TrajectoryFile)
    except OSError as fault:
        raise TrajectoryError(f"{path}: {fault.strerror or fault}; expected a folder that sampling wrote") from None
    except msgspec.DecodeError as fault:
        raise TrajectoryError(f"{path}: {fault}") from None
    images = [_load_image(folder / stage.file) for stage in stored.stages if isinstance(stage, ImageStage)]
    latents = _load_latents(folder / _LATENTS) if (folder / _LATENTS).exists() else None
    values = {name: getattr(stored, name) for name in stored.__struct_fields__ if name != "version"}
    trajectory = Trajectory(**values, images=images, latents=latents)
    _check(folder, trajectory)
    return trajectory


def _load_image(path: pathlib.Path) -> PIL.Image.Image:
    try:
        return decode_image(path.read_bytes(), str(path))
    except OSError as fault:
        raise TrajectoryError(f"{path}: {fault.strerror or fault}") from None
    except ImageError as fault:
        raise TrajectoryError(str(fault)) from None


def _load_latents(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return load_arrays(path)
    except (OSError, ValueError) as fault:
        raise TrajectoryError(f"{path}: {fault}; remove it, or sample again") from None

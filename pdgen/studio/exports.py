"""What people take away of a trajectory: its folder, a strip, an animation, a command, a few lines of Python."""

import io
import pathlib
import shlex
import zipfile
from collections.abc import Callable

import msgspec

from pdgen.report.animation import save_animation
from pdgen.report.strip import make_strip
from pdgen.sample.runs.gallery import make_captions
from pdgen.sample.settings import make_base_settings
from pdgen.sequence.images import encode_png
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory
from pdgen.studio.errors import StudioError

Export = tuple[bytes, str, str]  # content, media type, file name


def list_files(trajectory: Trajectory) -> list[str]:
    """Return the files of a trajectory's pictures."""
    return [stage.file for stage in trajectory.stages if isinstance(stage, ImageStage)]


def make_zip(folder: pathlib.Path, name: str, trajectory: Trajectory) -> Export:
    """Pack the trajectory's folder, as ``launch/sample.py`` reads it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # Not the file, which may name a later picture by now.
        archive.writestr(f"{name}/trajectory.json", msgspec.json.format(msgspec.json.encode(trajectory.file), indent=1))
        for file in list_files(trajectory):
            archive.write(folder / name / file, f"{name}/{file}")
    return buffer.getvalue(), "application/zip", f"{name}.zip"


def _check_pictures(name: str, trajectory: Trajectory) -> None:
    if not trajectory.images:
        raise StudioError(f"{name} has no picture yet; run it first", 409)


def make_strip_file(folder: pathlib.Path, name: str, trajectory: Trajectory) -> Export:
    """Join the pictures, with captions."""
    _check_pictures(name, trajectory)
    return encode_png(make_strip(trajectory.images, make_captions(trajectory))), "image/png", f"{name}.png"


def make_animation(folder: pathlib.Path, name: str, trajectory: Trajectory) -> Export:
    """Blend each picture into the next, as WebP."""
    _check_pictures(name, trajectory)
    buffer = io.BytesIO()
    save_animation(buffer, trajectory.images, make_captions(trajectory))
    return buffer.getvalue(), "image/webp", f"{name}.webp"


def _find_own_stage(trajectory: Trajectory) -> tuple[int, str]:
    """Return where a branch begins, and its flag and value for ``launch/sample.py`` if its first stage is given."""
    assert trajectory.parent is not None
    number = trajectory.parent.stage
    stage = trajectory.stages[number] if number < len(trajectory.stages) else None
    if stage is None or stage.origin == "model":
        return number, ""
    if isinstance(stage, TextStage):
        return number, f"--{'critique' if stage.stage == 'inspect' else 'plan'}={stage.text}"
    return number, f"--draft={stage.file}"


def make_command(folder: pathlib.Path, name: str, trajectory: Trajectory) -> Export:
    """Write the command that draws the trajectory again: for a branch, beside its parent in the studio's folder."""
    words = [".venv/bin/python", "launch/sample.py"]
    if trajectory.parent is not None:
        number, own = _find_own_stage(trajectory)
        if own.startswith("--draft="):
            own = f"--draft={folder / name / own.partition('=')[2]}"
        words += [f"--branch={folder / name.rpartition('-')[0]}", f"--step={number}", own, f"--seed={trajectory.seed}"]
    else:
        given = [stage.file for stage in trajectory.stages if isinstance(stage, ImageStage) and stage.stage == "given"]
        words += [f"--checkpoint={trajectory.checkpoint}", f"--prompt={trajectory.prompt}", f"--seed={trajectory.seed}"]
        words += [f"--image={folder / name / file}" for file in given]
        words += [*_list_settings(trajectory), "--output=out/again"]
    return (shlex.join(filter(None, words)) + "\n").encode(), "text/plain", f"{name}.sh"


def _list_settings(trajectory: Trajectory) -> list[str]:
    """Return the flags of the settings that differ from the mode's defaults."""
    default, flags = make_base_settings(trajectory.mode).flatten(), [f"--mode={trajectory.mode}"]
    changed = {n: v for n, v in trajectory.settings.items() if n in default and default[n] != v and n != "mode"}
    if any(key.endswith(("interval_from", "interval_to")) for key in changed):
        both = [trajectory.settings[f"image.interval_{end}"] for end in ("from", "to")]
        flags.append(f"--interval={both[0]:g},{both[1]:g}")
    for key, value in changed.items():
        short = {"batch_size": "batch"}.get(key, key.rpartition(".")[2])
        if not short.startswith("interval_"):
            flags.append(f"--{short}={str(value).lower() if isinstance(value, bool) else value}")
    own = {key.removeprefix("refine."): v for key, v in trajectory.settings.items() if key.startswith("refine.")}
    flags += [f"--refine={key}={value}" for key, value in own.items() if not key.startswith("interval_")]
    return flags


def make_python(folder: pathlib.Path, name: str, trajectory: Trajectory) -> Export:
    """Write lines of Python that draw the trajectory again, from the stages that it began with."""
    first = trajectory.parent.stage if trajectory.parent else 0
    own = [number for number, stage in enumerate(trajectory.stages) if number >= first and stage.origin == "model"]
    lines = (
        "from pdgen.sample.sampler import Sampler",
        "from pdgen.sequence.trajectory_folder import load_trajectory",
        "",
        f"sampler = Sampler.from_checkpoint({trajectory.checkpoint!r})",
        f"trajectory = load_trajectory({str(folder / name)!r})",
        f"start = trajectory.branch({min(own, default=len(trajectory.stages))})",
        "again = sampler.resume(start)",
    )
    return ("\n".join(lines) + "\n").encode(), "text/x-python", f"{name}.py"


EXPORTS: dict[str, Callable[[pathlib.Path, str, Trajectory], Export]] = {
    "zip": make_zip,
    "strip": make_strip_file,
    "animation": make_animation,
    "command": make_command,
    "python": make_python,
}

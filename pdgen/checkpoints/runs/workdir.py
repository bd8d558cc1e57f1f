"""The folder of a training run: which steps it has, and which of them are intact.

config.json                       the resolved config
training_layout.json              how the data lay out images
checkpoints/<step>/               every leaf of the state as a Zarr 3 array, and digests.json
checkpoints/<step>.damaged/       a step that a resume moved away, since a file differed from digests.json
export/, export.json              a pdgen checkpoint of the raw weights of one step, and the number of the step

``digests.json`` has the size and SHA-256 of every file. It is written before Orbax renames the folder to its final
name, so a folder whose name is a number is complete. It reveals flipped bytes and truncated files, unlike Orbax.
"""

import concurrent.futures
import json
import pathlib

import msgspec

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.pdgen_checkpoint import is_checkpoint
from pdgen.files import Log, file_sha256
from pdgen.json_text import decode_json
from pdgen.messages import shorten

CONFIG_FILE, CHECKPOINTS, DIGESTS = "config.json", "checkpoints", "digests.json"
EXPORT, EXPORTED = "export", "export.json"
_ORBAX_METADATA = "_CHECKPOINT_METADATA"  # only times; Orbax writes it after the digests
_THREADS = 8  # SHA-256 is slower than most disks


class _FileDigest(msgspec.Struct):
    """One entry of ``digests.json``: a file's size, and its SHA-256 in hex."""

    bytes: int
    sha256: str


class _Exported(msgspec.Struct):
    """The content of ``export.json``."""

    step: int


def is_run(path: pathlib.Path) -> bool:
    """Return whether ``path`` looks like the workdir of a training run."""
    return (path / CHECKPOINTS).is_dir() and (path / CONFIG_FILE).is_file()


def list_steps(folder: pathlib.Path) -> list[int]:
    """Return the steps of the checkpoints in ``folder``, ascending."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())


def read_exported_step(workdir: pathlib.Path) -> int | None:
    """Read the step of a run's ``export/``; None if there is no export or its step is unknown."""
    try:
        step = decode_json((workdir / EXPORTED).read_bytes(), _Exported).step
    except (FileNotFoundError, ValueError):
        return None
    return step if is_checkpoint(workdir / EXPORT) else None


def find_newest_step(workdir: pathlib.Path, log: Log, *, beyond_export: bool = True) -> int | None:
    """Find the newest step of a run whose files match their digests.

    Args:
      workdir: the folder of the run.
      log: receives a line for each damaged step.
      beyond_export: whether to look only for steps that are newer than ``export/``.

    Returns:
      The step; None if no intact step is newer than ``export/``.

    Raises:
      CheckpointError: there is neither an intact step nor an export.
    """
    exported = read_exported_step(workdir) if beyond_export else None
    for step in reversed(list_steps(workdir / CHECKPOINTS)):
        if exported is not None and step <= exported:
            break
        folder = workdir / CHECKPOINTS / str(step)
        if not (fault := find_corruption(folder)):
            return step
        log(f"{folder}: step {step} is damaged, {fault}; an older one is used")
    if exported is None:
        raise CheckpointError(f"{workdir}: the training run has no whole checkpoint yet; wait for its first save")
    return None


def write_digests(folder: pathlib.Path) -> None:
    """Write ``digests.json`` of all files in ``folder``."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name not in (DIGESTS, _ORBAX_METADATA)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(file_sha256, [folder / name for name in names])
        files = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in zip(names, digests)
        }
    (folder / DIGESTS).write_text(json.dumps(files, indent=1) + "\n")


def find_corruption(folder: pathlib.Path, process: tuple[int, int] = (0, 1)) -> str:
    """Describe the first file of a checkpoint that does not match its digest; "" if all match.

    Args:
      folder: the folder of the step.
      process: (index, count): only every count-th file is read, from index on, so that processes share the work.
    """
    try:
        expected = decode_json((folder / DIGESTS).read_bytes(), dict[str, _FileDigest])
    except FileNotFoundError:
        return f"{DIGESTS} is missing"
    except ValueError:
        return f"{DIGESTS} cannot be read"
    names = sorted(expected)[process[0] :: process[1]]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for name, line in zip(names, pool.map(lambda name: _difference(folder / name, expected[name]), names)):
            if line:
                pool.shutdown(cancel_futures=True)
                return f"{shorten(name, 100)} {line}"
    return ""


def _difference(path: pathlib.Path, stated: _FileDigest) -> str:
    try:
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != stated.bytes:
            return f"has {path.stat().st_size:,} bytes, not {stated.bytes:,}"
        return "" if file_sha256(path) == stated.sha256 else "has changed since it was written"
    except OSError as fault:  # of the disk, or of a damaged name
        return f"cannot be read ({fault.strerror})"

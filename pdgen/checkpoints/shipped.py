"""The models of shapes world that the package brings along, by name: BAGEL folders, converted at their first use.

``shapes``       the process model: plans, sketches, inspects, refines
``shapes_base``  the base that it was fine-tuned from: draws, reads and edits in one pass
"""

import hashlib
import os
import pathlib

from pdgen.assets import shapes_folder
from pdgen.checkpoints.both_ways import to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.pdgen_checkpoint import is_checkpoint
from pdgen.checkpoints.torch_checkpoint import is_bagel_folder
from pdgen.files import FolderError, cache_folder

PROCESS, BASE = SHIPPED = ("shapes", "shapes_base")


def shipped_name(path: str | os.PathLike[str]) -> str | None:
    """The name of the shipped model that ``path`` says: the name itself, or the folder that it is converted to."""
    path = pathlib.Path(path)
    for name in SHIPPED:  # The weights are read only for a folder that may be theirs.
        if str(path) == name or (path.name.startswith(f"{name}-") and path == _converted(name)):
            return name
    return None


def shipped_checkpoint(name: str) -> pathlib.Path:
    """The pdgen checkpoint of a shipped model, in the user's cache folder; made there at the first use.

    Raises:
      CheckpointError: this installation lacks the model's weights.
      FolderError: the cache folder cannot be written.
    """
    target, source = _converted(name), shapes_folder(name)
    if is_checkpoint(target):
        return target
    if not is_bagel_folder(source):
        raise CheckpointError(
            f"{name}: this installation lacks the model's weights in {source}; install pdgen anew, "
            "or name another checkpoint"
        )
    try:
        to_pdgen(source, target, overwrite=True, say=lambda line: None)
    except (OSError, FolderError) as fault:
        if is_checkpoint(target):  # another process has made it meanwhile
            return target
        reason = fault.strerror if isinstance(fault, OSError) else fault
        raise FolderError(
            f"{target}: the model {name!r} cannot be converted to there ({reason}); name a folder that "
            "can be written by the environment variable XDG_CACHE_HOME"
        ) from None
    return target


def _converted(name: str) -> pathlib.Path:
    """Where it is converted to; another release's model of that name has another folder."""
    folder, digest = shapes_folder(name), hashlib.sha256()
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        digest.update(file.name.encode() + file.read_bytes())
    return cache_folder() / "checkpoints" / f"{name}-{digest.hexdigest()[:12]}"

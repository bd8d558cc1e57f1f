"""The models of shapes world that the package contains, by name: BAGEL folders, converted on first use.

``shapes``       the process model: plans, sketches, inspects, refines
``shapes_base``  the base from which it was fine-tuned: draws, describes and edits in one pass
"""

import hashlib
import os
import pathlib

from pdgen.assets import shapes_folder
from pdgen.checkpoints.conversion import to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.pdgen_checkpoint import is_checkpoint
from pdgen.checkpoints.torch_checkpoint import is_bagel_folder
from pdgen.files import FolderError, cache_folder

PROCESS, BASE = SHIPPED = ("shapes", "shapes_base")


def shipped_name(path: str | os.PathLike[str]) -> str | None:
    """Return the shipped model's name if ``path`` is that name or the folder of its conversion; otherwise None."""
    path = pathlib.Path(path)
    for name in SHIPPED:
        # ``_target_folder`` hashes the weights, so the cheap comparison comes first.
        if str(path) == name or (path.name.startswith(f"{name}-") and path == _target_folder(name)):
            return name
    return None


def shipped_checkpoint(name: str) -> pathlib.Path:
    """Return the pdgen checkpoint of a shipped model in the user's cache folder; convert the model on first use.

    Raises:
      CheckpointError: this installation lacks the model's weights.
      FolderError: the cache folder cannot be written.
    """
    target, source = _target_folder(name), shapes_folder(name)
    if is_checkpoint(target):
        return target
    if not is_bagel_folder(source):
        raise CheckpointError(
            f"{name}: this installation lacks the model's weights in {source}; install pdgen anew, "
            "or name another checkpoint"
        )
    try:
        to_pdgen(source, target, overwrite=True, log=lambda line: None)
    except (OSError, FolderError) as fault:
        if is_checkpoint(target):  # another process has converted it in the meantime
            return target
        reason = fault.strerror if isinstance(fault, OSError) else fault
        raise FolderError(
            f"{target}: the model {name!r} cannot be converted into this folder ({reason}); set the environment "
            "variable XDG_CACHE_HOME to a writable folder"
        ) from None
    return target


def _target_folder(name: str) -> pathlib.Path:
    """Return the folder of the conversion, which depends on the weights: another release has another folder."""
    folder, digest = shapes_folder(name), hashlib.sha256()
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        digest.update(file.name.encode() + file.read_bytes())
    return cache_folder() / "checkpoints" / f"{name}-{digest.hexdigest()[:12]}"

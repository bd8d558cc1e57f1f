"""The models of shapes world that the package brings along, by name: BAGEL folders, converted at their first use.

``shapes``       the process model: plans, sketches, inspects, refines
``shapes_base``  the base that it was fine-tuned from: draws, reads and edits in one pass
"""

import hashlib
import os
import pathlib

from pdgen.assets import shapes_folder
from pdgen.convert.both_ways import to_pdgen
from pdgen.convert.pdgen_checkpoint import is_checkpoint
from pdgen.files import cache_folder

SHIPPED = ("shapes", "shapes_base")


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
      FolderError: the cache folder cannot be written.
    """
    target = _converted(name)
    if not is_checkpoint(target):
        to_pdgen(shapes_folder(name), target, overwrite=True, say=lambda line: None)
    return target


def _converted(name: str) -> pathlib.Path:
    """Where it is converted to; another release's model of that name has another folder."""
    folder, digest = shapes_folder(name), hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return cache_folder() / "checkpoints" / f"{name}-{digest.hexdigest()[:12]}"

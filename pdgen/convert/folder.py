"""Writing a folder whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator


class CheckpointError(ValueError):
    """A checkpoint or its target cannot be used; the message, one line, names file and remedy."""


Say = Callable[[str], None]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def new_folder(
    target: pathlib.Path,
    nbytes: int,
    *,
    overwrite: bool,
    replaceable: Callable[[pathlib.Path], bool],
    say: Say,
) -> Iterator[pathlib.Path]:
    """Gives a temporary folder beside ``target`` that becomes ``target`` if the block ends without an error.

    Until then ``target`` is untouched, so a run killed at any moment leaves it as it was. What such a run
    leaves is named ``.<target>.partial-<process>`` and is reported by the next one. (Replacing takes two
    renames; in the instant between them the old folder is named ``.<target>.replaced-<process>``.)

    Args:
      target: the folder to make; its parent is made if needed.
      nbytes: what will be written, to compare with the free space beforehand.
      overwrite: whether an existing ``target`` may be replaced.
      replaceable: tells a folder that may be replaced from one that is something else altogether.
      say: takes one line for the user.

    Raises:
      CheckpointError: ``target`` exists, is not replaceable, or the disk is too small or full.
    """
    target = pathlib.Path(os.path.abspath(target))
    if os.path.lexists(target):
        if not overwrite:
            raise CheckpointError(f"{target}: exists; choose another target or add --overwrite")
        if not target.is_dir() or (any(target.iterdir()) and not replaceable(target)):
            raise CheckpointError(
                f"{target}: exists and is no checkpoint, so --overwrite does not replace it; choose another target"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < nbytes:
        raise CheckpointError(
            f"{target}: needs {nbytes:,} bytes, {target.parent} has {free:,} free; make room or choose another disk"
        )
    for stale in sorted(target.parent.glob(f".{target.name}.partial-*")):
        say(f"{stale}: left by a killed run or still being written by another; delete it if none runs")
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        partial.mkdir()
        yield partial
        _replace(partial, target)
    except BaseException as fault:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(fault, OSError) and fault.errno in DISK_FULL:
            raise CheckpointError(
                f"{target}: cannot be written, the disk or its quota is full ({nbytes:,} bytes are "
                "needed); make room and run again"
            ) from fault
        raise


def _replace(partial: pathlib.Path, target: pathlib.Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = target.parent / f".{target.name}.replaced-{os.getpid()}"
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)

"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

import contextlib
import errno
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Generator, Iterator

Say = Callable[[str], None]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderError(ValueError):
    """A folder may not or cannot be written; the message, one line, names it and the remedy."""


def to_stderr(line: str) -> None:
    """Prints a line for the user where no result is expected."""
    print(line, file=sys.stderr)


def cache_folder() -> pathlib.Path:
    """The user's folder for what can be made again: ``$XDG_CACHE_HOME/pdgen`` or ``~/.cache/pdgen``."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "pdgen"


@contextlib.contextmanager
def new_file(target: str | os.PathLike[str]) -> Generator[pathlib.Path, None, None]:
    """Gives a temporary path beside ``target`` that replaces ``target`` if the block ends without an error.

    A killed process may leave ``.<target>.partial``; the next one writes over it.
    """
    target = pathlib.Path(target)
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(
    target: str | os.PathLike[str],
    nbytes: int = 0,
    *,
    kind: str,
    replaceable: Callable[[pathlib.Path], bool],
    overwrite: bool = False,
    say: Say = to_stderr,
) -> Iterator[pathlib.Path]:
    """Gives a temporary folder beside ``target`` that becomes ``target`` if the block ends without an error.

    Until then ``target`` is untouched, so a run killed at any moment leaves it as it was. What such a run
    leaves is named ``.<target>.partial-<process>`` and is reported by the next one. (Replacing takes two
    renames; in the instant between them the old folder is named ``.<target>.replaced-<process>``.)

    Args:
      target: the folder to make; its parent is made if needed.
      nbytes: what will be written, to compare with the free space beforehand; 0 if unknown.
      kind: what the folder is, for messages, such as "checkpoint".
      replaceable: tells a folder that may be replaced from one that is something else altogether.
      overwrite: whether an existing ``target`` may be replaced.
      say: takes one line for the user.

    Raises:
      FolderError: ``target`` exists, is not replaceable, or the disk is too small or full.
    """
    target = pathlib.Path(os.path.abspath(target))
    check_target(target, kind, replaceable, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < nbytes:
        raise FolderError(
            f"{target}: needs {nbytes:,} bytes, {target.parent} has {free:,} free; make room or choose another disk"
        )
    for stale in sorted(target.parent.glob(f".{target.name}.partial-*")):
        say(f"{stale}: left by a killed run or still being written by another; delete it if none runs")
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        partial.mkdir()
        yield partial
        replace_folder(partial, target)
    except BaseException as fault:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(fault, OSError) and fault.errno in DISK_FULL:
            needed = f" ({nbytes:,} bytes are needed)" if nbytes else ""
            raise FolderError(
                f"{target}: cannot be written, the disk or its quota is full{needed}; make room and run again"
            ) from fault
        raise


def check_target(
    target: pathlib.Path, kind: str, replaceable: Callable[[pathlib.Path], bool], overwrite: bool
) -> None:
    """Raises FolderError where ``target`` exists and may not be replaced; arguments as for ``new_folder``."""
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FolderError(f"{target}: exists; choose another target or add --overwrite")
    if not target.is_dir() or (any(target.iterdir()) and not replaceable(target)):
        raise FolderError(
            f"{target}: exists and is no {kind}, so --overwrite does not replace it; choose another target"
        )


def replace_folder(partial: pathlib.Path, target: pathlib.Path) -> None:
    """Renames ``partial`` to ``target`` beside it, in the place of a folder that is there."""
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

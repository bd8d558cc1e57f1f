"""Files and folders that outlive a kill, the lock on them, and their digests.

A file or a folder appears whole or not at all: it is written under a temporary name, then renamed. A folder that a
killed run resumes follows one set of rules:

    locked        one process works in it at a time
    check_settings   it is resumed with the settings that it was begun with, or not at all
    new_file      each finished piece of work is a file or folder of its own; what is there is not made again
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

Log = Callable[[str], None]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderError(ValueError):
    """A folder may not or cannot be written; the message, one line, names it and the remedy."""


def log_stderr(line: str) -> None:
    """Prints a line for the user where no result is expected."""
    print(line, file=sys.stderr)


def sha256(data: bytes) -> str:
    """SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in lower-case hex; the file is read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], *, wait: bool = False) -> Iterator[bool]:
    """Holds the operating system's lock on ``path``, which ends with the process, however that ends.

    Gives whether the lock is held: False where another process or thread holds it. With ``wait`` it waits for that one.
    ``path`` is a folder, or a file, which is made where it is missing.

    Raises:
      OSError: ``path`` cannot be opened, or its file system has no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            # The last holder may have removed the file that this one waited for: then it locks nothing any more.
            if _is_open_as(path, descriptor):
                yield True
                return
        finally:
            os.close(descriptor)


def _is_open_as(path: str | os.PathLike[str], descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def lock_folder(
    folder: pathlib.Path, work: str, *, lock: pathlib.Path | None = None, error: type[Exception] = FolderError
) -> Iterator[None]:
    """Keeps other processes out of ``folder``.

    Args:
      folder: what the message names.
      work: what another process may be doing, such as "sampling into it".
      lock: the file or folder that is locked, by default ``folder``.
      error: raised where another process holds the lock, or it cannot be taken.
    """
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(file_lock(lock or folder))
        except OSError as fault:
            raise error(f"{folder}: cannot be locked ({fault.strerror}); choose a folder on another disk") from None
        if not held:
            raise error(f"{folder}: another process is {work}; wait for its end")
        yield


def check_settings(
    folder: pathlib.Path,
    begun: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    remedy: str,
    error: type[Exception] = FolderError,
    show: Callable[[Any], Any] = lambda value: value,
) -> None:
    """Raises ``error``, with the first key that differs, where a folder was begun with other settings than ``wanted``.

    ``show`` makes a value short enough for the message.
    """
    for key in [*wanted, *sorted(begun.keys() - wanted.keys())]:
        if begun.get(key) != wanted.get(key):
            was, now = show(begun.get(key)), show(wanted.get(key))
            raise error(f"{folder}: was begun with {key}={was}, now it is {now}; {remedy}")


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
    log: Log = log_stderr,
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
      log: takes one line for the user.

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
        log(f"{stale}: left by a killed run or still being written by another; delete it if none runs")
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


def check_target(target: pathlib.Path, kind: str, replaceable: Callable[[pathlib.Path], bool], overwrite: bool) -> None:
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

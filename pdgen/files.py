"""Atomic files and folders, locks and digests.

A file or folder is written under a temporary name and then renamed, so it appears complete or not at all. A folder of
work that a killed process can resume follows three rules:

    lock_folder      only one process at a time works in the folder
    check_settings   work is resumed with the settings with which it began, or refused
    new_file         every finished piece of work is a file or folder of its own and is not repeated
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np

from pdgen.messages import shorten

Log = Callable[[str], None]  # receives a line for the user

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_MAX_FAULT = 200  # characters of another library's message


class FolderError(ValueError):
    """A folder must not or cannot be written; the message is one line that names it and the remedy."""


def log_stderr(line: str) -> None:
    """Print a line to stderr, apart from a program's results."""
    print(line, file=sys.stderr)


def describe_fault(fault: OSError) -> str:
    """Return one line with the file of an error of the operating system, what is wrong, and the remedy."""
    if fault.errno is None:  # of a library, such as Pillow, with its own words
        return str(fault)
    if fault.errno in DISK_FULL:
        remedy = "; make room and run again, the same command continues where it can"
    elif fault.errno in _FORBIDDEN:
        remedy = "; change the permissions, or choose another folder"
    else:
        remedy = "; check the path and its disk"
    return f"{fault.filename or 'a file'}: {fault.strerror}{remedy}"


def shorten_fault(fault: BaseException) -> str:
    """Return the reason of an error in a few words on one line, without the file."""
    reason = fault.strerror if isinstance(fault, OSError) else None
    return shorten(reason or " ".join(str(fault).split()) or type(fault).__name__, _MAX_FAULT)


def to_os_error(fault: Exception, path: str | os.PathLike[str], reason: str = "") -> OSError:
    """Return another library's error while writing ``path`` as an error of the operating system.

    Args:
      fault: the error; libraries give the system's own words somewhere in its text.
      path: file or folder that was being written.
      reason: the error in a few words; "": the words of ``fault``.

    Returns:
      An error with its number, EIO if the text has none that is known.
    """
    reason = reason or shorten_fault(fault)
    known = (*DISK_FULL, *_FORBIDDEN, errno.ENOENT)
    number = next((n for n in known if os.strerror(n) in str(fault)), errno.EIO)
    return OSError(number, reason if number == errno.EIO else os.strerror(number), os.fspath(path))


def is_plain_name(name: str, suffix: str = "") -> bool:
    """Return whether ``name`` names a file in whatever folder it is appended to, and ends in ``suffix``."""
    return name not in ("", "..") and pathlib.PurePath(name).name == name and "\0" not in name and name.endswith(suffix)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in lower-case hex; read it in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of a NumPy archive (.npz), never a pickle.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is damaged; the message has the reason without the file.
    """
    with open(path, "rb") as file:  # NumPy leaves a file open that it opened itself and cannot read
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception as fault:  # on damaged archives zipfile, zlib and NumPy raise nearly every class
            raise ValueError(f"no whole NumPy archive ({shorten_fault(fault)})") from None


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], *, wait: bool = False) -> Generator[bool, None, None]:
    """Hold the operating system's lock on ``path`` within the block; it ends with the process in any case.

    Args:
      path: a folder, or a file that is created if needed.
      wait: whether to wait for another process or thread that holds the lock.

    Yields:
      Whether the lock is held; without ``wait`` False if another process or thread holds it.

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
            # The last holder may have removed the file. A lock on a removed file protects nothing, so try again.
            if _is_open_as(path, descriptor):
                yield True
                return
        finally:
            os.close(descriptor)


def _is_open_as(path: str | os.PathLike[str], descriptor: int) -> bool:
    """Return whether ``path`` is still the file that ``descriptor`` has open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def lock_folder(
    folder: pathlib.Path, work: str, *, lock: pathlib.Path | None = None, error: type[Exception] = FolderError
) -> Generator[None, None, None]:
    """Keep other processes out of ``folder`` within the block.

    Args:
      folder: the folder, for the message.
      work: what another process may be doing, such as "sampling into it", for the message.
      lock: the file or folder to lock; None: ``folder``.
      error: class of the error that is raised if another process holds the lock, or locking fails.
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
    """Raise ``error`` if the settings with which work in a folder began differ from those that are wanted.

    Args:
      folder: the folder, for the message.
      begun: the settings with which the work began.
      wanted: the settings now; the message names the first key that differs.
      remedy: what the user can do, for the message.
      error: class of the error.
      show: shortens a value for the message.
    """
    for key in [*wanted, *sorted(begun.keys() - wanted.keys())]:
        if begun.get(key) != wanted.get(key):
            was, now = show(begun.get(key)), show(wanted.get(key))
            raise error(f"{folder}: was begun with {key}={was}, now it is {now}; {remedy}")


def cache_folder() -> pathlib.Path:
    """Return the user's cache folder: ``$XDG_CACHE_HOME/pdgen`` or ``~/.cache/pdgen``."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "pdgen"


def check_writable(folder: str | os.PathLike[str], error: type[Exception] = FolderError) -> None:
    """Raise ``error`` unless files can be written into ``folder``, or into the nearest folder above it that exists.

    Call it before work whose result is written there. It writes a nameless file and keeps nothing, since permissions
    alone do not say what a file system allows.

    Args:
      folder: the folder; it need not exist.
      error: class of the error, whose message is one line.
    """
    existing = pathlib.Path(os.path.abspath(folder))
    try:
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as fault:
        remedy = "make room" if fault.errno in DISK_FULL else "change the permissions"
        where = "" if existing == pathlib.Path(os.path.abspath(folder)) else f" in {existing}"
        raise error(
            f"{folder}: cannot be written{where} ({fault.strerror}); {remedy}, or choose another folder"
        ) from None


@contextlib.contextmanager
def new_file(target: str | os.PathLike[str]) -> Generator[pathlib.Path, None, None]:
    """Yield a temporary path beside ``target`` that replaces ``target`` if the block ends without an error.

    A killed process may leave ``.<target>.partial``, which the next process overwrites.

    Raises:
      OSError: ``target`` cannot be written. It has ``target`` as its file name if the error of the block has none.
    """
    target = pathlib.Path(target)
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        os.replace(partial, target)
    except OSError as fault:
        if fault.errno is None or (fault.filename and os.fspath(fault.filename) != str(partial)):
            raise
        raise OSError(fault.errno, os.strerror(fault.errno), str(target)) from fault  # a full disk names no file
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone or forbidden, which the error above says
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
) -> Generator[pathlib.Path, None, None]:
    """Yield a temporary folder beside ``target`` that becomes ``target`` if the block ends without an error.

    Until then ``target`` does not change, even if the process is killed. A killed process leaves a folder
    ``.<target>.partial-<process>``, which the next one reports. Replacing a folder takes two renames; a process that
    is killed between them leaves the old folder as ``.<target>.replaced-<process>``.

    Args:
      target: the folder to write; its parent is created if needed.
      nbytes: bytes to be written, to be compared with the free space; 0 if unknown.
      kind: kind of the folder for messages, such as "checkpoint".
      replaceable: returns whether a folder is of this kind, so that it may be replaced.
      overwrite: whether to replace an existing ``target``.
      log: receives lines for the user.

    Raises:
      FolderError: ``target`` exists and may not be replaced, or the disk is too small or full.
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
    """Raise FolderError if ``target`` exists and may not be replaced; arguments as ``new_folder``."""
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FolderError(f"{target}: exists; choose another target or add --overwrite")
    if not target.is_dir() or (any(target.iterdir()) and not replaceable(target)):
        raise FolderError(
            f"{target}: exists and is no {kind}, so --overwrite does not replace it; choose another target"
        )


def replace_folder(partial: pathlib.Path, target: pathlib.Path) -> None:
    """Rename ``partial`` to ``target`` beside it and remove the old ``target``, if any."""
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

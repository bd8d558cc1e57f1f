"""The cache of paid answers by ``diskcache`` (the extra ``endpoint``), shared by threads and processes."""

import contextlib
import functools
import pathlib
import sqlite3
from collections.abc import Generator, Sequence
from typing import Any

import diskcache
import msgspec
from absl import logging
from diskcache.core import DBNAME, MODE_BINARY, MODE_PICKLE, MODE_RAW

from pdgen.files import file_lock
from pdgen.json_text import decode_json
from pdgen.teachers.chat import PaidAnswer
from pdgen.teachers.protocols import TeacherError


class CacheEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All answers to one request, in order. The cache holds it as JSON."""

    model: str
    task: str
    answers: list[PaidAnswer]


class _PlainDisk(diskcache.Disk):
    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        # diskcache would load a pickle, which can run any program. As bytes it is only a malformed answer.
        if mode == MODE_PICKLE:
            mode = MODE_BINARY if value is None else MODE_RAW
        return super().fetch(mode, filename, value, read)


class AnswerCache:
    """Answers by key (lower-case hexadecimal) in ``folder``, which the first lock creates.

    The folder may also hold files of pdgen 0.3, one per request. They are read if the cache has no entry.
    """

    def __init__(self, folder: str | pathlib.Path):
        self._folder = pathlib.Path(folder)
        self._database = self._folder / DBNAME

    def read(self, key: str) -> list[PaidAnswer]:
        """Return the answers under ``key``; empty if there are none. Logs a warning if they are malformed.

        Raises:
          TeacherError: the cache cannot be read.
        """
        source = self._database
        data: Any = diskcache.ENOVAL
        if source.exists():
            with self._report_faults():
                data = self._entries.get(key, diskcache.ENOVAL)
        try:
            if data is diskcache.ENOVAL:
                source = self._folder / key[:2] / f"{key}.json"
                data = source.read_bytes()
            return decode_json(data, CacheEntry).answers
        except FileNotFoundError:
            return []
        except (TypeError, ValueError) as fault:
            logging.warning("%s: not readable (%s); asking again", source, fault)
            return []

    def write(self, key: str, model: str, task: str, answers: Sequence[PaidAnswer]) -> None:
        """Replace an entry atomically. The caller must hold its lock. Raises TeacherError if that is impossible."""
        data = msgspec.json.encode(CacheEntry(model=model, task=task, answers=list(answers)))
        with self._report_faults():
            self._entries.set(key, data)

    @contextlib.contextmanager
    def locked(self, key: str) -> Generator[None, None, None]:
        """Lock ``key`` against all other threads and processes. The lock of a killed process is released."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{key}.lock"
        with file_lock(path, wait=True):
            try:
                yield
            finally:
                path.unlink()

    @functools.cached_property
    def _entries(self) -> diskcache.Cache:
        return diskcache.Cache(
            str(self._folder.absolute()),
            disk=_PlainDisk,
            eviction_policy="none",  # answers are paid for
            disk_min_file_size=1 << 30,  # all in one file, so that no crash leaves another one behind
            sqlite_journal_mode="delete",  # this and the next one, for network file systems
            sqlite_mmap_size=0,
        )

    @contextlib.contextmanager
    def _report_faults(self) -> Generator[None, None, None]:
        try:
            yield
        except (sqlite3.Error, diskcache.Timeout, UnicodeDecodeError) as fault:
            raise TeacherError(
                f"{self._database}: {str(fault) or 'locked or not writable'}; make room, change the permissions, or "
                "move a damaged file away, after which its answers are paid for again"
            ) from None

"""Answers that were paid for, kept by content: one file per request, shared by threads and processes."""

import contextlib
import pathlib
from collections.abc import Generator, Sequence

import msgspec
from absl import logging

from pdgen.files import file_lock, new_file


class PaidAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model answered once, whether it is of use or not; tokens as the server counted them."""

    content: str
    refusal: str | None
    finish_reason: str | None
    input_tokens: int
    output_tokens: int


class CacheEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cache file: every answer to one request, in the order in which they came."""

    model: str
    task: str
    answers: list[PaidAnswer]


class AnswerCache:
    """Entries by key (lower-case hex) in ``folder``, which is made at the first write."""

    def __init__(self, folder: str | pathlib.Path):
        self._folder = pathlib.Path(folder)

    def _path(self, key: str) -> pathlib.Path:
        return self._folder / key[:2] / f"{key}.json"

    def read(self, key: str) -> list[PaidAnswer]:
        """The answers under ``key``, none if there is no file; a file that is none of ours is warned of."""
        path = self._path(key)
        try:
            return msgspec.json.decode(path.read_bytes(), type=CacheEntry).answers
        except FileNotFoundError:
            return []
        except msgspec.DecodeError as fault:
            logging.warning("%s: not readable (%s); asking again", path, fault)
            return []

    def write(self, key: str, model: str, task: str, answers: Sequence[PaidAnswer]) -> None:
        """Replaces the entry, for the holder of its lock; readers see the old file or the new one."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = msgspec.json.format(
            msgspec.json.encode(CacheEntry(model=model, task=task, answers=list(answers))), indent=1
        )
        with new_file(path) as partial:
            partial.write_bytes(data + b"\n")

    @contextlib.contextmanager
    def locked(self, key: str) -> Generator[None, None, None]:
        """Whoever holds ``key`` is alone with it among all threads and processes; a killed holder lets go."""
        path = self._path(key).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path, wait=True):
            try:
                yield
            finally:
                path.unlink()

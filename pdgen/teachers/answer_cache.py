"""The cache of paid answers: one file per request, shared by threads and processes."""

import contextlib
import pathlib
from collections.abc import Generator, Sequence

import msgspec
from absl import logging

from pdgen.files import file_lock, new_file
from pdgen.json_text import decode_json


class PaidAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer of a model, usable or not, with the tokens that the server counted."""

    content: str
    refusal: str | None
    finish_reason: str | None
    input_tokens: int
    output_tokens: int


class CacheEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cache file: all answers to one request, in order."""

    model: str
    task: str
    answers: list[PaidAnswer]


class AnswerCache:
    """Entries by key (lower-case hexadecimal) in ``folder``, which the first lock creates."""

    def __init__(self, folder: str | pathlib.Path):
        self._folder = pathlib.Path(folder)

    def _path(self, key: str) -> pathlib.Path:
        return self._folder / key[:2] / f"{key}.json"

    def read(self, key: str) -> list[PaidAnswer]:
        """Return the answers under ``key``; empty if there is no file. Logs a warning if the file is malformed."""
        path = self._path(key)
        try:
            return decode_json(path.read_bytes(), CacheEntry).answers
        except FileNotFoundError:
            return []
        except msgspec.DecodeError as fault:
            logging.warning("%s: not readable (%s); asking again", path, fault)
            return []

    def write(self, key: str, model: str, task: str, answers: Sequence[PaidAnswer]) -> None:
        """Replace an entry atomically. The caller must hold its lock."""
        data = msgspec.json.encode(CacheEntry(model=model, task=task, answers=list(answers)))
        with new_file(self._path(key)) as partial:
            partial.write_bytes(msgspec.json.format(data, indent=1) + b"\n")

    @contextlib.contextmanager
    def locked(self, key: str) -> Generator[None, None, None]:
        """Lock ``key`` against all other threads and processes. The lock of a killed process is released."""
        path = self._path(key).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path, wait=True):
            try:
                yield
            finally:
                path.unlink()

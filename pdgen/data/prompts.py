"""Files of prompts: one prompt per line, as plain text or as JSON objects."""

import pathlib
from collections.abc import Callable
from typing import TypeVar

import msgspec

from pdgen.json_text import decode_json

_Prompt = TypeVar("_Prompt")


class PromptError(ValueError):
    """A prompt, prompt file or given image that cannot be used. The message is one line with the remedy."""


def read_prompt_file(
    path: pathlib.Path, record: type[_Prompt], plain: Callable[[str], _Prompt] | None = None
) -> list[_Prompt]:
    """Read a UTF-8 file with one prompt per line.

    A line that begins with "{" is a JSON object. If the first line is one, all lines must be. Lines end only at line
    feeds, with or without a carriage return.

    Args:
      record: the msgspec type of a JSON object.
      plain: makes a record of a line of plain text without surrounding whitespace; empty lines are skipped. None: every
        line must be a JSON object, also an empty one, except empty lines at the end.

    Returns:
      The records in the file's order, at least one.

    Raises:
      PromptError: the file cannot be read, has no prompt or is a JSON list, or a line is malformed; the message names
        the line.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise PromptError(f"{path}: cannot be read as text ({fault})") from None
    rows = [(number, row.strip()) for number, row in enumerate(text.rstrip().split("\n"), 1)]
    if plain or not text.strip():
        rows = [(number, row) for number, row in rows if row]
    if not rows:
        raise PromptError(f"{path}: holds no prompt; write one a line")
    number, first = rows[0]
    if first.startswith("["):
        raise PromptError(
            f"{path}: line {number}: starts with '[', as a JSON list does; write one prompt or JSON object a line "
            '(a prompt that starts so as {"prompt": "[..."})'
        )
    text_allowed = plain is not None and not first.startswith("{")
    records = []
    for number, row in rows:
        if plain is not None and text_allowed and not row.startswith("{"):
            records.append(plain(row))
            continue
        try:
            records.append(decode_json(row, record))
        except msgspec.DecodeError as fault:
            raise PromptError(f"{path}: line {number}: {fault}") from None
    return records


class _PromptText(msgspec.Struct, frozen=True):
    """A JSON object of which only the key "prompt" is used."""

    prompt: str


def read_prompt_texts(path: pathlib.Path) -> list[str]:
    """Read the prompts of a file: plain text, or the key "prompt" of JSON objects.

    Raises:
      PromptError: see ``read_prompt_file``.
    """
    return [line.prompt for line in read_prompt_file(path, _PromptText, plain=_PromptText)]

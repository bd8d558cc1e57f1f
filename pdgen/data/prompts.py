"""Reads files of prompts: one prompt a line, as plain text or as JSON objects."""

import pathlib
from collections.abc import Callable
from typing import TypeVar

import msgspec

_Prompt = TypeVar("_Prompt")


class PromptError(ValueError):
    """A prompt, a file of prompts or a given image cannot be used; one line names it and the remedy."""


def read_prompt_file(
    path: pathlib.Path, record: type[_Prompt], plain: Callable[[str], _Prompt] | None = None
) -> list[_Prompt]:
    """Reads a UTF-8 file with one prompt a line.

    A line that begins with "{" is a JSON object. If the first one is, all must be. Lines end at line feeds, with or
    without a carriage return, and nowhere else.

    Args:
      path: The file.
      record: What a JSON object is decoded to, a msgspec type.
      plain: Makes a record of a line of plain text, without surrounding blanks; empty lines are skipped. None: the
        file must hold one JSON object a line, and an empty line is none.

    Returns:
      The records in the file's order, at least one.

    Raises:
      PromptError: The file cannot be read, holds no prompt or is a JSON list, or a line is no such object; the message
        names the line.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise PromptError(f"{path}: cannot be read as text ({fault})") from None
    rows = [(number, row.strip()) for number, row in enumerate(text.removesuffix("\n").split("\n"), 1)]
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
        if text_allowed and not row.startswith("{"):
            records.append(plain(row))
            continue
        try:
            records.append(msgspec.json.decode(row, type=record))
        except msgspec.DecodeError as fault:
            raise PromptError(f"{path}: line {number}: {fault}") from None
    return records


class _PromptText(msgspec.Struct, frozen=True):
    """An object of which the key "prompt" alone counts."""

    prompt: str


def read_prompt_texts(path: pathlib.Path) -> list[str]:
    """Reads the prompts of a file as ``read_prompt_file`` does: plain text, or the key "prompt" of JSON objects.

    Raises:
      PromptError: See ``read_prompt_file``.
    """
    return [line.prompt for line in read_prompt_file(path, _PromptText, plain=_PromptText)]

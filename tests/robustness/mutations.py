"""Damaged copies of a file's bytes, the same for the same seed."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

COUNT = 200  # mutations of one file

# JSON values, as text, that a key may wrongly have.
_VALUES = (
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    str(2**31),
    str(2**63),
    "9" * 400,
    "9" * 5000,
    "1e999",
    "NaN",
    "-Infinity",
    '""',
    '" "',
    '"\\u0000"',
    '"\\ud800"',
    '"..\\/other"',
    '"' + "long" * 10_000 + '"',
    "[]",
    "{}",
    '["a", 1, null]',
    '{"a": {"b": []}}',
    "[" * 50_000 + "]" * 50_000,
    '{"a":' * 50_000 + "1" + "}" * 50_000,
)
_TEXTS = (b"\xff\xfe", b"\xc3(", b"\xed\xa0\x80", b"\x00", b"\r\n", b"\n\n", b"\xe2\x80\xa8", b"9" * 400, b"[" * 50_000)


class _Pairs(list):
    """The keys and values of a JSON object, which may have the same key twice."""


def mutate(data: bytes, seed: int, count: int = COUNT) -> Iterator[tuple[str, bytes]]:
    """Yield ``count`` names and damaged copies of ``data``.

    Whole-file damage comes first, then random bytes. Every second one of a JSON file, or of a file of JSON lines,
    changes keys and values of the JSON.
    """
    rng = np.random.default_rng(seed)
    whole = list(_mutate_whole(data))[:count]
    yield from whole
    lines = _parse(data)
    for number in range(len(whole), count):
        kinds = _JSON if lines and number % 2 else _BYTES
        kind = kinds[rng.integers(len(kinds))]
        mutated = kind(lines, rng) if kinds is _JSON else kind(data, rng)
        yield f"{number} {kind.__name__.strip('_')}", mutated


def _mutate_whole(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "one byte", data[:1]
    yield "blank", b" \n"
    yield "doubled", data + data
    yield "empty last line", data + b"\n\n"
    yield "CRLF", data.replace(b"\n", b"\r\n")
    yield "BOM", b"\xef\xbb\xbf" + data
    yield "null bytes", bytes(len(data))
    yield "ones", b"\xff" * len(data)
    yield "UTF-16", data.decode("latin-1").encode("utf-16")
    yield "deep", b"[" * 100_000
    yield "number", b"9" * 5000
    yield "page", b"<!DOCTYPE html>\n<title>Log in</title>\n"
    yield "pickle", b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."
    for value in ("null", "true", "3", '"a"', "[]", "{}", "[1]", '{"a": 1}', "NaN"):
        yield f"only {value}", value.encode()


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Draw a place; half are near the beginning, where headers are."""
    end = min(len(data), 200) if rng.random() < 0.5 else len(data)
    return int(rng.integers(max(end, 1)))


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    result = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        result[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(result)


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 64))) + data[at:]


def _remove(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 64)) :]


def _swap(data: bytes, rng: np.random.Generator) -> bytes:
    first, second, third = sorted(_place(data, rng) for _ in range(3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def _clear(data: bytes, rng: np.random.Generator) -> bytes:
    at, length = _place(data, rng), int(rng.integers(1, 64))
    return data[:at] + bytes(length) + data[at + length :]


def _enlarge(data: bytes, rng: np.random.Generator) -> bytes:
    """Make a number huge: decimal digits if there are any, or 1 to 8 bytes."""
    digits = list(re.finditer(rb"\d+", data)) if data.isascii() else []
    if digits:
        found = digits[rng.integers(len(digits))]
        return data[: found.start()] + b"9" * int(rng.choice([10, 20, 400])) + data[found.end() :]
    at, length = _place(data, rng), int(rng.choice([1, 2, 4, 8]))
    return data[:at] + [b"\xff", b"\x7f"][rng.integers(2)] * length + data[at + length :]


def _put_text(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + _TEXTS[rng.integers(len(_TEXTS))] + data[at:]


_BYTES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    _flip,
    _truncate,
    _insert,
    _remove,
    _swap,
    _clear,
    _enlarge,
    _put_text,
)


def _parse(data: bytes) -> list[Any]:
    """Return the JSON values of the file, one or one a line; none if it is no JSON."""
    for parts in ([data], data.splitlines()):
        try:
            return [json.loads(part, object_pairs_hook=_Pairs) for part in parts]
        except ValueError:
            continue
    return []


class _Raw(str):
    """JSON text that is written verbatim."""


def _dump(value: Any) -> str:
    if isinstance(value, _Raw):
        return value
    if isinstance(value, _Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {_dump(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dump, value)) + "]"
    return json.dumps(value)


def _edit(lines: list[Any], rng: np.random.Generator, edit: Callable[[list, int], None]) -> bytes:
    """Call ``edit`` with an object, array or list of lines, and the index of its item to change; write all lines."""
    line = int(rng.integers(len(lines)))
    root = json.loads(f"[{_dump(lines[line])}]", object_pairs_hook=_Pairs)
    holder, index = root, 0
    while True:
        value = holder[index][1] if isinstance(holder, _Pairs) else holder[index]
        if not isinstance(value, list) or not value or rng.random() < 0.15:
            break
        holder, index = value, int(rng.integers(len(value)))
    edit(holder, index)
    return "\n".join(map(_dump, [*lines[:line], *root, *lines[line + 1 :]])).encode()


def _change(lines: list[Any], rng: np.random.Generator) -> bytes:
    value = _Raw(_VALUES[rng.integers(len(_VALUES))])

    def edit(holder: list, index: int) -> None:
        holder[index] = (holder[index][0], value) if isinstance(holder, _Pairs) else value

    return _edit(lines, rng, edit)


def _drop(lines: list[Any], rng: np.random.Generator) -> bytes:
    return _edit(lines, rng, lambda holder, index: holder.pop(index))


def _double(lines: list[Any], rng: np.random.Generator) -> bytes:
    return _edit(lines, rng, lambda holder, index: holder.append(holder[index]))


def _add(lines: list[Any], rng: np.random.Generator) -> bytes:
    value = _Raw(_VALUES[rng.integers(len(_VALUES))])

    def edit(holder: list, index: int) -> None:
        holder.insert(index, ("extra", value) if isinstance(holder, _Pairs) else value)

    return _edit(lines, rng, edit)


def _rename(lines: list[Any], rng: np.random.Generator) -> bytes:
    name = ("", "Extra", "\x00", "a" * 10_000, "\ud800")[rng.integers(5)]

    def edit(holder: list, index: int) -> None:
        if isinstance(holder, _Pairs):
            holder[index] = (name, holder[index][1])
        else:
            holder.reverse()

    return _edit(lines, rng, edit)


_JSON: tuple[Callable[[list[Any], np.random.Generator], bytes], ...] = (_change, _change, _drop, _double, _add, _rename)

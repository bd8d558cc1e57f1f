"""JSON of unknown origin. Both functions raise ValueError and nothing else, also if it is nested too deeply."""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar, overload

import msgspec

_Value = TypeVar("_Value")
_Text = bytes | str | msgspec.Raw
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_TOO_DEEP = "JSON is nested too deeply"


@overload
def decode_json(data: _Text, kind: type[_Value]) -> _Value: ...


@overload
def decode_json(data: _Text, kind: Any = Any) -> Any: ...


def decode_json(data: _Text, kind: Any = Any) -> Any:
    """Decode JSON to a value of the type ``kind``, strictly: UTF-8 without a byte order mark, no NaN.

    Raises:
      msgspec.DecodeError: a ValueError; the text is malformed, nested too deeply, or not of this type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise msgspec.DecodeError(_TOO_DEEP) from None
    except UnicodeEncodeError as fault:
        raise msgspec.DecodeError(f"not valid Unicode ({fault.reason})") from None


def load_json(data: bytes | str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Decode JSON as Python's library does, which also reads NaN and infinities.

    Args:
      data: the text; bytes are UTF-8, with or without a byte order mark.
      pairs: makes the value of an object from its keys and values; it may raise ValueError. None: a dict.

    Raises:
      ValueError: the text is malformed, nested too deeply, has an integer of more than 4,300 digits, or half of a
        surrogate pair, which no file can hold.
    """
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    try:
        value = json.loads(text, object_pairs_hook=pairs)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except UnicodeEncodeError as fault:
        raise ValueError(f"not valid Unicode ({fault.reason})") from None
    return value

"""JSON of unknown origin: values, and ValueError as the only error."""

import json
import math

import msgspec
import pytest

from pdgen.json_text import decode_json, load_json

DEEP = ["[" * 10**5, "[" * 10**5 + "]" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5]
BROKEN = ["", "{", '{"a": 1,}', '"\\ud800', "9" * 5000, b"\xff\xfe{}", b'{"a": "\xff"}', *DEEP]


class Point(msgspec.Struct):
    x: int
    rest: dict = {}


def test_values_are_those_of_python():
    text = '{"a": [1, 2.5, null, true, "\\u00e9"], "b": {"c": NaN}}'
    assert str(load_json(text)) == str(json.loads(text)) and math.isnan(load_json(text.encode())["b"]["c"])
    assert load_json(b"\xef\xbb\xbf[1]") == [1]
    assert load_json('{"a": 1, "a": 2}', list) == [("a", 1), ("a", 2)]


def test_values_have_the_requested_type():
    assert decode_json('{"x": 3}', Point) == Point(3)
    assert decode_json(b'{"x": [3]}') == {"x": [3]}
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int`, got `str` - at `\$.x`"):
        decode_json('{"x": "3"}', Point)


@pytest.mark.parametrize("text", BROKEN)
def test_broken_text_is_a_value_error(text):
    with pytest.raises(ValueError):
        load_json(text)
    for kind in (Point, dict, list):
        with pytest.raises(msgspec.DecodeError):
            decode_json(text, kind)


def test_deeply_nested_text_is_named():
    for text in DEEP[1:]:
        for read in (load_json, decode_json):
            with pytest.raises(ValueError, match=r"^JSON is nested too deeply$"):
                read(text)
    with pytest.raises(msgspec.DecodeError, match=r"^JSON is nested too deeply$"):
        decode_json('{"x": 1, "unknown": ' + DEEP[1] + "}", Point)


def test_half_of_a_surrogate_pair_is_refused():
    assert load_json('["\\ud83d\\ude00"]') == ["\U0001f600"]
    for text in ('{"a": ["\\ud83d"]}', '{"\\uDE00": 1}'):
        with pytest.raises(ValueError, match="not valid Unicode"):
            load_json(text)
    with pytest.raises(msgspec.DecodeError, match="not valid Unicode"):
        decode_json('"\ud800"', str)

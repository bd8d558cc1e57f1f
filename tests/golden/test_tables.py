"""The resize and position-id tables of the golden folders."""

import numpy as np

from pdgen.sequence.images import SizeRule, position_ids, resize_size


def test_resize_table(golden):
    table = golden.expected["resize_table"]
    assert table["columns"] == [
        "max_size",
        "min_size",
        "stride",
        "width",
        "height",
        "new_width",
        "new_height",
    ]
    wrong = []
    for max_size, min_size, stride, width, height, *expected in table["rows"]:
        size = resize_size(width, height, SizeRule(max_size, min_size, stride, table["max_pixels"]))
        if list(size) != expected:
            wrong.append((width, height, size, expected))
    assert not wrong


def test_position_id_tables(golden):
    for case in golden.expected["position_ids"]:
        for name, interpolate in (("extrapolate", False), ("interpolate", True)):
            ids = position_ids(tuple(case["grid"]), case["max_side"], interpolate)
            np.testing.assert_array_equal(ids, case[name], err_msg=f"{case['grid']} {name}")

"""A tokenizer in other files or in a folder of its own: the converted one gives the golden ids."""

import json

import pytest

from pdgen.checkpoints.conversion import to_bagel, to_pdgen
from pdgen.checkpoints.load import find
from pdgen.sequence.tokenizer import load_tokenizer

from ..folders import GOLDEN, TOKENIZER, all_bytes, copy_of_golden

CASES = json.loads((GOLDEN / "expected.json").read_text())["tokenizer"]["cases"]


def convert(folder):
    lines = []
    target = folder.parent / "pdgen"
    to_pdgen(folder, target, log=lines.append)
    assert find(target) == target
    tokenizer = load_tokenizer(target / "tokenizer")
    for case in CASES:
        assert tokenizer.encode(case["text"], parse_special=True) == case["ids"]
    to_bagel(target, folder.parent / "back")
    return lines, all_bytes(folder.parent / "back")


def test_without_tokenizer_json(tmp_path):
    folder = copy_of_golden(tmp_path / "bagel")
    (folder / "tokenizer.json").unlink()
    lines, back = convert(folder)
    assert lines == []
    assert back == all_bytes(folder)


@pytest.mark.parametrize("names", [TOKENIZER, TOKENIZER[1:]])
def test_in_a_folder(tmp_path, names):
    folder = copy_of_golden(tmp_path / "bagel")
    (folder / "tokenizer").mkdir()
    for name in TOKENIZER:
        if name in names:
            (folder / name).rename(folder / "tokenizer" / name)
        else:
            (folder / name).unlink()
    lines, back = convert(folder)
    assert lines == [f"{folder}: the tokenizer is read from the folder tokenizer"]
    assert back == {name.removeprefix("tokenizer/"): data for name, data in all_bytes(folder).items()}

"""Tokenizers: tokenizer.json, the files that replace it, and sentencepiece's model."""

import json
import shutil

import pytest

from pdgen.assets import shapes_folder
from pdgen.sequence.tokenizer import SPECIALS, load_tokenizer
from tests.checkpoints.folders import GOLDEN
from tests.robustness.calls import call, find_fault, survey
from tests.robustness.mutations import mutate

pytestmark = pytest.mark.slow  # hundreds of damaged copies

TEXT = "a red circle \u6f22 <|im_end|>"
SLOW = ("vocab.json", "merges.txt", "tokenizer_config.json")


def read(folder):
    load_tokenizer(folder).encode(TEXT)


@pytest.mark.parametrize("name", ["tokenizer.json", *SLOW, "added_tokens.json", "special_tokens_map.json"])
def test_byte_level_tokenizers(tmp_path, capfd, name):
    for own in ("tokenizer.json",) if name == "tokenizer.json" else SLOW:
        shutil.copy(GOLDEN / own, tmp_path)
    if name in ("added_tokens.json", "special_tokens_map.json"):
        decoder = json.loads((GOLDEN / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        added = {fields["content"]: int(number) for number, fields in decoder.items()}
        (tmp_path / "tokenizer_config.json").unlink()
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": [*SPECIALS]}))
    file = tmp_path / name
    survey(file, mutate(file.read_bytes(), 31), lambda: read(tmp_path), capfd, (str(tmp_path),))


def test_a_prefix_at_which_the_library_aborts(tmp_path, capfd):
    values = json.loads((GOLDEN / "tokenizer.json").read_text())
    values["model"]["continuing_subword_prefix"] = "a long prefix"
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    outcome = call(lambda: read(tmp_path), capfd)
    assert find_fault(outcome, ["tokenizer.json: its tokens have a prefix"]) == "" and outcome.status == 2


def test_sentencepiece(tmp_path, capfd):
    file = tmp_path / "tokenizer.model"
    shutil.copy(shapes_folder() / file.name, file)
    survey(file, mutate(file.read_bytes(), 32), lambda: read(tmp_path), capfd)

"""Qwen2's tokenizer from vocab.json and merges.txt, against the golden ids and the golden tokenizer.json."""

import json
import pathlib
import shutil
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.sequence.tokenizer import PAD, SPECIALS, TokenizerError, find_tokenizer, holds_tokenizer, load_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bagel-nano"
CASES = json.loads((GOLDEN / "expected.json").read_text())["tokenizer"]["cases"]
ADDED = {
    fields["content"]: int(n)
    for n, fields in json.loads((GOLDEN / "tokenizer_config.json").read_text())["added_tokens_decoder"].items()
}


def write_config(folder):
    shutil.copy(GOLDEN / "tokenizer_config.json", folder)


def write_added(folder):
    (folder / "added_tokens.json").write_text(json.dumps(ADDED))


def write_added_and_special(folder):
    write_added(folder)
    special = {"pad_token": {"content": PAD, "lstrip": False}, "additional_special_tokens": list(SPECIALS)}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


@pytest.fixture(params=[write_config, write_added, write_added_and_special])
def folder(request, tmp_path):
    """The files without tokenizer.json, with the added tokens in each of their possible places."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / name, tmp_path)
    request.param(tmp_path)
    return tmp_path


def test_the_golden_ids(folder):
    ours, expected = load_tokenizer(folder), load_tokenizer(GOLDEN)
    assert ours.pieces == expected.pieces
    ids = [(t.im_start, t.im_end, t.vision_start, t.vision_end, t.pad) for t in (ours, expected)]
    assert ids[0] == ids[1]
    assert len(CASES) >= 5
    for case in CASES:
        assert ours.encode(case["text"], parse_special=True) == case["ids"], case["text"]
    assert not set(ours.encode("<|im_end|>")) & set(ADDED.values())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(GOLDEN / name, folder)
    return load_tokenizer(folder), load_tokenizer(GOLDEN)


@settings(max_examples=300)
@given(text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\r\t'sStTdDlL019é"))))
def test_any_text_has_the_ids_of_tokenizer_json(both, text):
    ours, expected = both
    assert ours.encode(text) == expected.encode(text)
    assert ours.decode(ours.encode(text)) == unicodedata.normalize("NFC", text)


def test_the_files_reproduce_it(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    (tmp_path / "copy").mkdir()
    for file in tokenizer.files:
        shutil.copy(file, tmp_path / "copy")
    again = load_tokenizer(tmp_path / "copy")
    assert (again.pieces, again.fingerprint) == (tokenizer.pieces, tokenizer.fingerprint)
    assert load_tokenizer(GOLDEN).fingerprint != tokenizer.fingerprint


def test_where_a_tokenizer_is_found(folder, tmp_path):
    assert find_tokenizer(folder) == folder
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    assert find_tokenizer(tmp_path / "model") is None
    for name in ("vocab.json", "merges.txt"):
        assert not holds_tokenizer(tmp_path / "model" / "tokenizer")
        shutil.copy(folder / name, tmp_path / "model" / "tokenizer")
    assert find_tokenizer(tmp_path / "model") == tmp_path / "model" / "tokenizer"


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("vocab.json", "{", r"vocab\.json: no tokenizer together with merges\.txt \(.*\); copy both again"),
        ("merges.txt", "#version: 0.2\nq zz\n", r"vocab\.json: no tokenizer together with merges\.txt"),
        ("added_tokens.json", "[1]", r"added_tokens\.json: cannot be read \(holds list"),
        (
            "added_tokens.json",
            json.dumps(ADDED | {"<tool>": 400}),
            r"<tool> has id 400, but .* leave 320",
        ),
        ("added_tokens.json", "{}", r"lacks the special token <\|im_start\|>"),
        ("special_tokens_map.json", '{"additional_special_tokens": [{}]}', r"special_tokens_map\.json: cannot be read"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', r"tokenizer_config\.json: cannot be read"),
    ],
)
def test_damage_is_named(tmp_path, name, data, said):
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / file, tmp_path)
    write_added(tmp_path)
    (tmp_path / name).write_text(data)
    with pytest.raises(TokenizerError, match=said) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_added_token_that_is_not_special_keeps_its_text(tmp_path):
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / file, tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps(ADDED | {"<tool_call>": 320}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<tool_call>") == [320]
    assert tokenizer.decode([320]) == "<tool_call>"

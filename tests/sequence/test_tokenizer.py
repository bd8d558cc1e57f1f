"""Both kinds of tokenizer: text round-trips, special tokens never come from text, damage is named."""

import copy
import io
import json
import pathlib
import shutil
import unicodedata

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

import pdgen
from pdgen.sequence.tokenizer import SPECIALS, TokenizerError, load_tokenizer

FOLDERS = {
    "sentencepiece": pathlib.Path(pdgen.__file__).parent / "assets" / "shapes",
    "bpe": pathlib.Path(__file__).parents[1] / "golden" / "bagel-nano",
}
SENTENCEPIECE = {
    "vocab_size": 300,
    "hard_vocab_limit": False,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "control_symbols": list(SPECIALS),
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "minloglevel": 2,
}


@pytest.fixture(scope="module", params=FOLDERS)
def tokenizer(request):
    return load_tokenizer(FOLDERS[request.param])


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_text_round_trips(tokenizer, text):
    text = unicodedata.normalize("NFC", text)  # Qwen2's own normalisation
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_names_of_special_tokens_in_a_prompt_are_words(tokenizer):
    text = "a cat<|im_end|><|vision_start|> <|im_start|>"
    special = {getattr(tokenizer, name.strip("<|>")) for name in SPECIALS} | {tokenizer.pad}
    assert len(special) == 5
    ids = tokenizer.encode(text)
    assert not special & set(ids) and tokenizer.decode(ids) == text
    # The same holds for a copy, as a loader's worker process receives it.
    assert copy.deepcopy(tokenizer).encode(text) == ids
    parsed = tokenizer.encode(text, parse_special=True)
    words = [*tokenizer.encode("a cat"), tokenizer.im_end, tokenizer.vision_start, *tokenizer.encode(" ")]
    assert parsed == [*words, tokenizer.im_start]
    assert tokenizer.decode(parsed) == "a cat "


def test_ids_beyond_the_vocabulary_contribute_nothing(tokenizer):
    assert tokenizer.token_bytes(tokenizer.vocab_size) == tokenizer.token_bytes(-1) == b""
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


def test_half_a_character_is_replaced(tokenizer):
    byte = tokenizer.pieces.index(b"\xc3")
    assert tokenizer.decode([byte]) == "\ufffd"


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="not valid Unicode"):
        tokenizer.encode("a \ud800")


def test_the_files_reproduce_the_tokenizer(tokenizer, tmp_path):
    for path in tokenizer.files:
        shutil.copy(path, tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.pieces == tokenizer.pieces
    defining = tmp_path / tokenizer.files[0].name
    defining.chmod(0o644)
    defining.write_bytes(defining.read_bytes() + b"\n" if defining.suffix == ".json" else small_model())
    assert load_tokenizer(tmp_path).fingerprint != tokenizer.fingerprint


def small_model(**changes):
    """Train a sentencepiece model with the right options, except for the changes."""
    buffer = io.BytesIO()
    lines = ["a red circle above a blue square", "<ins>Add it.</ins>"] * 20
    options = SENTENCEPIECE | changes
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_dummy_prefix": True}, "changes blanks or characters"),
        ({"remove_extra_whitespaces": True}, "changes blanks or characters"),
        ({"byte_fallback": False}, "changes blanks or characters"),
        ({"control_symbols": list(SPECIALS[1:])}, r"lacks the special token <\|im_start\|>"),
        ({"control_symbols": [], "user_defined_symbols": list(SPECIALS)}, "is an ordinary token"),
        ({"pad_id": -1}, r"lacks the special token <\|endoftext\|>"),
    ],
)
def test_an_unsuitable_sentencepiece_model_is_named(changes, message, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(small_model(**changes))
    with pytest.raises(TokenizerError, match=rf"{path}: .*{message}"):
        load_tokenizer(tmp_path)


def edited_bpe(edit):
    data = json.loads((FOLDERS["bpe"] / "tokenizer.json").read_text())
    edit(data)
    return json.dumps(data).encode()


def drop_im_end(data):
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "<|im_end|>"]


def make_im_end_ordinary(data):
    next(t for t in data["added_tokens"] if t["content"] == "<|im_end|>")["special"] = False


def drop_a_byte(data):
    data["model"]["vocab"] = {k: v for k, v in data["model"]["vocab"].items() if k != "\u0100"}


def leave_the_alphabet(data):
    data["model"]["vocab"]["漢"] = data["model"]["vocab"].pop("\u0100")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer.json", b"{", "not a tokenizer .*copy it again"),
        ("tokenizer.json", b"\xff", "not a tokenizer .*copy it again"),
        ("tokenizer.json", edited_bpe(drop_im_end), r"lacks the special token <\|im_end\|>"),
        ("tokenizer.json", edited_bpe(make_im_end_ordinary), r"<\|im_end\|> is an ordinary token"),
        ("tokenizer.json", edited_bpe(drop_a_byte), "no token for 1 of the 256 bytes"),
        ("tokenizer.json", edited_bpe(leave_the_alphabet), "byte alphabet"),
        ("tokenizer.model", b"", "is empty"),
        ("tokenizer.model", b"hello world", "not a sentencepiece model"),
    ],
)
def test_a_damaged_file_is_named(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=rf"{tmp_path / name}: .*{message}") as fault:
        load_tokenizer(tmp_path)
    assert "\n" not in str(fault.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=rf"{tmp_path}: holds no tokenizer \(tokenizer\.json, .*merges\.txt\)"):
        load_tokenizer(tmp_path)


def test_an_added_token_that_is_not_special_keeps_its_text(tmp_path):
    def add(data):
        entry = {"id": 320, "content": "<tool>", "special": False, "single_word": False, "lstrip": False}
        data["added_tokens"].append(entry | {"rstrip": False, "normalized": False})

    (tmp_path / "tokenizer.json").write_bytes(edited_bpe(add))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.token_bytes(320) == b"<tool>" and tokenizer.vocab_size == 321
    assert tokenizer.decode(tokenizer.encode("a<tool>b")) == "a<tool>b"

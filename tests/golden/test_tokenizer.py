"""Token ids of the reference's tokenizer, if a golden folder holds one."""

import unicodedata

from pdgen.sequence.grammar import build_automaton
from pdgen.sequence.tokenizer import PAD, SPECIALS, load_tokenizer


def test_the_reference_ids(golden):
    assert golden.has_tokenizer == ("tokenizer" in golden.expected)
    if not golden.has_tokenizer:
        return
    tokenizer = load_tokenizer(golden.folder)
    special = golden.expected["tokenizer"]["special"]
    ids = (tokenizer.im_start, tokenizer.im_end, tokenizer.vision_start, tokenizer.vision_end, tokenizer.pad)
    assert ids == tuple(special[name] for name in (*SPECIALS, PAD))
    for case in golden.expected["tokenizer"]["cases"]:
        text, expected = case["text"], case["ids"]
        assert tokenizer.encode(text, parse_special=True) == expected, text
        if not set(expected) & set(ids):
            assert tokenizer.encode(text) == expected, text
            assert tokenizer.decode(expected) == unicodedata.normalize("NFC", text)


def test_the_grammar_stays_within_the_tokenizer(golden):
    if not golden.has_tokenizer:
        return
    tokenizer = load_tokenizer(golden.folder)
    vocab_size = golden.config.language.vocab_size
    automaton = build_automaton(tokenizer, vocab_size)
    assert automaton.table.shape[1] == vocab_size
    assert (automaton.table[:, tokenizer.vocab_size :] == -1).all()

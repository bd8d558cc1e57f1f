"""Files of prompts: plain text and JSON objects, and one line for each fault."""

import msgspec
import pytest

from pdgen.data.prompts import PromptError, read_prompt_file, read_prompt_texts


class Asked(msgspec.Struct, frozen=True):
    prompt: str
    seed: int = 0


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("a cat\n\n  two dogs \r\n", ["a cat", "two dogs"]),
        ('{"prompt": "a cat", "tag": "x"}\n{"prompt": "{"}\n', ["a cat", "{"]),
        ('a cat\n{"prompt": "two dogs"}', ["a cat", "two dogs"]),
        ("\ufeffa\u2028cat\n", ["a\u2028cat"]),
    ],
)
def test_lines_are_text_or_objects(tmp_path, content, prompts):
    path = tmp_path / "prompts"
    path.write_bytes(content.encode())
    assert read_prompt_texts(path) == prompts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("\n \n", "prompts: holds no prompt"),
        ('\n ["a", "b"]', "prompts: line 2: starts with"),
        ('{"prompt": "a"}\na cat', "prompts: line 2: JSON is malformed"),
        ('a cat\n{"prompt": 3}', "prompts: line 2: Expected `str`"),
        (b"\xff\xfe\x00", "prompts: cannot be read as text"),
        (None, "prompts: cannot be read as text .*No such file"),
    ],
)
def test_a_fault_is_one_line_that_names_the_place(tmp_path, content, words):
    path = tmp_path / "prompts"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PromptError, match=words) as fault:
        read_prompt_texts(path)
    assert "\n" not in str(fault.value)


def test_without_plain_text_every_line_is_an_object(tmp_path):
    path = tmp_path / "prompts"
    path.write_text('{"prompt": "a", "seed": 7}\n{"prompt": "b"}\n')
    assert read_prompt_file(path, Asked) == [Asked("a", 7), Asked("b")]
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n\n \r\n')  # empty lines at the end do not count
    assert read_prompt_file(path, Asked) == [Asked("a"), Asked("b")]
    for line in ("a cat", ""):
        path.write_text(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "b"}}\n')
        with pytest.raises(PromptError, match="line 2: "):
            read_prompt_file(path, Asked)

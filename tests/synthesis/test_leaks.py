"""Leaks: training prompts that equal a benchmark's, found by digests without the prompts."""

import hashlib
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdgen.data.prompts import PromptError
from pdgen.synthesis.leaks import (
    compute_benchmark_digests,
    digest_text,
    find_leak,
    load_geneval_digests,
    normalise_prompt,
)

# Two of GenEval's prompts, as its paper prints them.
KNOWN = ("a photo of a bench", "a photo of a dog right of a teddy bear")


def test_the_shipped_digests_are_those_of_553_prompts():
    assert len(load_geneval_digests()) == 553
    assert all(re.fullmatch("[0-9a-f]{64}", line) for line in load_geneval_digests())
    assert hashlib.sha256(b"a photo of a bench").hexdigest() in load_geneval_digests()


@pytest.mark.parametrize("prompt", KNOWN)
def test_a_benchmark_prompt_is_found_in_any_spelling(prompt):
    assert find_leak(prompt) == "exact"
    for spelling in (prompt.capitalize() + ".", f"  {prompt.upper()}\n", prompt.replace(" ", "  "), f'"{prompt}"!'):
        assert find_leak(spelling) == "normalised"
    assert find_leak(f"{prompt} at night") is None
    assert find_leak(prompt.replace("photo", "picture")) is None


def test_words_stay_separate_and_forms_of_a_letter_are_equal():
    assert normalise_prompt("Hot-dog,fork") == "hot dog fork"
    assert normalise_prompt("hotdog") != normalise_prompt("hot dog")
    assert normalise_prompt("CAFE\u0301") == normalise_prompt("caf\u00e9") == "caf\u00e9"
    assert normalise_prompt("\ufb01ve \uff11\uff12") == "five 12"


@given(st.text())
def test_normalising_is_idempotent(text):
    once = normalise_prompt(text)
    assert normalise_prompt(f" {once}! ") == once


def test_digests_are_computed_from_a_list(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps({"tag": "x", "prompt": p}) + "\n" for p in (*KNOWN, KNOWN[0] + ".")))
    assert compute_benchmark_digests(path) == sorted(map(digest_text, KNOWN))
    command = [sys.executable, "-m", "pdgen.synthesis.leaks"]
    done = subprocess.run([*command, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(map(digest_text, KNOWN))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("leaks: usage: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": 3}\n', "line 2: Expected `str`"),
        ("{\n", "line 1"),
        ("[1]\n", "line 1"),
        ("", "holds no prompt"),
        (None, "No such file"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(tmp_path, content, words):
    path = tmp_path / "metadata.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PromptError, match=words) as caught:
        compute_benchmark_digests(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)

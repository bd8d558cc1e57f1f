"""The tokenizer's command line: the same texts give the same file, which pdgen's own loader accepts."""

import pathlib
import subprocess
import sys

import pytest

from pdgen.sequence.tokenizer import load_tokenizer

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "train_tokenizer.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(LAUNCHER), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    done = run(f"--output={path}", "--count=200", "--seed=4")
    assert (done.returncode, done.stderr) == (0, "")
    pieces = load_tokenizer(path.parent).vocab_size
    assert done.stdout.startswith(f"{path}: {pieces} pieces, ")
    assert pieces <= 512
    return path


def test_the_file_is_a_tokenizer_with_a_piece_for_each_word_and_tag(path):
    tokenizer = load_tokenizer(path.parent)
    text = "<ins>Add a red circle.</ins> <des>The picture shows a red unit."
    pieces = [tokenizer.token_bytes(i).decode() for i in tokenizer.encode(text)]
    assert pieces == [
        *("<ins>", "Add", " a", " red", " circle", ".", "</ins>", " <des>", "The", " picture", " shows", " a", " red"),
        *(" ", "u", "n", "i", "t", "."),
    ]


def test_training_again_gives_the_same_bytes_and_needs_permission(path):
    before = path.read_bytes()
    refused = run(f"--output={path}", "--count=200", "--seed=4")
    assert refused.returncode == 2
    assert refused.stderr == f"train_tokenizer: {path}: exists already; pass --overwrite to replace it\n"
    assert run(f"--output={path}", "--count=200", "--seed=4", "--overwrite").returncode == 0
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output=words.txt"], "name a file ending in .model"),
        (["--output=a.model", "--count=3"], "--count=3"),
        (["--output=a.model", "stray"], "stray is no flag"),
        ([], "--output"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, words):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("train_tokenizer: ") and words in done.stderr

"""The command line that parses GenEval's prompts: its last line, its exit status, its refusals."""

import json
import pathlib
import subprocess
import sys

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "parse_prompts.py"
BENCH = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
ABOVE = {
    "tag": "position",
    "include": [{"class": "cow", "count": 1}, {"class": "tie", "count": 1, "position": ["above", 0]}],
    "prompt": "a photo of a tie above a cow",
}


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(LAUNCHER), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def write(folder, *lines):
    path = folder / "metadata.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_all_agree(tmp_path):
    done = run(f"--metadata={write(tmp_path, BENCH, ABOVE)}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 of 2 prompts agree with their metadata\n", "")


def test_what_fails_or_disagrees_is_named(tmp_path):
    unknown = BENCH | {"prompt": "a photo of a unicorn"}
    turned = ABOVE | {"prompt": "a photo of a cow above a tie"}
    done = run(f"--metadata={write(tmp_path, unknown, BENCH, turned)}")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "line 1: 'a photo of a unicorn': 'unicorn' is not understood where a noun is expected",
        "line 3: 'a photo of a cow above a tie': 'tie' is not above 'cow' in the graph",
        "1 of 3 prompts agree with their metadata",
    ]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([BENCH, "{"], "metadata.jsonl: line 2: metadata: "),
        ([BENCH, ""], "metadata.jsonl: line 2: metadata: "),
        ([BENCH, BENCH | {"include": [{"class": "bench"}]}], "line 2: metadata: Object missing required field `count`"),
        ([], "holds no records"),
    ],
)
def test_a_malformed_file_is_refused_with_the_line(tmp_path, lines, words):
    done = run(f"--metadata={write(tmp_path, *lines)}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("parse_prompts: ") and words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--metadata=none.jsonl"], "none.jsonl"), ([], "--metadata"), (["--metadata=a", "stray"], "stray is no flag")],
)
def test_wrong_arguments_end_in_one_line(arguments, words):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("parse_prompts: ") and words in done.stderr

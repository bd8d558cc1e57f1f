"""The encoder's command line: killed at any moment it goes on to the same bytes; wrong flags end in one line."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from pdgen.data.records import Origin, write_dataset

from ..data import handmade

ROOT = pathlib.Path(__file__).parents[2]


def command(*arguments):
    return [sys.executable, str(ROOT / "launch" / "encode.py"), *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_and_started_again_it_gives_the_same_bytes(tmp_path):
    source = tmp_path / "data"
    write_dataset(source, handmade.records(9), Origin(seed=0), records_per_file=3)
    flags = [f"--data={source}", "--model=nano", "--batch_size=8"]
    whole = run(*flags, f"--output={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    assert re.fullmatch(rf"{tmp_path}/whole: 9 records in 3 files, \d+\.\d MB\n", whole.stdout)
    assert "encoding: 100%" in whole.stderr
    process = subprocess.Popen(command(*flags, f"--output={tmp_path / 'out'}"), cwd=ROOT, stderr=subprocess.DEVNULL)
    unfinished = tmp_path / ".out.encoding"
    while not list(unfinished.glob("*.array_record")) and process.poll() is None:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # not if it finished within the instant; then it has shown nothing
    again = run(*flags, f"--output={tmp_path / 'out'}")
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out", "whole"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=nano", "--checkpoint=x"], "give either --checkpoint or --model"),
        (["--checkpoint=x", "--autoencoder=y"], "leave --autoencoder out"),
        (["--model=bagel_7b"], "--model=bagel_7b needs --autoencoder"),
        (["--model=nano"], "dataset.json: No such file"),
    ],
)
def test_wrong_arguments_end_in_one_line(tmp_path, arguments, words):
    done = run(f"--data={tmp_path}", f"--output={tmp_path / 'out'}", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("encode: ") and words in done.stderr
    assert list(tmp_path.iterdir()) == []

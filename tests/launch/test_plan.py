"""launch/plan.py as a command line. Its compilers are no part of the tests; where they are, it compiles."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys

import pytest

from pdgen.train.planning.topology import CHIPS

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "launch" / "plan.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def installed(packages):
    found = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return all(package in found for package in packages)


def test_it_compiles_or_says_what_to_install():
    done = run("--config=configs/shapes_process.py", "--config.rows=8", "--topology=h100:8", "--json")
    if installed(CHIPS["h100"].packages):
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        facts = json.loads(line)
        assert facts["fits"] and facts["devices"] == 8
        assert facts["peak_bytes_per_device"] < 1e9 and facts["flops_per_step"] > 1e10
    else:
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("plan: --topology=h100:8: jax-cuda12-plugin")
        assert line.endswith('pip install "pdgen[plan]"')


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=h100:9"], "plan: --topology=h100:9: give a number of GPUs"),
        (["--topology=h100:8", "--config.rowz=8"], "plan: --config: the config has no key"),
        (["--topology=h100:8", "--mfu=2"], "plan: flag --mfu=2"),
        (["--topology=h100:8", "more"], "plan: more is no flag"),
    ],
)
def test_wrong_input_is_one_line(arguments, words):
    done = run("--config=configs/shapes_process.py", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(words)

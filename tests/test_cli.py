"""Command lines: huge pages, modes with their own flags, and one line for every fault."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from pdgen.cli import use_huge_pages
print("begun", flush=True)
use_huge_pages()
print(os.environ["GLIBC_TUNABLES"], *sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("given, begun", [({}, 2), ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, 1)])
def test_a_program_restarts_with_huge_pages_and_its_own_arguments(tmp_path, given, begun):
    """Unless the environment sets tunables."""
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "-u", str(tmp_path / "script.py"), "--config=a b", "c"]
    others = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(words, env=others | given, capture_output=True, text=True, check=True)
    tunables = given.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert done.stdout.splitlines() == ["begun"] * begun + [f"{tunables} --config=a b c"]


TWO_MODES = """Draws and counts.

program.py draw --color=red
"""
PROGRAM = f'''"""{TWO_MODES}"""
from absl import flags
from pdgen.cli import Mode, run_modes
COLOR = flags.DEFINE_string("color", None, "Colour of what is drawn.")
SIZE = flags.DEFINE_integer("size", 3, "Pixels.")
NUMBER = flags.DEFINE_integer("number", 1, "What is counted.")

def draw():
    if COLOR.value == "none":
        raise ValueError("--color=none:\\nname a colour")
    print(f"{{COLOR.value}} {{SIZE.value}}")

def count(*names):
    print(*names, NUMBER.value)
    return 3

MODES = {{
    "draw": Mode(draw, ("color", "size"), needs=("color",)),
    "count": Mode(count, ("number",), arguments=True),
}}
run_modes(MODES, default=DEFAULT)
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")

    def run(*arguments, default="draw"):
        (folder / "program.py").write_text(PROGRAM.replace("DEFAULT", repr(default)))
        command = [sys.executable, str(folder / "program.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_mode_runs_with_its_own_flags_and_arguments(program):
    assert program("draw", "--color=red") == (0, "red 3\n", "")
    assert program("--color=red", "--size=4") == (0, "red 4\n", "")
    assert program("count", "a", "b", "--number=2") == (3, "a b 2\n", "")


@pytest.mark.parametrize(
    ("arguments", "default", "words"),
    [
        (["draw", "--color=red", "--number=2"], "draw", "--number: does nothing in mode draw; leave it out"),
        (["--color=red", "--number=2"], "draw", "--number: does nothing in mode draw; leave it out"),
        (["draw", "--color=red", "--shape=x"], "draw", "Unknown command line flag 'shape'"),
        (["draw"], "draw", "--color is missing; see --help"),
        (["draw", "--color=red", "blue"], "draw", "blue is no flag; write --flag=value"),
        (["draw", "--color=none"], "draw", "--color=none: name a colour"),
        (["paint"], "draw", "paint is no mode; choose one of draw, count"),
        (["--color=red"], "", "name a mode first, one of draw, count"),
        ([], "", "name a mode first, one of draw, count"),
    ],
)
def test_faults_are_one_line(program, arguments, default, words):
    assert program(*arguments, default=default) == (2, "", f"program: {words}\n")


def test_a_fault_of_any_length_is_a_short_line(program):
    status, out, err = program("draw", "--color=red", "blue" * 1000)
    assert (status, out, err.count("\n")) == (2, "", 1) and len(err) <= 401
    assert err.startswith("program: blueblue") and err.endswith("blue is no flag; write --flag=value\n")


def test_help_shows_the_flags_of_the_mode_alone(program):
    for arguments, shown in ((["draw", "--help"], "color size"), (["count", "--help"], "number")):
        _, out, err = program(*arguments)
        assert out.startswith(TWO_MODES) and err == ""
        assert [line.split(":")[0] for line in out.splitlines() if line.startswith("  --")] == [
            f"  --{name}" for name in shown.split()
        ]
    assert "  --" not in program("--help", default="")[1]

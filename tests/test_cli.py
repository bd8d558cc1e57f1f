"""How command lines begin: with glibc's huge pages, which a program must be started anew for."""

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
def test_a_program_starts_once_more_with_huge_pages_and_its_own_arguments(tmp_path, given, begun):
    """Unless the environment has tunables of its own."""
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "-u", str(tmp_path / "script.py"), "--config=a b", "c"]
    others = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(words, env=others | given, capture_output=True, text=True, check=True)
    tunables = given.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert done.stdout.splitlines() == ["begun"] * begun + [f"{tunables} --config=a b c"]

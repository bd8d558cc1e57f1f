"""docs/architecture.md names packages and functions that exist."""

import pathlib
import pkgutil
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
LINE = re.compile(r"^\| (`.*?) \|", re.MULTILINE)


def _walks():
    """The full names of the walks' first columns; a name without a module is of the module before it."""
    found = []
    for line in LINE.findall(TEXT.partition("## From a prompt")[2]):
        module = ""
        for name in re.findall(r"`([\w.]+)`", line):
            full = name if "." in name else f"{module}.{name}"
            module = full.rpartition(".")[0]
            found.append(full)
    return sorted(set(found))


def test_every_package_has_a_row():
    packages = {path.name for path in (ROOT / "pdgen").iterdir() if (path / "__init__.py").is_file()}
    named = set(re.findall(r"`(\w+)/`", TEXT.partition("`launch/` holds")[0]))
    assert named == packages


@pytest.mark.parametrize("name", [name for name in _walks() if not name.startswith("launch.")])
def test_a_function_of_a_walk_exists(name):
    pkgutil.resolve_name(f"pdgen.{name}")


@pytest.mark.parametrize("name", [name for name in _walks() if name.startswith("launch.")])
def test_a_function_of_a_command_line_exists(name):
    _, module, function = name.split(".")
    assert f"\ndef {function}(" in (ROOT / "launch" / f"{module}.py").read_text()

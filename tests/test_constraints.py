"""``constraints.txt`` pins every dependency, within the bounds of pyproject.toml."""

import pathlib
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
TESTED = ("test", "notebook")  # the extras that the tested set has; the others need an accelerator or a cluster


def _requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(line) for line in [*project["dependencies"], *(r for name in TESTED for r in extras[name])]]


def _pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_every_line_is_one_exact_version_of_another_package():
    pins = _pins()
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins)
    assert not any(pin.url or pin.marker or pin.extras for pin in pins)  # no index, no path, no condition
    names = [pin.name for pin in pins]
    assert names == sorted({canonicalize_name(name) for name in names})


@pytest.mark.parametrize("requirement", _requirements(), ids=str)
def test_a_direct_dependency_is_pinned_within_its_bounds(requirement):
    versions = [pin.specifier for pin in _pins() if pin.name == canonicalize_name(requirement.name)]
    assert len(versions) == 1, f"constraints.txt lacks {requirement.name}; add the version that the tests ran with"
    version = str(versions[0]).removeprefix("==")
    assert requirement.specifier.contains(version, prereleases=True), f"{requirement} refuses {version}"


def test_every_installation_for_the_tests_uses_it():
    for name in (".ci/run", "README.md", ".github/workflows/ci.yml"):
        assert "-c constraints.txt" in (ROOT / name).read_text(), f"{name} installs without -c constraints.txt"

"""Common parts of the benchmarks: a description of the machine, and result files."""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


def get_cpu_name() -> str:
    """Return the processor's name as the system reports it."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def get_versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of these installed packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def write_json(name: str, result: Mapping[str, Any], folder: pathlib.Path = RESULTS) -> pathlib.Path:
    """Write ``<name>.json`` into the folder atomically."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.rename(path)
    return path

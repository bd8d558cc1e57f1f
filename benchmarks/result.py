"""Common parts of the benchmarks: a description of the machine, times of alternating calls, and result files."""

import importlib.metadata
import json
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

RESULTS = pathlib.Path(__file__).parent / "results"


def get_cpu_name() -> str:
    """Return the processor's name as the system reports it."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def get_versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of these installed packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def time_alternately(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of ``rounds`` calls of each, alternating: a slow phase of the machine affects all."""
    seconds = {name: [] for name in calls}
    for _ in tqdm(range(rounds), unit="round"):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def write_json(name: str, result: Mapping[str, Any], folder: pathlib.Path = RESULTS) -> pathlib.Path:
    """Write ``<name>.json`` into the folder atomically."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.rename(path)
    return path

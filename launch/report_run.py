"""Makes one page of a training run: facts, curves, and the pictures of its fixed prompts along the way.

python launch/report_run.py out/process [--output=report.html]

A run may still go on, or have been killed. Several workdirs give one page that compares them:

python launch/report_run.py out/one out/two --output=both.html
"""

import pathlib

from absl import app, flags

from pdgen.cli import fail, parse
from pdgen.files import new_file
from pdgen.train.monitor.page import run_page
from pdgen.train.monitor.run_log import read_run_log
from pdgen.train.run_config import RunError

PAGE = "report.html"
OUTPUT = flags.DEFINE_string("output", None, f"File to write; by default {PAGE} in the workdir, if there is one alone.")


def target(workdirs: list[pathlib.Path]) -> pathlib.Path:
    """Where the page goes; an earlier page is replaced. Raises RunError."""
    if OUTPUT.value is None and len(workdirs) > 1:
        raise RunError(f"{len(workdirs)} workdirs make one page; name it: --output=FILE")
    path = workdirs[0] / PAGE if OUTPUT.value is None else pathlib.Path(OUTPUT.value)
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name a file")
    if path.exists() and not path.read_bytes().startswith(b"<!DOCTYPE html>"):
        raise RunError(f"{path}: exists and is no page, so it is not replaced; name another --output")
    return path


def main(argv: list[str]) -> None:
    workdirs = [pathlib.Path(name) for name in argv[1:]]
    if not workdirs:
        fail("name the workdir of a training run")
    try:
        runs, path = [read_run_log(workdir) for workdir in workdirs], target(workdirs)
        page = run_page(runs)
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            partial.write_text(page, encoding="utf-8")
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)
    print(f"{path}: {', '.join(f'{log.name} at step {log.step:,}' for log in runs)}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

"""The lines on stderr that are pdgen's own.

JAX logs there too: a GPU that it cannot use, or, with a traceback, a plugin without a driver.
"""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[2]


def own_lines(stderr: str, program: str) -> str:
    """Return the lines that begin with the program's name. If pdgen itself crashed, return everything."""
    if any(f'File "{ROOT / folder}/' in stderr for folder in ("pdgen", "launch")):
        return stderr
    return "".join(f"{line}\n" for line in stderr.splitlines() if line.startswith(f"{program}: "))


def keep_own_lines(done: subprocess.CompletedProcess, program: str) -> subprocess.CompletedProcess:
    """Return the result of a command line with ``own_lines`` alone on stderr."""
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, own_lines(done.stderr, program))

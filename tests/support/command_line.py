"""Command lines in forks of a process that has imported the project: a new interpreter takes seconds to do that.

Each fork runs the program as ``python launch/<program>.py`` does, with its own standard streams. JAX has no backend
before the fork.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax

ROOT = pathlib.Path(__file__).parents[2]
IMPORTS = (
    *("pdgen.checkpoints.conversion", "pdgen.evaluate.page", "pdgen.sample.sampler", "pdgen.sample.runs.gallery"),
    *("pdgen.sample.strategies.table", "pdgen.synthesis.build", "pdgen.train.loop", "pdgen.train.planning.plan"),
)
TEMPLATE = """
import importlib, json, os, runpy, sys, warnings

for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    script, arguments, folder = json.loads(line)
    with warnings.catch_warnings(action="ignore"):
        child = os.fork()
    if not child:
        for stream, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
            os.dup2(os.open(os.path.join(folder, name), flags | os.O_CREAT), stream)
        sys.stdin = open(0, closefd=False)
        sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _start_template(changes: tuple[tuple[str, str], ...]) -> subprocess.Popen[str]:
    """Start the process that is forked, with ``changes`` to the environment. It ends when this process does."""
    command = [sys.executable, "-c", TEMPLATE, *IMPORTS]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | dict(changes), stdin=pipe, stdout=pipe, text=True)


def run_command(program: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``launch/<program>.py`` in the project's folder, on one CPU device unless ``environment`` says otherwise."""
    own = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, "JAX_NUM_CPU_DEVICES": "1"}
    template = _start_template(tuple(sorted((own | environment).items())))
    script, words = str(ROOT / "launch" / f"{program}.py"), [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        assert template.stdin is not None and template.stdout is not None
        template.stdin.write(json.dumps([script, words, folder]) + "\n")
        template.stdin.flush()
        status = int(template.stdout.readline())
        out, err = (pathlib.Path(folder, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess([script, *words], status, out, err)

"""The command line ``python -m benchmarks.miniature``."""

from absl import app, flags

from benchmarks.miniature import run
from pdgen.cli import parse

__doc__ = run.__doc__  # for --help, as are the key flags
run.define_flags()
flags.adopt_module_key_flags(run)
app.run(run.main, flags_parser=parse)

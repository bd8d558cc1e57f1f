"""Lines for the user of a job, and how its processes find each other."""

import subprocess
import sys

PRINT = "from pdgen.train.planning.processes import print_once; print_once('one'); print_once('two')"


def test_a_full_standard_output_is_said_once_and_ends_nothing():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINT], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    line = "standard output: cannot be written (No space left on device); the work continues without it\n"
    assert (done.returncode, done.stderr) == (0, line)

"""Lines for the user of a job, and the discovery of its processes."""

import os
import socket
import subprocess
import sys

import pytest

from pdgen.train.planning.processes import read_environment
from pdgen.train.run_config import RunError

PRINT = "from pdgen.train.planning.processes import print_once; print_once('one'); print_once('two')"
JOIN = """
import jax
from pdgen.train.planning.processes import join_processes
join_processes()
print(jax.process_index(), jax.process_count(), jax.device_count(), flush=True)
"""
NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def test_a_full_standard_output_is_reported_once_and_ends_nothing():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINT], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    line = "standard output: cannot be written (No space left on device); the work continues without it\n"
    assert (done.returncode, done.stderr) == (0, line)


def test_processes_started_by_hand_find_each_other():
    """As over SSH, each has only the three variables."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(2):
        given = dict(zip(NAMES, (f"localhost:{port}", "2", str(number))))
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"} | given
        command = [sys.executable, "-c", JOIN]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    assert [process.communicate(timeout=300)[0] for process in started] == ["0 2 2\n", "1 2 2\n"]


@pytest.mark.parametrize("environment", [{}, {"JAX_COORDINATOR_ADDRESS": "a:1"}, {"SLURM_PROCID": "1"}])
def test_without_a_number_the_scheduler_gives_it(environment):
    assert read_environment(environment) == {}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            ("", "2", "0"),
            "JAX_COORDINATOR_ADDRESS is missing in the environment; set all of JAX_COORDINATOR_ADDRESS, J",
        ),
        (("a:1", "2", ""), "JAX_PROCESS_ID is missing"),
        (("a:1", "", "0"), "JAX_NUM_PROCESSES is missing"),
        (("a", "2", "0"), "JAX_COORDINATOR_ADDRESS=a: expected HOST:PORT of process 0"),
        (("a:b", "2", "0"), "JAX_COORDINATOR_ADDRESS=a:b: expected HOST:PORT"),
        (("a:1", "2", "2"), "JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=2: expected a number of processes and one of 0, 1"),
        (("a:1", "two", "0"), "JAX_NUM_PROCESSES=two and JAX_PROCESS_ID=0: expected"),
        (("a:1", "2", "-1"), "JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=-1: expected"),
    ],
)
def test_variables_that_are_missing_or_wrong_are_named(values, line):
    with pytest.raises(RunError, match=f"^--distributed: {line}"):
        read_environment(dict(zip(NAMES, values)))

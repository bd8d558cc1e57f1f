"""Jobs of two processes: ``python -m tests.train.two_processes JOB NUMBER PORT FOLDER`` is one of the two."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from pdgen.checkpoints.runs.workdir import CHECKPOINTS
from pdgen.train.checkpoint import Checkpoints, barrier
from pdgen.train.stop import StopSignals

TIMEOUT = 300  # seconds


def run_two_processes(job, folder):
    """Run a job in two processes with four devices each; return what each has printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.two_processes", job, str(number), port, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [stdout for stdout, _ in outputs]


def take_one_step(number, folder):
    """One step on a mesh of both processes, with two micro-batches; the results go to ``NUMBER.<part>.npz``."""
    from tests.train.cases import STEP, after_one_step

    ready = [folder / f"{process}.ready" for process in range(2)]

    def wait_for_other():
        """Wait until the other process has compiled: on a busy machine that outlasts the timeout of a collective."""
        ready[number].touch()
        end = time.monotonic() + TIMEOUT
        while not all(path.exists() for path in ready):
            assert time.monotonic() < end, "the other process has not started"
            time.sleep(0.05)

    with jax.default_matmul_precision("highest"):
        result = after_one_step(dataclasses.replace(STEP, accumulate=2), (1, 4, 2), ready=wait_for_other)
    for part in ("metrics", "gradients", "updated"):
        np.savez(folder / f"{number}.{part}.npz", **getattr(result, part))


def save_and_restore(number, folder):
    """Save two steps, damage the second, restore the first; then stop at a signal. Print a line of JSON."""
    from tests.train.test_checkpoint import KERNEL, abstract, assert_state, flip, shardings, state_at

    mesh_shardings = shardings((1, 4, 2))
    lines = []
    with Checkpoints(folder, 2, 0, lines.append) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, jax.jit(lambda step=step: state_at(step), out_shardings=mesh_shardings)())
        checkpoints.finish()
    if number == 0:
        flip(folder / CHECKPOINTS / "2" / KERNEL)
    barrier()
    with Checkpoints(folder, 2, 0, lines.append) as checkpoints:
        restored = checkpoints.restore(abstract(), mesh_shardings)
    assert_state(multihost_utils.process_allgather(restored, tiled=True), 1)
    print(json.dumps({"stopped_after": find_stop_step(number), "lines": lines}))


def find_stop_step(number):
    """Return the step after which this process stops; the second process receives SIGTERM in its third step."""
    with StopSignals() as signals:
        for step in range(1, 1000):
            if step == 3 and number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            if signals.poll(step):
                return step
    return 0


JOBS = {"step": take_one_step, "save": save_and_restore}

if __name__ == "__main__":
    job, number, port, folder = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))
    assert jax.process_count() == 2 and len(jax.local_devices()) == 4
    JOBS[job](int(number), pathlib.Path(folder))

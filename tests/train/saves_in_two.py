"""One process of a run of two: ``python -m tests.train.saves_in_two NUMBER PORT FOLDER`` saves and restores."""

import json
import os
import pathlib
import signal
import sys
import time

import jax
from jax.experimental import multihost_utils

from pdgen.checkpoints.runs.workdir import CHECKPOINTS
from pdgen.train.checkpoint import Checkpoints, barrier
from pdgen.train.stop import StopSignals
from tests.train.test_checkpoint import KERNEL, abstract, assert_state, flip, shardings, state_at


def main(number, port, folder):
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=number)
    places = shardings((1, 4, 2))
    lines = []
    with Checkpoints(folder, 2, 0, lines.append) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, jax.jit(lambda step=step: state_at(step), out_shardings=places)())
        checkpoints.finish()
    if number == 0:
        flip(folder / CHECKPOINTS / "2" / KERNEL)
    barrier()
    with Checkpoints(folder, 2, 0, lines.append) as checkpoints:
        found = checkpoints.restore(abstract(), places)
    assert_state(multihost_utils.process_allgather(found, tiled=True), 1)
    print(json.dumps({"left": left_after(number), "lines": lines}))


def left_after(number):
    """The step after which this process leaves; the second one gets SIGTERM in its third."""
    with StopSignals() as signals:
        for step in range(1, 1000):
            if step == 3 and number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            if signals.poll(step):
                return step
    return 0


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]))

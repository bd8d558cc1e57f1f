"""One process of a run of two: ``python -m tests.train.one_of_two NUMBER PORT FOLDER`` takes one step."""

import dataclasses
import pathlib
import sys
import time

import jax
import numpy as np

from tests.train.cases import STEP, after_one_step

MESH, ACCUMULATE = (1, 4, 2), 2
PATIENCE = 300  # seconds


def main(number, port, folder):
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))
    assert jax.process_count() == 2 and len(jax.local_devices()) == 4
    ready = [pathlib.Path(folder, f"{process}.ready") for process in range(2)]

    def barrier():
        """Waits for the other to have compiled: on a busy machine that takes longer than a collective waits."""
        ready[int(number)].touch()
        end = time.monotonic() + PATIENCE
        while not all(path.exists() for path in ready):
            assert time.monotonic() < end, "the other process is not there"
            time.sleep(0.05)

    with jax.default_matmul_precision("highest"):
        result = after_one_step(dataclasses.replace(STEP, accumulate=ACCUMULATE), MESH, ready=barrier)
    for part in ("metrics", "gradients", "updated"):
        np.savez(pathlib.Path(folder, f"{number}.{part}.npz"), **getattr(result, part))


if __name__ == "__main__":
    main(*sys.argv[1:])

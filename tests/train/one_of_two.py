"""One process of a run of several: ``python -m tests.train.one_of_two NUMBER COUNT PORT FILE`` takes one step."""

import dataclasses
import sys

import jax
import numpy as np

from tests.train.cases import STEP, after_one_step

MESH, ACCUMULATE = (1, 4, 2), 2


def main(number, count, port, file):
    jax.distributed.initialize(f"localhost:{port}", num_processes=int(count), process_id=int(number))
    assert jax.process_count() == int(count) and len(jax.local_devices()) == 4
    with jax.default_matmul_precision("highest"):
        results = after_one_step(dataclasses.replace(STEP, accumulate=ACCUMULATE), MESH)
    names = "metrics", "gradients", "updated"
    np.savez(file, **{f"{part}:{name}": leaf for part, tree in zip(names, results) for name, leaf in tree.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])

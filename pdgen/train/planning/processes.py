"""Runs of several processes, started by a scheduler on the hosts of a pod."""

import jax

from pdgen.train.run_config import RunError


def join_processes() -> None:
    """Connect this process to the others of its job (``jax.distributed``); Slurm, Kubernetes or MPI give the number.

    Call it before anything else uses JAX's devices.

    Raises:
      RunError: no scheduler is detected, or the other processes do not connect.
    """
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise RunError(
            f"--distributed: the job's processes were not found ({reason}); start them with srun or as an "
            "indexed Kubernetes job (launch/slurm, launch/k8s), or leave --distributed out"
        ) from None


def print_once(line: str) -> None:
    """Print the line in the first process only."""
    if not jax.process_index():
        print(line, flush=True)

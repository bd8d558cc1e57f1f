"""One run of several processes, as a scheduler starts them on the hosts of a pod."""

import jax

from pdgen.train.run_config import RunError


def join_processes() -> None:
    """Makes this process one of its job's (``jax.distributed``): Slurm, Kubernetes or MPI say how many there are.

    To be called before anything else asks JAX for devices.

    Raises:
      RunError: no scheduler is recognised, or the other processes do not come.
    """
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as fault:
        why = " ".join(str(fault).split())[:200]
        raise RunError(
            f"--distributed: the job's processes were not found ({why}); start them with srun or as an "
            "indexed Kubernetes job (launch/slurm, launch/k8s), or leave --distributed out"
        ) from None


def say_once(line: str) -> None:
    """Prints the line in the first process alone."""
    if not jax.process_index():
        print(line, flush=True)

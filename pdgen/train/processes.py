"""A run's processes and devices: several as a scheduler starts them on a pod's hosts, or the cores of one CPU."""

import os

import jax

from pdgen.train.run_config import RunConfig, RunError


def use_cores(run: RunConfig) -> None:
    """Makes a device of each core that can have rows of its own, for XLA splits few products of a CPU over threads.

    To be called before anything else asks JAX for devices; accelerators are used as they are. ``JAX_NUM_CPU_DEVICES``
    in the environment has precedence.
    """
    data, fsdp, tensor = run.mesh
    if "JAX_NUM_CPU_DEVICES" in os.environ or -1 not in (data, fsdp):
        return
    known = tensor * max(data, fsdp, 1)
    fitting = range(len(os.sched_getaffinity(0)) // known * known, 0, -known)
    count = next((n for n in fitting if run.rows % (run.accumulate * n // tensor) == 0), known)
    jax.config.update("jax_num_cpu_devices", count)


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
        raise RunError(f"--distributed: the job's processes were not found ({why}); start them with srun or as an "
                       "indexed Kubernetes job (launch/slurm, launch/k8s), or leave --distributed out") from None


def say_once(line: str) -> None:
    """Prints the line in the first process alone."""
    if not jax.process_index():
        print(line, flush=True)

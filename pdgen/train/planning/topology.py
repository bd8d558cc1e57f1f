"""Topologies to compile for without the accelerators: ``h100:8``, ``h100:64``, ``v5p:2x2x2``.

XLA compiles for a GPU from its description (``pdgen/assets/h100_sxm.txtpb``), libtpu for any TPU topology by name. The
extra ``plan`` installs the compilers.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
from typing import Any

import jax
from jax.experimental import topologies

from pdgen.assets import h100_description

GPUS_PER_HOST = 8
# Share of the memory that the compiled program can use. The runtime needs the rest: CUDA context, NCCL buffers,
# workspaces, fragmentation. launch/gpu.env sets XLA_PYTHON_CLIENT_MEM_FRACTION accordingly.
USABLE_FRACTION = 0.92


class TopologyError(ValueError):
    """A topology is unknown or its compiler is missing; one line names the remedy."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator: its nominal memory in bytes, and the packages that compile for it."""

    memory: float
    packages: tuple[str, ...]


_GPU = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
_TPU = ("libtpu",)
CHIPS = {
    "h100": Chip(80e9, _GPU),
    "v4": Chip(32e9, _TPU),
    "v5e": Chip(16e9, _TPU),
    "v5p": Chip(95e9, _TPU),
    "v6e": Chip(32e9, _TPU),
    "tpu7x": Chip(192e9, _TPU),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of devices of one kind.

    Attributes:
      name: name that was parsed.
      chip: kind of the devices.
      layout: (hosts, devices per host) for GPUs, chips along each axis for TPUs.
    """

    name: str
    chip: Chip
    layout: tuple[int, ...]


def parse_topology(name: str) -> Topology:
    """Parse ``h100:<GPUs>`` or ``<TPU>:<X>x<Y>[x<Z>]``. Raises TopologyError for anything else."""
    kind, _, size = name.partition(":")
    if kind not in CHIPS:
        raise TopologyError(f"--topology={name}: no such chip {kind!r}; there are {', '.join(CHIPS)}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise TopologyError(f"--topology={name}: give a size, such as h100:8 or v5p:2x2x2")
    sizes = tuple(map(int, size.split("x")))
    if CHIPS[kind].packages == _TPU:
        return Topology(name, CHIPS[kind], sizes)
    gpus = math.prod(sizes)
    if len(sizes) > 1 or (gpus > GPUS_PER_HOST and gpus % GPUS_PER_HOST):
        raise TopologyError(
            f"--topology={name}: give a number of GPUs up to {GPUS_PER_HOST} or a multiple of it, "
            f"such as {kind}:8 or {kind}:64"
        )
    return Topology(name, CHIPS[kind], (math.ceil(gpus / GPUS_PER_HOST), min(gpus, GPUS_PER_HOST)))


def require_compiler(topology: Topology) -> None:
    """Raise TopologyError with the command to install if the compiler is missing or of another jax version."""
    missing = [package for package in topology.chip.packages if _find_version(package) is None]
    if missing:
        raise TopologyError(
            f'--topology={topology.name}: {", ".join(missing)} not installed; pip install "pdgen[plan]"'
        )
    for package in topology.chip.packages:
        if package.startswith("jax-") and _find_version(package) != jax.__version__:
            raise TopologyError(
                f"--topology={topology.name}: {package} {_find_version(package)} is not for jax "
                f"{jax.__version__}; pip install {package}=={jax.__version__}"
            )


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def make_compile_only_devices(topology: Topology) -> list[jax.Device]:
    """Make devices that can only be compiled for. Raises TopologyError."""
    require_compiler(topology)
    try:
        if topology.chip.packages == _TPU:
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server off Google Cloud
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
        else:
            hosts, gpus = topology.layout
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name="h100",
                topology=f"{hosts}x1x{gpus}",
                target_config=h100_description().read_text(),
            )
    except (jax.errors.JaxRuntimeError, ValueError) as fault:
        raise TopologyError(f"--topology={topology.name}: {str(fault).strip().splitlines()[0]}") from None
    return list(found.devices)


def compiler_options(topology: Topology) -> dict[str, Any]:
    """Return compiler options that replace queries to the accelerator and measurements on it."""
    if topology.chip.packages == _TPU:
        return {}
    assembler = importlib.util.find_spec("nvidia.cuda_nvcc")
    assert assembler is not None and assembler.submodule_search_locations  # require_compiler has checked it
    return {
        "xla_gpu_autotune_level": 0,
        "xla_gpu_enable_triton_gemm": False,  # autotuning would time its tiles
        "xla_gpu_cuda_data_dir": str(pathlib.Path(next(iter(assembler.submodule_search_locations)))),
    }

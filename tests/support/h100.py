"""Programs for an H100 with arguments in host memory, which JAX cannot describe for absent devices."""

import jax
import pytest
from jax._src import compiler
from jax._src.lib import xla_client

from pdgen.train.planning.topology import TopologyError, compiler_options, make_compile_only_devices, parse_topology


def compile_for_h100(function, *args, **options):
    """Compile a jitted function; ``args`` are shapes with shardings of a CPU device, by memory kind."""
    topology = parse_topology("h100:1")
    try:
        device = make_compile_only_devices(topology)[0]
    except TopologyError as fault:
        pytest.skip(str(fault))
    module = function.trace(*args).lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    # A real GPU uses Triton's products; planning leaves them out, since it cannot time their tiles.
    overrides = compiler_options(topology) | {"xla_gpu_enable_triton_gemm": True} | options
    asked = compiler.get_compile_options(1, 1, device_assignment=[[0]], env_options_overrides=overrides)
    asked.executable_build_options.use_shardy_partitioner = True
    return device.client.compile(module, xla_client.DeviceList((device,)), asked)


def place_for(kind, tree):
    """Return the shapes of a tree in one kind of memory."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=kind)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

"""The kernels compiled for accelerators that are not there; skipped without the compilers of the extra ``plan``.

What the machine code says can be checked without running it: that a kernel's sums stay in registers, and that the host
decides nothing while attention runs.
"""

import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from pdgen.models.attention import Intervals, Part, attend
from pdgen.sharding import MESH_AXES, RULES, map_shards
from pdgen.train.planning.topology import (
    TopologyError,
    compiler_options,
    make_compile_only_devices,
    parse_topology,
    require_compiler,
)

TOKENS, HEADS, KV_HEADS = 4352, 28, 4  # of the 7B model, 34 blocks of 128
SPILLED = 32  # bytes a thread


def compile_attention(name, head_size, **options):
    """Compile attention and its gradients on a topology whose devices split rows and heads."""
    topology = parse_topology(name)
    try:
        require_compiler(topology)
    except TopologyError as fault:
        pytest.skip(str(fault))
    devices = np.array(make_compile_only_devices(topology)).reshape(1, 4, 2)
    mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Explicit,) * 3)
    row, queries, keys = ("batch", None), ("batch", None, "heads", None), ("batch", None, "kv_heads", None)

    def shape(names, *sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((4, TOKENS, *sizes), dtype, sharding=NamedSharding(mesh, RULES.spec(*names)))

    def step(q, k, v, intervals):
        run = map_shards(lambda q, k, v, i: attend(q, [Part(k, v, i)]), (queries, keys, keys, row), queries)
        out, pull = jax.vjp(lambda q, k, v: run(q, k, v, intervals), q, k, v)
        return pull(out)

    heads = shape(queries, HEADS, head_size), *[shape(keys, KV_HEADS, head_size)] * 2
    intervals = Intervals(*(shape(row, dtype=jnp.int32) for _ in range(4)))
    with jax.set_mesh(mesh):
        lowered = jax.jit(step).lower(*heads, intervals)
        return lowered.compile(compiler_options=compiler_options(topology) | options)


def loops(compiled):
    """Instructions whose number of runs the device may have to tell the host."""
    return re.findall(r"= \S+ (while|conditional)\(", compiled.as_text())


@pytest.mark.slow
@pytest.mark.parametrize("head_size", [128, 72])
def test_the_kernels_of_an_h100_keep_their_sums_in_registers(head_size, tmp_path):
    """Of the language model's heads and the ViT's: tensor cores, no spills, no loops outside of the kernels."""
    compiled = compile_attention("h100:8", head_size, xla_dump_to=str(tmp_path), xla_gpu_dump_llvmir=True)
    assert loops(compiled) == []
    assembler = f"{compiler_options(parse_topology('h100:8'))['xla_gpu_cuda_data_dir']}/bin/ptxas"
    found = {}
    for path in tmp_path.glob("*.ptx"):
        text = path.read_text()
        for name in re.findall(r"\.entry\s+(interval_attention\w*)", text):
            assert "wgmma.mma_async" in text and "mma.sync" not in text, name
            command = [assembler, "-v", "-arch=sm_90a", path, "-o", tmp_path / "out"]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            found[name] = int(re.search(r"(\d+) bytes spill stores", report)[1])
    assert found.keys() == {"interval_attention", "interval_attention_dq", "interval_attention_dkv"}
    assert max(found.values()) <= SPILLED, found


@pytest.mark.slow
@pytest.mark.parametrize("head_size", [128, 72])
def test_the_kernels_of_a_tpu_compile(head_size):
    compiled = compile_attention("v5p:2x2x2", head_size)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
    assert loops(compiled) == []

"""Layers in host memory: the numbers of a scan, one layer in transfer at a time, and the compiled programs."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import SingleDeviceSharding

from pdgen.config import BAGEL_7B, ComputeConfig
from pdgen.models import bagel
from pdgen.models.context import add_latents, add_text, empty_cache
from pdgen.models.streaming import HostLayers, scan_layers
from pdgen.sample.compiled import COPY_AHEAD
from pdgen.sharding import to_host_memory
from tests.support.h100 import compile_for_h100, place_for
from tests.support.small import CONFIG, SWITCHES

IN_HOST, ON_DEVICE = "pinned_host", "device"


def put_on_host(tree):
    return jax.device_put(tree, to_host_memory(SingleDeviceSharding(jax.devices()[0])))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_numbers_are_those_of_a_scan(count):
    """x <- W_n x + b_n + c_n: as by numpy, layer after layer, and bit for bit as by ``jax.lax.scan``."""
    rng = np.random.default_rng(count)
    values = {"w": (3, 3), "b": (3,), "c": (3,)}
    w, b, c = (rng.normal(size=(count, *shape)).astype(np.float32) for shape in values.values())
    x = rng.normal(size=3).astype(np.float32)

    def run(x, layer):
        c, params = layer
        x = params["far"]["w"] @ x + params["far"]["b"] + params["near"]["b"] + c
        return x, 2 * x

    def calculate(far, near, c, x):
        return scan_layers(run, x, c, {"far": far, "near": near})

    far = put_on_host({"w": w, "b": b})
    last, outputs = jax.jit(calculate)(HostLayers(far), {"b": b}, c, x)
    here = jax.jit(calculate)({"w": w, "b": b}, {"b": b}, c, x)
    jax.tree.map(np.testing.assert_array_equal, (last, outputs), here)
    expected = []
    for n in range(count):
        x = w[n] @ x + 2 * b[n] + c[n]
        expected.append(2 * x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last, x, rtol=1e-4, atol=1e-4)


def test_host_layers_are_a_dict_with_the_order_of_one():
    plain = {"b": 1, "a": {"d": 2, "c": 3}}
    marked = HostLayers(plain)
    assert jax.tree.leaves(marked) == jax.tree.leaves(plain) == [3, 2, 1]
    names = [[jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)] for tree in (marked, plain)]
    assert names[0] == names[1]
    doubled = jax.tree.map(lambda x: 2 * x, marked)
    assert isinstance(doubled, HostLayers) and doubled == {"b": 2, "a": {"d": 4, "c": 6}}


def write(config, compute, params, cache, ids, count):
    return add_text(config, compute, params, cache, ids, count)


def read_latents(config, compute, params, cache, ids, count):
    """Read latents. Both experts run: switch tokens belong to the understanding expert."""
    latents = jnp.zeros((*ids.shape, config.latent_dim))
    switches = SWITCHES.vision_start, SWITCHES.vision_end
    return add_latents(config, compute, params, cache, (latents, ids), switches, count > 0)


def arrange(function, config, compute, expert, int8=False):
    """Return a jitted function, and shapes of its arguments with one expert in host memory."""
    params = place_for(ON_DEVICE, nn.unbox(bagel.abstract_params(config, jnp.dtype(compute.dtype), int8=int8)))
    layers = params["language"]["layers"]
    layers[expert] = HostLayers(place_for(IN_HOST, layers[expert]))
    cache = jax.eval_shape(lambda: empty_cache(config, 1, 256, jnp.dtype(compute.dtype)))
    ids, count = jax.ShapeDtypeStruct((1, 4), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    rest = place_for(ON_DEVICE, (cache, ids, count))
    return jax.jit(functools.partial(function, config, compute), donate_argnums=1), (params, *rest)


def list_copies(text):
    """List the shapes that a lowered program copies to the device."""
    found = re.findall(r'@annotate_device_placement\(.*_xla_buffer_placement = "(\w+)".* -> tensor<([\dx]*)x', text)
    assert {kind for kind, _ in found} <= {"device"}
    return sorted(tuple(map(int, dims.split("x"))) for _, dims in found)


@pytest.mark.parametrize("int8", [False, True], ids=["floats", "int8"])
def test_a_program_copies_single_layers_of_an_expert_that_runs(int8):
    """Each parameter twice: the first layer before the loop, a layer in it. A text needs no generation expert."""
    for function, expert, runs in [(write, "und", True), (write, "gen", False), (read_latents, "gen", True)]:
        jitted, args = arrange(function, CONFIG, ComputeConfig(), expert, int8)
        layer = [leaf.shape[1:] for leaf in jax.tree.leaves(args[0]["language"]["layers"][expert])]
        expected = sorted(2 * layer) if runs else []
        # For a CPU, whose memory is the host's, JAX leaves the copies out.
        lowered = jitted.trace(*args).lower(lowering_platforms=("cuda",))
        assert list_copies(lowered.as_text()) == expected, (function.__name__, expert)


@pytest.mark.slow
@pytest.mark.parametrize("expert", ["und", "gen"])
def test_the_7b_model_on_a_cpu_takes_its_expert_from_host_memory(expert):
    jitted, args = arrange(read_latents, BAGEL_7B, ComputeConfig(dtype="bfloat16"), expert, int8=True)
    taken = jitted.lower(*args).compile().input_shardings[0][0]["language"]["layers"]
    for name, tree in taken.items():
        kinds = {leaf.memory_kind for leaf in jax.tree.leaves(tree)}
        assert kinds == {IN_HOST if name == expert else ON_DEVICE}


def list_operations(program):
    """List the operations, in order, of a program's longest loop that copies from the host (S(5))."""
    blocks = [block for block in re.split(r"\n\n", program) if "S(5)}" in block and "-start" in block]
    loop = max((b for b in blocks if not b.strip().startswith("ENTRY")), key=len)
    return re.findall(r"^ *(?:ROOT )?%([\w.-]+) = ", loop, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
def test_an_h100_copies_a_layer_while_another_computes(int8):
    """In the 7B model, all copies are under way while the layer's four large products run."""
    compute = ComputeConfig(dtype="bfloat16")
    jitted, args = arrange(write, BAGEL_7B, compute, "und", int8)
    executable = compile_for_h100(jitted, *args, **COPY_AHEAD)
    memory = executable.get_compiled_memory_stats()
    sizes = [math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(args[0]["language"]["layers"]["und"])]
    assert memory.host_argument_size_in_bytes == pytest.approx(sum(sizes), rel=1e-3)
    layer = sum(sizes) / BAGEL_7B.language.num_layers
    assert memory.temp_size_in_bytes < 2 * layer + 0.2e9
    names = list_operations(executable.hlo_modules()[0].to_string())
    words = ("slice-start", "slice-done", "gemm")
    starts, dones, products = ([n for n, name in enumerate(names) if word in name] for word in words)
    assert len(starts) == len(dones) == len(sizes)
    assert sum(max(starts) < place < min(dones) for place in products) >= 4

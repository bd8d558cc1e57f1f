"""Int8 kernels: products against closed forms, and the programs that compilers make."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from pdgen.checkpoints.quantized import quantize
from pdgen.config import BAGEL_7B, ComputeConfig
from pdgen.models import bagel
from pdgen.models.context import add_text, empty_cache
from pdgen.models.linear import apply_kernel, cast_layer, look_up, may_be_int8, quantize_spec
from pdgen.train.planning.topology import TopologyError, compiler_options, make_compile_only_devices, parse_topology
from tests.support.small import CONFIG, shaken_params

BATCH, TOKENS = 2, 5
SLOTS = 61  # of a context: a prime, so that no array of a context has as many values as a kernel


def quantize_map(kernel, outputs):
    values, scale = quantize(kernel, outputs)
    return {"kernel": jnp.asarray(values), "kernel_scale": jnp.asarray(scale)}


@pytest.mark.parametrize(
    "equation, out, inner",
    [("bsd,nhd->bsnh", (4, 8), (24,)), ("bsnh,dnh->bsd", (24,), (4, 8)), ("bsd,fd->bsf", (40,), (24,))],
)
def test_a_product_is_off_by_at_most_half_a_step_of_every_weight(equation, out, inner):
    """|scale (q x) - W x| <= scale / 2 * sum |x|, by each output channel, whose largest weight is 127 steps."""
    rng = np.random.default_rng(0)
    size = rng.uniform(0.01, 3.0, out).reshape(*out, *[1] * len(inner))  # channels of very different sizes
    kernel = (size * rng.normal(size=out + inner)).astype(np.float32)
    x = rng.normal(size=(BATCH, TOKENS, *inner)).astype(np.float32)
    found = apply_kernel(quantize_map(kernel, len(out)), equation, jnp.asarray(x), None)
    exact = np.einsum(equation, x.astype(np.float64), kernel.astype(np.float64))
    inputs = tuple(range(-len(inner), 0))
    step = np.abs(kernel).max(axis=inputs) / 127
    bound = step / 2 * np.abs(x).sum(axis=inputs).reshape(BATCH, TOKENS, *[1] * len(out))
    error = np.abs(np.asarray(found, np.float64) - exact)
    assert found.shape == exact.shape
    assert (error <= bound + 1e-5 * np.abs(exact).max()).all()
    assert error.max() > 1e-3 * step.max()  # the rounded kernel was applied


def test_the_scale_is_applied_to_the_sum_before_it_is_rounded():
    """In bfloat16 the result is exact arithmetic on the rounded kernel, rounded once."""
    rng = np.random.default_rng(1)
    p = quantize_map(rng.normal(size=(16, 64)).astype(np.float32), 1)
    x = jnp.asarray(rng.normal(size=(1, 7, 64)), jnp.bfloat16)
    found = apply_kernel(p, "bsd,fd->bsf", x, None)
    wide = np.einsum("bsd,fd->bsf", np.asarray(x, np.float64), np.asarray(p["kernel"], np.float64))
    wide *= np.asarray(p["kernel_scale"], np.float64)
    assert found.dtype == jnp.bfloat16
    assert (np.abs(np.asarray(found, np.float64) - wide) <= 2**-8 * np.abs(wide) + 1e-5).all()
    whole = apply_kernel(p, "bsd,fd->bsf", x, None, jnp.float32)
    np.testing.assert_allclose(whole, wide, rtol=1e-5, atol=1e-5)


def test_embeddings():
    table = np.random.default_rng(2).normal(size=(12, 6)).astype(np.float32)
    values, scale = quantize(table, 1)
    ids = jnp.asarray([[3, 0, 11], [7, 7, 1]])
    found = look_up({"embedding": jnp.asarray(values), "embedding_scale": jnp.asarray(scale)}, ids, jnp.float32)
    np.testing.assert_array_equal(found, (values * scale[:, None])[np.asarray(ids)])
    assert (np.abs(found - table[ids]) <= scale[ids][..., None] / 2 * (1 + 1e-5)).all()
    np.testing.assert_array_equal(look_up({"embedding": jnp.asarray(table)}, ids, jnp.float32), table[ids])


def test_a_layer_is_cast_without_its_int8_kernels():
    layer = {"q": quantize_map(np.ones((3, 4), np.float32), 1), "q_norm": {"scale": jnp.ones(4)}}
    layer["q"]["bias"] = jnp.ones(3)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype.name, cast_layer(layer, jnp.bfloat16))
    assert dtypes["q"] == {"kernel": "int8", "kernel_scale": "float32", "bias": "bfloat16"}
    assert dtypes["q_norm"] == {"scale": "bfloat16"}


def test_bytes_of_the_7b_model():
    """14.7 GB: int8 values of the published kernels, a scale per channel, the rest in bfloat16."""
    shapes = traverse_util.flatten_dict(nn.unbox(bagel.abstract_params(BAGEL_7B, jnp.bfloat16, int8=True)), sep="/")
    whole = traverse_util.flatten_dict(nn.unbox(bagel.abstract_params(BAGEL_7B, jnp.bfloat16)), sep="/")
    sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in shapes.items()}
    language, vision = BAGEL_7B.language, BAGEL_7B.vision
    D, F, heads, C = language.hidden_size, language.intermediate_size, 128, vision.hidden_size
    expert = language.num_layers * (D * heads * (28 + 4 + 4 + 28) + 3 * D * F)
    vit = vision.num_layers * (4 * C * C + 2 * C * vision.intermediate_size)
    assert sum(sizes[name] for name in sizes if may_be_int8(name)) == 2 * expert + vit + 2 * language.vocab_size * D
    assert {name for name in sizes if not name.endswith("_scale")} == set(whole)
    assert sum(sizes.values()) == pytest.approx(14.7e9, rel=0.01)
    for name, leaf in shapes.items():
        if name.endswith("_scale"):
            assert leaf.shape == shapes[name.removesuffix("_scale")].shape[: len(leaf.shape)]


def quantize_tree(params):
    """Round the parameters of a small model."""
    spec = traverse_util.flatten_dict(quantize_spec(bagel.spec(CONFIG)), sep="/")
    flat = traverse_util.flatten_dict(params, sep="/")
    for name in [name for name in flat if may_be_int8(name)]:
        flat[name], flat[f"{name}_scale"] = quantize(flat[name], len(spec[f"{name}_scale"].shape))
    return traverse_util.unflatten_dict(flat, sep="/")


def to_floats(params):
    """Multiply every int8 kernel of a tree by its scales."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for name in [name for name in flat if name.endswith("_scale")]:
        kernel, scale = flat[name.removesuffix("_scale")], flat.pop(name)
        flat[name.removesuffix("_scale")] = kernel * scale.reshape(scale.shape + (1,) * (kernel.ndim - scale.ndim))
    return traverse_util.unflatten_dict(flat, sep="/")


def write(config, compute, params, cache, ids, count):
    """Read a text and predict the next token."""
    cache, hidden = add_text(config, compute, params, cache, ids, count)
    return cache, bagel.logits(params, hidden[:, -1:])


def test_a_model_computes_with_its_rounded_weights():
    """The int8 model is the float model whose kernels are the rounded ones, up to the order of arithmetic."""
    params = shaken_params()
    small = quantize_tree(params)
    rounded = to_floats(small)
    compute, cache = ComputeConfig(), empty_cache(CONFIG, BATCH, 16)
    ids, count = jnp.asarray([[1, 5, 9], [63, 2, 2]]), jnp.asarray([3, 3])
    run = jax.jit(functools.partial(write, CONFIG, compute))
    logits = [run(tree, cache, ids, count)[1] for tree in (params, rounded, small)]
    np.testing.assert_allclose(logits[2], logits[1], atol=1e-4)
    assert 1e-4 < np.abs(logits[2] - logits[0]).max() < 0.2 * np.abs(logits[0]).max()


def list_buffers(program):
    """List the float arrays that a compiled program keeps in memory: results outside of fusions."""
    fused = set(re.findall(r"calls=%?([\w.-]+)", program))
    buffers = []
    for block in re.split(r"\n\n", program):
        name = re.match(r"(?:ENTRY )?%?([\w.-]+) \(", block.strip())
        if name and name[1] not in fused:
            buffers += re.findall(r"= (?:f32|bf16|f16)\[([\d,]+)\]", block)
    return [tuple(map(int, dims.split(","))) for dims in buffers]


def count_values(params, may_be=may_be_int8):
    """Return the numbers of values of the stacks of layers that may be int8, and of a single layer of each."""
    stacks, layers = set(), set()
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
        if may_be(name) and "/layers/" in name:
            stacks.add(math.prod(leaf.shape))
            layers.add(math.prod(leaf.shape[1:]))
    return stacks, layers


def compile_write(config, compute, params, tokens, device, options=None):
    place = jax.sharding.SingleDeviceSharding(device)
    cache = jax.eval_shape(lambda: empty_cache(config, 1, SLOTS, jnp.dtype(compute.dtype)))
    ids, count = jax.ShapeDtypeStruct((1, tokens), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), (params, cache, ids, count)
    )
    run = jax.jit(functools.partial(write, config, compute), donate_argnums=1)
    return run.lower(*shapes).compile(compiler_options=options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_program_holds_floats_of_one_layer_at_a_time(dtype):
    # Seven layers, so that no layer has as many values as a stack.
    config = dataclasses.replace(
        CONFIG,
        language=dataclasses.replace(CONFIG.language, num_layers=7),
        vision=dataclasses.replace(CONFIG.vision, num_layers=7),
    )
    params = nn.unbox(bagel.abstract_params(config, int8=True))
    stacks, layers = count_values(params)
    assert not stacks & layers
    compute = ComputeConfig(dtype=dtype)
    program = compile_write(config, compute, params, 3, jax.devices()[0])
    sizes = {math.prod(dims) for dims in list_buffers(program.as_text())}
    assert not sizes & stacks

    def write_naively(params, *rest):
        return write(config, compute, to_floats(params), *rest)

    cache = jax.eval_shape(lambda: empty_cache(config, 1, SLOTS, jnp.dtype(dtype)))
    ids, count = jax.ShapeDtypeStruct((1, 3), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    naive = jax.jit(write_naively).lower(params, cache, ids, count).compile()
    assert {math.prod(dims) for dims in list_buffers(naive.as_text())} & stacks


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 1024])
def test_an_h100_program_has_no_float_copy_of_a_weight(tokens):
    """In the 7B model, products read int8, whether they write a token or read a text."""
    topology = parse_topology("h100:1")
    try:
        device = make_compile_only_devices(topology)[0]
    except TopologyError as fault:
        pytest.skip(str(fault))
    # A real GPU uses Triton's products; planning leaves them out, since it cannot time their tiles.
    options = compiler_options(topology) | {"xla_gpu_enable_triton_gemm": True}
    params = nn.unbox(bagel.abstract_params(BAGEL_7B, jnp.bfloat16, int8=True))
    stacks, layers = count_values(params)
    head = math.prod(params["language"]["head"]["kernel"].shape)
    # With tiles of 256 keys a tile of attention would have as many values as the kernel of its keys.
    compute = ComputeConfig(dtype="bfloat16", block_q=128, block_k=128)
    program = compile_write(BAGEL_7B, compute, params, tokens, device, options)
    sizes = {math.prod(dims) for dims in list_buffers(program.as_text())}
    assert not sizes & (stacks | layers | {head})
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < 0.5e9

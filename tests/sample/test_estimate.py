"""The needs of a run, counted from shapes alone and equal to those of its arrays."""

import dataclasses
import functools
import math
import shutil

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from pdgen.checkpoints.conversion import to_pdgen
from pdgen.checkpoints.load import describe
from pdgen.config import BAGEL_7B, ComputeConfig
from pdgen.flow.denoise import Denoiser, ImageSettings
from pdgen.models import autoencoder, bagel
from pdgen.sample import kernels
from pdgen.sample.capacity import compute_capacity
from pdgen.sample.estimate import Speed, estimate_run, format_estimate, measure_speed
from pdgen.sample.image import PreparedImages, make_grid
from pdgen.sample.kernels import make_empty_state
from pdgen.sample.model import describe_model
from pdgen.sample.sampler import Sampler
from pdgen.train.planning.topology import TopologyError, compiler_options, make_compile_only_devices, parse_topology
from tests.sample.conftest import PROMPTS, SEEDS, SETTINGS


@pytest.fixture(scope="module")
def shapes(checkpoint, tmp_path_factory):
    """A model of shapes alone, from a checkpoint without arrays."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("shapes") / "nano")
    shutil.rmtree(folder / "params")
    return Sampler(describe_model(describe(folder)))


def test_bytes_equal_those_of_the_arrays(sampler, shapes):
    starts = shapes.make_starts(PROMPTS[:2], SEEDS[:2], SETTINGS)
    one = shapes.estimate(starts, SETTINGS, Speed(1, 1))
    leaves = jax.tree.leaves(sampler.model.params)
    assert one.weights == sum(leaf.nbytes for leaf in leaves)
    capacity = compute_capacity(sampler.model, SETTINGS, starts)
    state = make_empty_state(sampler.model.static, one.slots + SETTINGS.batch_size, capacity)
    assert one.contexts == sum(x.nbytes for x in (state.full.k, state.full.v, state.texts.k, state.texts.v))
    assert one.tokens == sum(capacity)
    # A token reads the understanding expert, the head and the contexts of both rows.
    language = sampler.model.params["model"]["language"]
    read = sum(leaf.nbytes for leaf in jax.tree.leaves((language["layers"]["und"], language["head"])))
    row = (state.full.k.nbytes + state.full.v.nbytes) // (one.slots + SETTINGS.batch_size)
    assert one.token_bytes == read + SETTINGS.batch_size * row
    assert one.step_bytes > one.token_bytes


def test_seconds_follow_the_slower_of_bytes_and_products(shapes):
    starts = shapes.make_starts(PROMPTS[:3], SEEDS[:3], SETTINGS)
    slow_memory, slow_products = Speed(1e6, 1e30), Speed(1e30, 1e6)
    by_bytes, by_products = (estimate_run(shapes.model, SETTINGS, starts, 4, s) for s in (slow_memory, slow_products))
    assert by_bytes.token_seconds == pytest.approx(by_bytes.token_bytes / 1e6)
    layers = shapes.model.params["model"]["language"]["layers"]["und"]
    head = math.prod(shapes.model.params["model"]["language"]["head"]["kernel"].shape)
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layers)) + head
    assert by_products.token_seconds == pytest.approx(2 * SETTINGS.batch_size * weights / 1e6)
    # Three trajectories in batches of two; three images of three steps, and two texts an image after the first plan.
    assert (by_bytes.batches, by_bytes.images, by_bytes.image_steps) == (2, 3, 3)
    assert by_bytes.text_tokens == 6 * 24
    drawn = 3 * 3 * by_bytes.step_seconds
    assert by_bytes.seconds == pytest.approx(2 * (drawn + 6 * 24 * by_bytes.token_seconds))


@pytest.mark.parametrize("expert", ["und", "gen"])
def test_an_expert_in_host_memory(shapes, expert):
    """All but two of its layers leave the device. Where it runs, all its layers are copied, the last one twice."""
    starts, layers = shapes.make_starts(PROMPTS[:1], SEEDS[:1], SETTINGS), shapes.model.config.language.num_layers
    away = Sampler(dataclasses.replace(shapes.model, offload=expert))
    bus = Speed(1e12, 1e15, bus=1e6)
    here, there = (one.estimate(starts, SETTINGS, bus) for one in (shapes, away))
    leaves = jax.tree.leaves(shapes.model.params["model"]["language"]["layers"][expert])
    nbytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    assert (here.host, here.token_copied, here.step_copied) == (0, 0, 0)
    assert there.host == nbytes
    assert here.weights - there.weights == nbytes * (layers - 2) // layers
    copied = nbytes * (layers + 1) // layers
    assert (there.token_copied, there.step_copied) == (copied if expert == "und" else 0, copied)
    assert there.step_seconds == pytest.approx(copied / 1e6)
    assert there.token_seconds == pytest.approx(copied / 1e6 if expert == "und" else here.token_seconds)
    lines = format_estimate(away.model, there, bus)
    assert f"{nbytes / 1e9:,.3f} GB in host memory: " in lines[1] and lines[1].endswith("GB left")
    assert "GB/s from host memory" in lines[-1]
    full = dataclasses.replace(there, host_free=0)
    assert format_estimate(away.model, full, bus)[1].endswith(f": {nbytes / 1e9:,.3f} GB TOO MUCH")
    assert ["copies" in line for line in lines[4:6]] == [expert == "und", True]
    assert all(len(line) <= 120 for line in lines[1:])


def test_int8_and_fewer_images_need_less(checkpoint, shapes, tmp_path):
    to_pdgen(checkpoint, tmp_path / "int8", int8=True)
    small = Sampler(describe_model(describe(tmp_path / "int8")))
    starts = shapes.make_starts(PROMPTS[:1], SEEDS[:1], SETTINGS)
    whole, rounded = (one.estimate(starts, SETTINGS, Speed(1e9, 1e12)) for one in (shapes, small))
    assert rounded.weights < whole.weights and rounded.token_bytes < whole.token_bytes
    assert rounded.contexts == whole.contexts
    short = shapes.estimate(starts, dataclasses.replace(SETTINGS, max_images=1), Speed(1e9, 1e12))
    assert short.contexts < whole.contexts and short.seconds < whole.seconds


def test_lines(shapes):
    starts = shapes.make_starts(PROMPTS[:1], SEEDS[:1], SETTINGS)
    speed = measure_speed("float32", bus=True)
    assert speed.bytes > 0 and speed.flops > 0 and 0 < speed.bus < math.inf
    one = shapes.estimate(starts, SETTINGS, speed)
    lines = format_estimate(shapes.model, dataclasses.replace(one, free=10 * (one.weights + one.contexts)), speed)
    assert any("GB left" in line for line in lines)
    assert any("TOO MUCH" in line for line in format_estimate(shapes.model, dataclasses.replace(one, free=0), speed))
    assert all(len(line) <= 120 for line in lines[1:])


@pytest.mark.slow
def test_the_7b_model_in_int8_needs_less_than_24_gb():
    """Compiled for an H100: a second picture of 1,024 pixels is drawn under both guidances, decoded and read."""
    topology = parse_topology("h100:1")
    try:
        place = jax.sharding.SingleDeviceSharding(make_compile_only_devices(topology)[0])
    except TopologyError as fault:
        pytest.skip(str(fault))
    options = compiler_options(topology) | {"xla_gpu_enable_triton_gemm": True}  # a real GPU has Triton's products
    compute, grid = ComputeConfig(dtype="bfloat16"), make_grid(BAGEL_7B, 1024, 1024)
    abstract = bagel.abstract_params(BAGEL_7B, jnp.bfloat16, int8=True)
    params = {"model": nn.unbox(abstract), "autoencoder": nn.unbox(autoencoder.abstract_params(BAGEL_7B.autoencoder))}
    capacity = 11_264, 2_048  # whole tiles: the first picture's 9,000 tokens, and texts
    static, index = (BAGEL_7B, compute), jax.ShapeDtypeStruct((1,), jnp.uint32)
    state = jax.eval_shape(lambda: make_empty_state(static, 1, capacity))
    rows = kernels.RowGroup(jax.ShapeDtypeStruct((1,), jnp.int32), index, index)
    denoiser = Denoiser(*static, ImageSettings(), (151652, 151653))
    steps, patches = (0, denoiser.settings.num_timesteps - 1), math.prod(grid.patches)
    draw = functools.partial(kernels.draw, denoiser, grid, steps, True)
    pixels = jax.ShapeDtypeStruct((1, *grid.pixels, 3), jnp.float32)
    images = PreparedImages(pixels, jax.ShapeDtypeStruct((1, patches, BAGEL_7B.vision.patch_dim), jnp.float32), index)
    drawn = jax.eval_shape(draw, params, state, rows, None)
    calls = [
        (kernels.draw, (denoiser, grid, steps, True), (params, state, rows, None)),
        (kernels.decode, (BAGEL_7B, denoiser.settings, grid, steps[1]), (params, drawn)),
        (kernels.read_image, (static, grid, denoiser.switches), (params, state, rows, images)),
    ]
    held = count_bytes(params) + count_bytes(state)
    for function, static, args in calls:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), args)
        memory = function.lower(*static, *shapes).compile(compiler_options=options).memory_analysis()
        new = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        print(f"{function.__name__}: {held / 1e9:.2f} GB are held, {new / 1e9:.2f} GB are new")
        assert held + new < 20e9


def count_bytes(tree):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

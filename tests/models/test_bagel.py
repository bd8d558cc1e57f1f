"""The 7B model by shapes alone: its parameters, the checkpoint's tensors, its train step on hundreds of devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.linen import unbox
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from pdgen.checkpoints.mapping import array_shapes, expected_tensors
from pdgen.config import BAGEL_7B, NANO, PRESETS, ComputeConfig
from pdgen.models import autoencoder, bagel
from pdgen.sequence.layout import Budgets, pack_shapes
from pdgen.sharding import MESH_AXES, RULES, parameter_specs
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.state import StepConfig, abstract_state, state_shardings
from pdgen.train.step import jit_step


def declared(config):
    """Return path and shape of every array that the two models declare."""
    trees = {"model": unbox(bagel.abstract_params(config))}
    trees["autoencoder"] = unbox(autoencoder.abstract_params(config.autoencoder))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(trees, sep="/").items()}


@pytest.mark.parametrize("part, tensors, values", [("model", 1223, 14_607_260_128), ("autoencoder", 244, 83_819_683)])
def test_the_7b_checkpoint_is_declared_to_the_last_value(part, tensors, values):
    """The published files hold as many tensors and values."""
    shapes = expected_tensors(BAGEL_7B, (part,))
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) == values
    arrays = [shape for path, shape in declared(BAGEL_7B).items() if path.startswith(part)]
    assert sum(map(math.prod, arrays)) == values


@pytest.mark.parametrize("name", PRESETS)
def test_arrays_and_tensors_correspond(name):
    assert declared(PRESETS[name]) == array_shapes(PRESETS[name])


@pytest.fixture(scope="module")
def nano():
    return jax.jit(functools.partial(bagel.init_params, NANO))(jax.random.key(0))


def test_fresh_parameters(nano):
    """Norms of 1, biases of 0, words of 0.02, patch positions and kernels scaled by width; stacked layers differ.

    What is added to the residual stream is smaller by sqrt(2 L); the velocity begins at 0.
    """
    language, vision = NANO.language, NANO.vision
    heads = language.num_heads * language.head_dim
    inputs = {
        "vision/layers/attention/o": vision.hidden_size,
        "attention/o": heads,
        "latent_in": NANO.latent_dim,
        "mlp/down": language.intermediate_size,
        "time_embedder/fc1": NANO.time_frequency_dim,
        "connector/fc1": vision.hidden_size,
        "patch_embedding": vision.patch_dim,
        "vision/layers/mlp/fc2": vision.intermediate_size,
    }
    for path, leaf in traverse_util.flatten_dict(nano, sep="/").items():
        if path.endswith("/scale"):
            np.testing.assert_array_equal(leaf, 1, err_msg=path)
        elif path.endswith("/bias"):
            np.testing.assert_array_equal(leaf, 0, err_msg=path)
        elif path == "latent_out/kernel":
            np.testing.assert_array_equal(leaf, 0)
        elif path.endswith("/embedding"):
            expected = vision.hidden_size**-0.5 if path.startswith("vision/") else 0.02
            assert abs(np.std(leaf) / expected - 1) < 0.05, path
        elif not path.endswith("/table"):
            width = vision.hidden_size if path.startswith("vision/") else language.hidden_size
            expected = next((n for end, n in inputs.items() if path.endswith(f"{end}/kernel")), width) ** -0.5
            if path.startswith("language/") and path.endswith(("attention/o/kernel", "mlp/down/kernel")):
                expected *= (2 * language.num_layers) ** -0.5
            assert abs(np.std(leaf) / expected - 1) < 0.05, path
    kernel = np.asarray(nano["language"]["layers"]["und"]["mlp"]["gate"]["kernel"])
    assert not np.array_equal(kernel[0], kernel[1])
    assert not np.array_equal(kernel, nano["language"]["layers"]["gen"]["mlp"]["gate"]["kernel"])


@pytest.mark.parametrize(
    "name, side", [("vit_position", NANO.vision.max_side), ("latent_position", NANO.max_latent_size)]
)
def test_fresh_position_tables(nano, name, side):
    """The closed form, value by value: first half of the channels the column's, second the row's."""
    table = np.asarray(nano[name]["table"])
    quarter = NANO.language.hidden_size // 4
    for row, column in ((0, 0), (0, side - 1), (side - 1, 1), (2, 3)):
        values = table[row * side + column]
        for channel, value in enumerate(values):
            half, within = divmod(channel, 2 * quarter)
            wave, frequency = divmod(within, quarter)
            angle = (column, row)[half] / 10000 ** (frequency / quarter)
            assert math.isclose(value, (math.sin, math.cos)[wave](angle), abs_tol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 8, 4)], ids=["8 devices", "256 devices"])
def test_the_7b_train_step_lowers(shape):
    """The whole step on an abstract mesh of GPUs: one pack of 16,384 tokens a device group, bfloat16."""
    compute = ComputeConfig(dtype="bfloat16", remat="full")
    config = StepConfig(BAGEL_7B, compute, OptimizerConfig(), num_steps=10)
    mesh = AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Explicit,) * 3)
    state, shardings = abstract_state(config), state_shardings(config, mesh)
    state = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), state, shardings)
    rows = NamedSharding(mesh, RULES.spec("batch"))
    packs = pack_shapes(Budgets(text=4096, vit=4096, vae=8192), BAGEL_7B, rows=shape[0] * shape[1])
    packs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), packs)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jit_step(config).trace(state, packs, key).lower(lowering_platforms=("cuda",))
    assert f"mhlo.num_partitions = {math.prod(shape)} " in lowered.as_text()
    after, metrics = lowered.out_info
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()


def test_the_7b_state_is_split_over_256_devices():
    """fsdp 8, tensor 4: a device has a 32nd of the parameters, and replicated ones add less than a tenth of that."""
    boxed = bagel.abstract_params(BAGEL_7B)
    sizes = {"data": 8, "fsdp": 8, "tensor": 4, None: 1}

    def held(leaf, spec):
        assert all(dim % sizes[axis] == 0 for dim, axis in zip(leaf.shape, spec))
        return leaf.size // math.prod(sizes[axis] for axis in spec)

    values = sum(jax.tree.leaves(jax.tree.map(held, unbox(boxed), parameter_specs(boxed))))
    assert values < 1.1 * 14_607_260_128 / 32

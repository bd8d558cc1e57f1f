"""Adapters: a low-rank product is added to the kernel, gradients follow, and the other parameters stay frozen."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec

from pdgen.checkpoints.adapters.peft import write_adapter
from pdgen.config import BAGEL_7B
from pdgen.models import bagel
from pdgen.models.lora import attach, merge, merge_attached
from pdgen.sharding import RULES
from pdgen.train.lora import LoraConfig, declare_adapters, read_initial_adapters
from pdgen.train.state import combine_params, find_trained, make_state
from tests.support.small import CONFIG, shaken_params
from tests.train.cases import STEP, after_one_step, flat

LORA = LoraConfig(rank=2, alpha=6.0, kernels="language/layers/.*|connector/fc1/kernel")
CONFIG_LORA = dataclasses.replace(STEP, lora=LORA)
SCALE = 3.0
# Outputs and inputs of each adapted kernel as a matrix: 4 heads and 2 key/value heads of 8, width 32, ViT width 16.
MATRICES = {
    "q": (32, 32),
    "k": (16, 32),
    "v": (16, 32),
    "o": (32, 32),
    "up": (48, 32),
    "gate": (48, 32),
    "down": (32, 48),
    "fc1": (32, 16),
}


def list_adapted():
    return sorted({name.rpartition("/")[0] for name in find_trained(CONFIG_LORA)})


def as_matrix(name, leaf, part):
    """[L, out, in], [L, r, in] or [L, out, r] of a kernel's array, A or B."""
    out, inner = MATRICES[name.split("/")[-2]]
    layers = 2 if name.startswith("language") else 1
    return np.asarray(leaf, np.float64).reshape(
        {
            "kernel": (layers, out, inner),
            "a": (layers, 2, inner),
            "b": (layers, out, 2),
        }[part]
    )


def random_adapters():
    rng = np.random.default_rng(0)
    shapes = {
        n: leaf.shape
        for n, leaf in traverse_util.flatten_dict(declare_adapters(LORA, bagel.spec(CONFIG)), sep="/").items()
    }
    values = {name: 0.2 * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return traverse_util.unflatten_dict(values, sep="/")


def test_all_linear_kernels_of_both_experts_are_adapted():
    kinds = [f"attention/{kind}" for kind in "qkvo"] + [f"mlp/{kind}" for kind in ("up", "gate", "down")]
    layers = [f"language/layers/{expert}/{kind}/kernel" for expert in ("und", "gen") for kind in kinds]
    assert list_adapted() == sorted([*layers, "connector/fc1/kernel"])


def test_sizes_and_sharding_of_the_7b_adapters():
    """r (inputs + outputs) values per layer; A is sharded like the kernel's inputs, B like its outputs."""
    spec = traverse_util.flatten_dict(declare_adapters(LoraConfig(rank=16), bagel.spec(BAGEL_7B)), sep="/")
    width, mlp, keys = 3584, 18944, 512
    per_layer = 2 * (width + width) + 2 * (width + keys) + 3 * (width + mlp)
    assert sum(np.prod(leaf.shape) for leaf in spec.values()) == 2 * 28 * 16 * per_layer
    q, o = ("language/layers/gen/attention/" + name for name in ("q/kernel", "o/kernel"))
    assert RULES.spec(*spec[f"{q}/a"].names) == PartitionSpec(None, None, "fsdp")
    assert RULES.spec(*spec[f"{q}/b"].names) == PartitionSpec(None, "tensor", None, None)
    assert RULES.spec(*spec[f"{o}/a"].names) == PartitionSpec(None, None, "tensor", None)


def test_merging_adds_the_dense_product():
    params, adapters = shaken_params(), random_adapters()
    merged, before, given = flat(merge(params, adapters, SCALE)), flat(params), flat(adapters)
    changed = [name for name in before if not np.array_equal(merged[name], before[name])]
    assert sorted(changed) == list_adapted()
    for name in changed:
        product = as_matrix(name, given[f"{name}/b"], "b") @ as_matrix(name, given[f"{name}/a"], "a")
        expected = as_matrix(name, before[name], "kernel") + SCALE * product
        np.testing.assert_allclose(as_matrix(name, merged[name], "kernel"), expected, rtol=1e-5, atol=1e-6)
        assert np.linalg.matrix_rank(product[0]) == 2


def test_training_starts_at_the_model():
    """B is zero, A uniform in +-1 / sqrt(inputs)."""
    params = shaken_params()
    state = make_state(CONFIG_LORA, jax.tree.map(jnp.asarray, params), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, combine_params(CONFIG_LORA, state.trained, state.frozen), params)
    for name, leaf in flat(state.trained).items():
        bound = 1 / np.sqrt(MATRICES[name.split("/")[-3]][1])
        assert not leaf.any() if name.endswith("/b") else 0.7 * bound < np.abs(leaf).max() <= bound


@pytest.fixture(scope="module")
def stepped():
    """One step from nonzero adapters on a mesh, and one of the whole model at the same point."""
    params, adapters = shaken_params(), random_adapters()
    with jax.default_matmul_precision("highest"):
        dense = after_one_step(STEP, params=jax.tree.map(np.asarray, merge(params, adapters, SCALE)))
        return params, adapters, dense, after_one_step(CONFIG_LORA, (2, 2, 2), params, adapters)


@pytest.mark.slow
def test_gradients_are_those_of_the_dense_kernel_times_the_other_factor(stepped):
    """dA = scale B^T G, dB = scale G A^T, on a mesh of eight against one device."""
    _, adapters, dense, result = stepped
    np.testing.assert_allclose(result.metrics["loss"], dense.metrics["loss"], rtol=1e-5)
    factors = flat(adapters)
    for name in list_adapted():
        gradient = as_matrix(name, dense.gradients[name], "kernel")
        a, b = (as_matrix(name, factors[f"{name}/{part}"], part) for part in "ab")
        for part, expected in (("a", b.transpose(0, 2, 1) @ gradient), ("b", gradient @ a.transpose(0, 2, 1))):
            found = as_matrix(name, result.gradients[f"{name}/{part}"], part)
            np.testing.assert_allclose(found, SCALE * expected, rtol=0, atol=2e-5 * np.abs(SCALE * expected).max())


def test_a_step_changes_only_the_adapters(stepped):
    params, adapters, _, result = stepped
    jax.tree.map(np.testing.assert_array_equal, result.state.frozen, params)
    assert set(result.updated) == set(flat(adapters)) == set(flat(result.state.opt_state[1].nu))
    for name, leaf in flat(adapters).items():
        assert np.abs(result.updated[name] - leaf).max() > 0.5 * STEP.optimizer.learning_rate, name


def test_a_model_on_a_mesh_is_merged(stepped):
    params, _, _, result = stepped
    whole = jax.jit(functools.partial(combine_params, CONFIG_LORA))(result.state.trained, result.state.frozen)
    expected = merge(params, jax.tree.map(np.asarray, result.state.trained), SCALE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), whole, expected)


def test_a_base_in_bfloat16_stays_so_and_its_adapters_are_float32():
    compute = dataclasses.replace(STEP.compute, dtype="bfloat16", param_dtype="bfloat16")
    config = dataclasses.replace(CONFIG_LORA, compute=compute)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), shaken_params())
    state = make_state(config, params, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trained)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {jnp.dtype("bfloat16")}
    whole = combine_params(config, state.trained, state.frozen)
    assert {leaf.dtype for leaf in jax.tree.leaves(whole)} == {jnp.dtype("bfloat16")}


def test_faults():
    with pytest.raises(ValueError, match=r"lora.kernels 'languag/.\*' matches no linear kernel; there are: language"):
        declare_adapters(LoraConfig(rank=2, kernels="languag/.*"), bagel.spec(CONFIG))
    with pytest.raises(ValueError, match=r"rank -1 and alpha 16.0"):
        LoraConfig(rank=-1)
    with pytest.raises(ValueError, match=r"lora.kernels '\*' is no regular expression"):
        LoraConfig(kernels="*")
    half = dataclasses.replace(STEP.optimizer, factors=((".*/a", 0.0), (".*/b", 1.0)))
    with pytest.raises(ValueError, match=r"optimizer.factors freeze an adapter; narrow lora.kernels instead"):
        find_trained(dataclasses.replace(CONFIG_LORA, optimizer=half))


def test_layers_merge_their_own_adapters():
    """A layer's slice of ``attach``'s tree becomes the same slice of ``merge``'s; other kernels are merged at once."""
    params, adapters = shaken_params(), random_adapters()
    merged, attached = merge(params, adapters, SCALE), attach(params, adapters, SCALE)
    np.testing.assert_array_equal(attached["connector"]["fc1"]["kernel"], merged["connector"]["fc1"]["kernel"])
    assert "adapter" in attached["language"]["layers"]["gen"]["mlp"]["up"]
    for layer in range(2):
        own, expected = (
            jax.tree.map(operator.itemgetter(layer), tree["language"]["layers"]) for tree in (attached, merged)
        )
        own = merge_attached(own)
        assert jax.tree.structure(own) == jax.tree.structure(expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), own, expected)


PEFT_LORA = LoraConfig(rank=2, alpha=8.0, kernels="language/layers/.*/attention/[qo]/kernel")
ATTENTION = "language_model.model.layers.{}.self_attn.{}.weight"


def write_peft(folder, modules, rank=2, alpha=6.0):
    """Write an adapter of the small model: A and B of every module, by their shapes (width 32, 4 heads of 8)."""
    rng = np.random.default_rng(1)
    factors = [
        (name, *(rng.normal(size=shape).astype(np.float32) for shape in ((rank, 32), (32, rank)))) for name in modules
    ]
    write_adapter(folder, factors, rank, alpha, log=lambda line: None)
    return {name: (a, b) for name, a, b in factors}


def test_a_run_starts_from_a_peft_adapter(tmp_path):
    """The run's own scale is another one, but W + scale * B A is PEFT's: W + alpha / r * B A."""
    given = write_peft(tmp_path / "adapter", [ATTENTION.format(layer, "q_proj_moe_gen") for layer in range(2)])
    lora = dataclasses.replace(PEFT_LORA, init=str(tmp_path / "adapter"))
    config, params = dataclasses.replace(STEP, lora=lora), jax.tree.map(jnp.asarray, shaken_params())
    adapters = read_initial_adapters(lora, CONFIG)
    assert sorted(adapters) == [f"language/layers/gen/attention/q/kernel/{factor}" for factor in "ab"]
    state = make_state(config, params, jax.random.key(0), adapters)
    whole, before = (flat(tree) for tree in (combine_params(config, state.trained, state.frozen), params))
    changed = [name for name in before if not np.array_equal(whole[name], before[name])]
    assert changed == ["language/layers/gen/attention/q/kernel"]
    for layer in range(2):
        a, b = given[ATTENTION.format(layer, "q_proj_moe_gen")]
        expected = before[changed[0]][layer].reshape(32, 32) + 3.0 * b @ a
        np.testing.assert_allclose(whole[changed[0]][layer].reshape(32, 32), expected, rtol=1e-5, atol=1e-5)


def test_peft_adapters_that_a_run_cannot_start_from(tmp_path):
    def refuse(line, modules, lora=PEFT_LORA, **changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_peft(folder, modules, **changes)
        with pytest.raises(ValueError, match=line) as fault:
            read_initial_adapters(dataclasses.replace(lora, init=str(folder)), CONFIG)
        assert len(str(fault.value)) < 400

    q = [ATTENTION.format(layer, "q_proj") for layer in range(2)]
    refuse("has rank 3 at language/layers/und/attention/q/kernel, but lora.rank is 2", q, rank=3)
    refuse(
        r"adapts language/layers/und/attention/q/kernel, which lora.kernels '.*/o/kernel' does not match",
        q,
        dataclasses.replace(PEFT_LORA, kernels=".*/o/kernel"),
    )
    refuse("adapts 1 of 2 layers of language/layers/und/attention/q/kernel, but training adapts all", q[:1])
    refuse("1 of 1|2 of 2 tensors fit no linear kernel", [ATTENTION.format(2, "q_proj")])
    with pytest.raises(ValueError, match=r"lora.init is x, but lora.rank is 0"):
        LoraConfig(init="x")

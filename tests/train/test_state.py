"""Trained and frozen parameters, dtypes of moments and averages, and memory that is reused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.extend import core

from pdgen.models import bagel
from pdgen.train.state import abstract_state, combine_params, find_trained
from pdgen.train.step import train_step
from tests.support.small import CONFIG, shaken_params
from tests.train.cases import KEY, OPTIMIZER, STEP, after_one_step, flat, make_batch

# Only the generation expert is trained, at half the learning rate; its norms at the full rate.
FACTORS = (
    ("language/(layers|norm)/gen/.*(?<!norm)/(kernel|bias)", 0.5),
    ("language/(layers|norm)/gen.*/scale", 1.0),
    ("(?!language/(layers|norm)/gen/).*", 0.0),
)
PARTLY = dataclasses.replace(
    STEP,
    optimizer=dataclasses.replace(
        OPTIMIZER, factors=FACTORS, ema_decay=0.75, ema_dtype="bfloat16", mu_dtype="bfloat16", nu_dtype="bfloat16"
    ),
)


def with_factors(*factors):
    return dataclasses.replace(STEP, optimizer=dataclasses.replace(OPTIMIZER, factors=factors))


@pytest.fixture(scope="module", autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def everything():
    """A step that trains all parameters."""
    return after_one_step(STEP)


@pytest.fixture(scope="module")
def part():
    """A step that trains a part of the parameters, on a mesh of eight devices."""
    return after_one_step(PARTLY, (2, 2, 2))


def test_everything_but_the_fixed_tables_is_trained_by_default():
    names = set(traverse_util.flatten_dict(bagel.spec(CONFIG), sep="/"))
    fixed = {f"{table}/table" for table in bagel.FIXED_TABLES}
    assert find_trained(STEP) == dict.fromkeys(names - fixed, 1.0)
    assert set(traverse_util.flatten_dict(abstract_state(STEP).frozen, sep="/")) == fixed


@pytest.mark.slow
def test_frozen_parameters_have_no_gradient_moments_or_average(part, everything):
    names = {name for name in everything.gradients if name.startswith(("language/layers/gen/", "language/norm/gen/"))}
    state = part.state
    for tree in (state.trained, state.ema, state.opt_state[1].mu, state.opt_state[1].nu):
        assert set(flat(tree)) == names
    params = flat(shaken_params())
    frozen = flat(state.frozen)
    assert set(frozen) == set(params) - names
    for name, leaf in frozen.items():
        np.testing.assert_array_equal(leaf, params[name])


def test_trained_parameters_have_the_same_gradient_and_a_scaled_update(part, everything):
    """Gradients to the precision of bfloat16 moments; the norm is that of the trained part."""
    params = flat(shaken_params())
    squares = 0.0
    for name, gradient in part.gradients.items():
        expected = everything.gradients[name]
        squares += np.sum(np.square(expected, dtype=np.float64))
        np.testing.assert_allclose(gradient, expected, rtol=2**-8, atol=1e-5 * np.abs(expected).max(), err_msg=name)
        factor = 1.0 if name.endswith("scale") else 0.5
        moved, whole = part.updated[name] - params[name], everything.updated[name] - params[name]
        large = np.abs(expected) > 1e-4
        np.testing.assert_allclose(moved[large], factor * whole[large], rtol=0.01, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(part.metrics["grad_norm"], np.sqrt(squares), rtol=1e-5)
    np.testing.assert_allclose(part.metrics["loss"], everything.metrics["loss"], rtol=1e-5)


def test_moments_and_average_are_kept_in_their_dtypes(part):
    """The average: three quarters of the first parameters, a quarter of the updated ones."""
    state, params = part.state, flat(shaken_params())
    for tree in (state.ema, state.opt_state[1].mu, state.opt_state[1].nu):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("bfloat16")}
    for name, average in flat(state.ema).items():
        first = np.float32(jnp.bfloat16(params[name]))
        expected = 0.75 * first + 0.25 * part.updated[name]
        np.testing.assert_allclose(np.float32(average), expected, rtol=2**-7, atol=1e-6)


def test_combining_with_trained_parameters_or_their_average(part):
    for trained in (part.state.trained, part.state.ema):
        whole = flat(combine_params(PARTLY, trained, part.state.frozen))
        assert whole.keys() == flat(shaken_params()).keys()
        for name, leaf in (flat(trained) | flat(part.state.frozen)).items():
            np.testing.assert_array_equal(whole[name], leaf)


def list_equations(jaxpr):
    """Yield all equations of a jaxpr and of its inner jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from list_equations(inner)


def count_matrix_products(*factors):
    """Count the matrix products in the program of a step."""
    config = with_factors(*factors)
    inputs = abstract_state(config), make_batch(), jax.random.key(KEY)
    program = jax.make_jaxpr(functools.partial(train_step, config))(*inputs)
    return sum(equation.primitive.name == "dot_general" for equation in list_equations(program.jaxpr))


def test_frozen_parts_cost_no_backward_pass():
    """A frozen ViT, and a frozen connector as well, have no product in the backward pass."""
    whole = count_matrix_products((".*", 1.0))
    frozen = count_matrix_products(("vision/.*", 0.0), ("(?!vision/).*", 1.0))
    also_connector = count_matrix_products(("(vision|connector)/.*", 0.0), ("(?!vision/|connector/).*", 1.0))
    # The ViT has patch embedding (without a gradient of its input), q, k, v, o, fc1 and fc2, besides attention. The
    # connector has two products; the first needs no gradient of its input if the ViT is frozen.
    assert whole - frozen >= 13 + 1
    assert frozen - also_connector == 3


def test_the_next_state_reuses_the_memory_of_the_last(everything, part):
    """Parameters, moments and averages, on one device and on eight."""
    for result, devices in ((everything, 1), (part, 8)):
        leaves = jax.tree.leaves(result.state)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        aliased = result.program.memory_analysis().alias_size_in_bytes
        assert aliased >= held, (devices, aliased, held)


def test_bfloat16_compute_with_float32_parameters(everything):
    """The loss agrees to a few times 2^-8; gradients and parameters are float32."""
    compute = dataclasses.replace(STEP.compute, dtype="bfloat16")
    result = after_one_step(dataclasses.replace(STEP, compute=compute))
    np.testing.assert_allclose(result.metrics["loss"], everything.metrics["loss"], rtol=0.02)
    assert result.metrics["loss"] != everything.metrics["loss"]
    state = result.state
    for tree in (state.trained, state.frozen, state.opt_state[1].mu, state.opt_state[1].nu):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    for name, gradient in everything.gradients.items():
        a, b = result.gradients[name].ravel(), gradient.ravel()
        if np.linalg.norm(b) > 1e-3 * everything.metrics["grad_norm"]:
            assert np.dot(a, b) > 0.98 * np.linalg.norm(a) * np.linalg.norm(b), name


def test_faults():
    with pytest.raises(
        ValueError, match=r"by no rule \(35\): vision/patch_embedding/kernel, .*; rules without a match \(1\)"
    ):
        find_trained(with_factors(("vi", 0.0), ("language/.*", 1.0)))
    with pytest.raises(ValueError, match=r"optimizer.factors freeze every parameter"):
        find_trained(with_factors((".*", 0.0)))
    with pytest.raises(ValueError, match=r"optimizer.factors freeze every parameter"):
        find_trained(with_factors((".*/table", 1.0), ("(?!.*/table).*", 0.0)))

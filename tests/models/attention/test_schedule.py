"""Schedules in the model: made once a step, the same numbers by every backend."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.extend import core

from pdgen.models.attention import BACKENDS
from pdgen.train.state import abstract_state
from pdgen.train.step import train_step
from tests.train.cases import KEY, STEP, after_one_step, make_batch


def with_compute(**settings):
    return dataclasses.replace(STEP, compute=dataclasses.replace(STEP.compute, **settings))


def count_sorts(jaxpr, inside=False):
    """Numbers of sorts outside and inside of loops; a list of tiles is sorted once."""
    outer = inner = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "sort":
            outer, inner = outer + (not inside), inner + inside
        deeper = inside or equation.primitive.name in ("scan", "while")
        for nested in core.jaxprs_in_params(equation.params):
            more = count_sorts(nested, deeper)
            outer, inner = outer + more[0], inner + more[1]
    return outer, inner


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_layer_makes_a_list(backend):
    """The layers of both encoders, and their repetition in the backward pass, are loops."""
    config = with_compute(backend=backend, remat="full")
    inputs = abstract_state(config), make_batch(), jax.random.key(KEY)
    outer, inner = count_sorts(jax.make_jaxpr(functools.partial(train_step, config))(*inputs).jaxpr)
    assert outer > 0 and inner == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "tpu"])
def test_a_training_step_by_kernels_on_a_mesh(backend):
    """Loss and gradients are those of the XLA backend on one device; rows and heads are split."""
    expected = after_one_step(STEP)
    actual = after_one_step(with_compute(backend=backend, remat="full"), (1, 2, 2))
    np.testing.assert_allclose(actual.metrics["loss"], expected.metrics["loss"], rtol=1e-5)
    for name, gradient in expected.gradients.items():
        scale = max(1e-3, np.abs(gradient).max())
        np.testing.assert_allclose(actual.gradients[name], gradient, atol=1e-4 * scale, rtol=0, err_msg=name)

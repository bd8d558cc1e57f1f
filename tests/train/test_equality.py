"""The same batch gives the same step on every mesh, in one process or two, and however it is accumulated."""

import dataclasses
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.train.cases import OPTIMIZER, STEP, after_one_step

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def reference():
    """One device, no mesh, the whole batch at once."""
    return after_one_step(STEP)


def assert_same(result, expected):
    """1e-5 of each metric and of each gradient's largest value; each parameter with a gradient to speak of."""
    (metrics, gradients, updated), (expected_metrics, expected_gradients, expected_updated) = result[:3], expected[:3]
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert gradients.keys() == updated.keys() == expected_gradients.keys()
    floor = 1e-7 * expected_metrics["grad_norm"]
    for name, gradient in expected_gradients.items():
        error, bound = np.abs(gradients[name] - gradient).max(), 1e-5 * np.abs(gradient).max() + floor
        assert error <= bound, f"{name}: {error:.1e} > {bound:.1e}"
        large = np.abs(gradient) > 1e-6
        np.testing.assert_allclose(
            updated[name][large],
            expected_updated[name][large],
            rtol=1e-5,
            atol=1e-3 * OPTIMIZER.learning_rate,
            err_msg=name,
        )


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 8, 1)], ids=str)
def test_every_mesh(mesh, reference):
    assert_same(after_one_step(STEP, mesh), reference)


@pytest.mark.parametrize("mesh, accumulate", [((1, 1, 1), 4), ((2, 2, 2), 2)], ids=str)
def test_accumulation(mesh, accumulate, reference):
    """Normalised by the whole batch's targets, of which the micro-batches have different numbers."""
    assert_same(after_one_step(dataclasses.replace(STEP, accumulate=accumulate), mesh), reference)


def test_two_processes(reference, tmp_path):
    """Four devices each, parameters split over both, two micro-batches; they barrier on localhost."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.one_of_two", str(number), port, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    for number in range(2):
        parts = [dict(np.load(tmp_path / f"{number}.{part}.npz")) for part in ("metrics", "gradients", "updated")]
        assert_same(parts, reference)

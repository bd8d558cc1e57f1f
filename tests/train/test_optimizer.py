"""The learning rate's closed form, clipping, and one Adam step by hand."""

import math

import numpy as np
import pytest

from pdgen.train.optimizer import OptimizerConfig, learning_rate, make_optimizer


def test_warm_up_and_cosine():
    """Linear from 0 to the peak at the end of the warm-up, then half a cosine to a tenth of it."""
    rate = learning_rate(OptimizerConfig(learning_rate=1e-3, warmup_steps=10), num_steps=110)
    for step in (0, 1, 5, 10, 35, 60, 110, 200):
        progress = min(1, max(0, step - 10) / 100)
        expected = 1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2) if step >= 10 else 1e-4 * step
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5, atol=1e-12)


def test_constant():
    rate = learning_rate(OptimizerConfig(learning_rate=1e-3, warmup_steps=4, schedule="constant"), num_steps=100)
    np.testing.assert_allclose([rate(step) for step in (0, 2, 4, 99)], [0, 5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize(
    "config, message",
    [
        (OptimizerConfig(schedule="linear"), "optimizer.schedule='linear' is unknown; choose cosine or constant"),
        (OptimizerConfig(warmup_steps=10), "optimizer.warmup_steps=10 must be below num_steps=10"),
    ],
)
def test_faults(config, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(config, num_steps=10)


def test_two_adam_steps_with_clipping():
    """Adam's formula on the gradient scaled to norm 1; no weight decay."""
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", clip_norm=1.0, eps=1e-8)
    optimizer = make_optimizer(config, 10, {"w": 1.0})
    params = {"w": np.array([5.0, -7.0], np.float32)}
    state, m, v = optimizer.init(params), 0, 0
    for step, gradient in enumerate(([3.0, 4.0], [0.3, 0.4]), start=1):
        gradient = np.array(gradient, np.float32)
        update, state = optimizer.update({"w": gradient}, state, params)
        clipped = gradient / max(1, np.linalg.norm(gradient))
        m, v = config.b1 * m + (1 - config.b1) * clipped, config.b2 * v + (1 - config.b2) * clipped**2
        corrected = m / (1 - config.b1**step), v / (1 - config.b2**step)
        np.testing.assert_allclose(update["w"], -0.1 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8), rtol=1e-5)

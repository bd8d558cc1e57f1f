"""The learning rate's closed form, clipping, factors by name, and Adam's steps by hand."""

import math

import numpy as np
import pytest

from pdgen.models.parameters import linear, norm, stack_layers
from pdgen.train.optimizer import MUON_RMS, OptimizerConfig, make_optimizer, make_schedule, match_factors


def test_warm_up_and_cosine():
    """Linear from 0 to the peak at the end of the warm-up, then half a cosine to a tenth of it."""
    rate = make_schedule(OptimizerConfig(learning_rate=1e-3, warmup_steps=10), num_steps=110)
    for step in (0, 1, 5, 10, 35, 60, 110, 200):
        progress = min(1, max(0, step - 10) / 100)
        expected = 1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2) if step >= 10 else 1e-4 * step
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5, atol=1e-12)


def test_a_cosine_that_ends_before_the_run():
    """The learning rates of a shorter run, then its last one."""
    short = make_schedule(OptimizerConfig(learning_rate=1e-3, warmup_steps=10), num_steps=110)
    longer = make_schedule(OptimizerConfig(learning_rate=1e-3, warmup_steps=10, decay_steps=110), num_steps=200)
    assert [longer(step) for step in range(0, 200, 7)] == [short(step) for step in range(0, 200, 7)]
    np.testing.assert_allclose(longer(199), 1e-4, rtol=1e-6)


def test_constant():
    rate = make_schedule(OptimizerConfig(learning_rate=1e-3, warmup_steps=4, schedule="constant"), num_steps=100)
    np.testing.assert_allclose([rate(step) for step in (0, 2, 4, 99)], [0, 5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize(
    "config, message",
    [
        (OptimizerConfig(schedule="linear"), "optimizer.schedule='linear' is unknown; choose cosine or constant"),
        (OptimizerConfig(warmup_steps=10), "optimizer.warmup_steps=10 must be below num_steps=10"),
        (
            OptimizerConfig(warmup_steps=5, decay_steps=5),
            "optimizer.warmup_steps=5 must be below optimizer.decay_steps=5",
        ),
    ],
)
def test_faults(config, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(config, num_steps=10)


def test_two_adam_steps_with_clipping():
    """Adam's formula on the gradient scaled to norm 1; no weight decay."""
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", clip_norm=1.0, eps=1e-8)
    optimizer = make_optimizer(config, 10, {"w": 1.0}, {})
    params = {"w": np.array([5.0, -7.0], np.float32)}
    state, m, v = optimizer.init(params), 0, 0
    for step, gradient in enumerate(([3.0, 4.0], [0.3, 0.4]), start=1):
        gradient = np.array(gradient, np.float32)
        update, state = optimizer.update({"w": gradient}, state, params)
        clipped = gradient / max(1, np.linalg.norm(gradient))
        m, v = config.b1 * m + (1 - config.b1) * clipped, config.b2 * v + (1 - config.b2) * clipped**2
        corrected = m / (1 - config.b1**step), v / (1 - config.b2**step)
        np.testing.assert_allclose(update["w"], -0.1 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8), rtol=1e-5)


def test_muon_makes_the_updates_of_each_layer_s_matrices_orthogonal():
    """In exact arithmetic U V^T of the gradient's SVD, times 0.2 sqrt(longer side); Newton-Schulz approximates it.

    Nesterov's momentum of a first gradient is a multiple of it, so the singular vectors are the gradient's.
    """
    spec = stack_layers({"map": linear((4, 3), (8,), (None, None), (None,), bias=True), "scale": norm(8)}, 2)
    leaves = {"a/kernel": spec["map"]["kernel"], "a/bias": spec["map"]["bias"], "a/scale": spec["scale"]["scale"]}
    config = OptimizerConfig(name="muon", learning_rate=0.1, schedule="constant", clip_norm=1e9, eps=1e-8)
    optimizer = make_optimizer(config, 10, {"a/kernel": 1.0, "a/bias": 1.0, "a/scale": 0.5}, leaves)
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 4, 3, 8), "bias": (2, 4, 3), "scale": (2, 8)}
    gradients = {"a": {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}}
    params = {"a": {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}
    updates = optimizer.update(gradients, optimizer.init(params), params)[0]["a"]
    for update, gradient in zip(updates["kernel"], gradients["a"]["kernel"]):
        u, _, vh = np.linalg.svd(gradient.reshape(12, 8), full_matrices=False)
        near = np.diag(u.T @ np.asarray(update).reshape(12, 8) @ vh.T) / (-0.1 * MUON_RMS * 12**0.5)
        assert np.all((near > 0.6) & (near < 1.3)), near
        same_vectors = u @ np.diag(near) @ vh * (-0.1 * MUON_RMS * 12**0.5)
        np.testing.assert_allclose(same_vectors, np.asarray(update).reshape(12, 8), atol=1e-5)
    for name, factor in (("bias", 1.0), ("scale", 0.5)):
        signs = np.asarray(updates[name]) / -np.sign(gradients["a"][name]) / (0.1 * factor)
        np.testing.assert_allclose(signs, signs.flat[0], rtol=1e-4)  # Adam's first step has one size


def test_each_name_takes_the_factor_of_its_one_rule():
    names = ["vision/layers/kernel", "language/embed", "language/head"]
    rules = [("vision/.*", 0.0), ("language/(?!head).*", 0.1), (".*head", 1.0)]
    assert match_factors(rules, names) == dict(zip(names, (0.0, 0.1, 1.0)))


def test_all_faults_of_the_rules_are_listed_in_one_line():
    """Rules must match fully: "language" alone matches none of its parameters."""
    with pytest.raises(ValueError) as fault:
        match_factors([("v/.*", 0.0), (".*/b", 1.0), ("language", 1.0)], ["v/a", "v/b", "language/a", "language/c"])
    assert str(fault.value) == (
        "optimizer.factors must match every parameter exactly once, from end to end; "
        "matched by no rule (2): language/a, language/c; matched more than once (1): v/b (by 'v/.*' and '.*/b'); "
        "rules without a match (1): 'language'"
    )


def test_factors_scale_the_step_after_clipping_them_all_together():
    """Adam's first step is the sign of the gradient: the norm is taken over both."""
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", clip_norm=1.0, eps=1.0)
    optimizer = make_optimizer(config, 10, {"x/a": 1.0, "x/b": 0.25}, {})
    params = {"x": {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}}
    gradients = {"x": {"a": np.float32([2, 4]), "b": np.float32([4])}}  # norm 6
    updates = optimizer.update(gradients, optimizer.init(params), params)[0]["x"]
    np.testing.assert_allclose(updates["a"], [-0.1 * (1 / 3) / (1 / 3 + 1), -0.1 * (2 / 3) / (2 / 3 + 1)], rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [-0.025 * (2 / 3) / (2 / 3 + 1)], rtol=1e-5)


def test_moments_are_kept_in_the_dtypes_of_the_config():
    """bfloat16 moments give the same updates to a few times 2^-8."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(20, 50)).astype(np.float32)
    params, updates = {"w": np.zeros(50, np.float32)}, {}
    for dtype in ("float32", "bfloat16"):
        config = OptimizerConfig(mu_dtype=dtype, nu_dtype=dtype, schedule="constant")
        optimizer = make_optimizer(config, 20, {"w": 1.0}, {})
        state = optimizer.init(params)
        for gradient in gradients:
            update, state = optimizer.update({"w": gradient}, state, params)
        assert state[1].mu["w"].dtype == state[1].nu["w"].dtype == dtype
        updates[dtype] = np.asarray(update["w"]) / config.learning_rate
    error = np.abs(updates["bfloat16"] - updates["float32"])
    assert 0 < error.max() < 0.03


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0, expected at least 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0, expected more than 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0, expected at least 0 and below 1"),
        ({"nu_dtype": "bfloat16", "b2": 0.999}, "nu_dtype bfloat16 rounds away what b2 0.999 changes; use float32"),
        ({"name": "muon", "mu_dtype": "bfloat16"}, "mu_dtype is bfloat16, but Muon keeps float32; leave it out"),
        ({"factors": ((".*", -0.5),)}, "factors: '.\\*' has -0.5, expected at least 0"),
        ({"factors": (("(", 1.0),)}, "factors: '\\(' is no regular expression"),
    ],
)
def test_values_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**change)

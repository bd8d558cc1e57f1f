"""Measures that compare int8 with floats, against closed forms, and a run on the golden folder."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import quantized
from pdgen.checkpoints.conversion import to_pdgen
from tests.checkpoints.folders import GOLDEN


def test_logits_are_compared_up_to_a_constant_and_without_padding():
    """Probabilities of 3/4 and 1/4 beside 1/2 and 1/2; a constant does not change a softmax."""
    first = np.log([[[0.75, 0.25], [0.5, 0.5]], [[0.5, 0.5], [0.9, 0.1]]]).astype(np.float32)
    second = np.log([[[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [0.1, 0.9]]]).astype(np.float32) + 3
    second[0, 0] -= [0, 0.001]  # so that the first token is the likelier one in both
    first[1, 0] += [0.001, 0]
    second[1, 0] += [0.001, 0]
    found = quantized.compare_logits(jnp.asarray(first), jnp.asarray(second), jnp.asarray([1, 1]))
    divergence = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert found["divergence"]["value"] == pytest.approx(divergence / 2, rel=0.01)
    assert found["relative error"]["value"] == pytest.approx(0.5, rel=0.01)  # all of the first prompt's, none beside
    assert found["same likeliest token"]["value"] == 1.0
    assert found["divergence"]["n"] == 2


@pytest.mark.slow
def test_every_part_runs_on_the_golden_folder(tmp_path):
    to_pdgen(GOLDEN, tmp_path / "floats", log=lambda line: None)
    options = quantized.Options(str(tmp_path / "floats"), None, tmp_path / "out", 2, 4, 1, 8, [], scores=False)
    result = quantized.measure(options)
    assert result["bytes"] == {"float": 4_014_892, "int8": 3_144_492}
    assert 0 < result["logits"]["relative error"]["value"] < 0.1
    assert len(result["velocity"]) == quantized.POINTS
    for one in result["velocity"].values():
        assert 0 < one["low"] <= one["value"] <= one["high"] < 0.2

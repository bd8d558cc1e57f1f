"""The table of a learned verifier against numbers by hand."""

import numpy as np
import pytest

from pdgen.data.records import Origin, write_dataset
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.verifier import compute_calibration_error, judge_estimates, make_verifier_table
from pdgen.sample.strategies.verifier import make_verdict_record
from tests.data.small_records import records

PICTURE = np.zeros((64, 64, 3), np.uint8)


class Known:
    """A verifier with a probability for each prompt."""

    name = "known"

    def score(self, prompt, picture):
        assert picture.shape == PICTURE.shape
        return {"a": 0.9, "b": 0.8, "c": 0.3}[prompt]


def test_calibration_by_hand():
    """Bins [0.2, 0.3) with 2 pictures of mean 0.25, none right; [0.9, 1] with 2 of mean 0.95, one right."""
    assert compute_calibration_error([0.2, 0.3 - 1e-9, 0.9, 1.0], [False, False, True, False]) == pytest.approx(
        (2 * 0.25 + 2 * 0.45) / 4
    )


def test_accuracies_by_share_of_the_steps(tmp_path):
    """After half the steps the learned one is right of a and c, the exact one of b alone."""
    facts = [("a", 0.5, True, 0.5), ("b", 0.5, False, 0.5), ("c", 0.5, False, 1.0), ("a", 1.0, True, 1.0)]
    made = [
        make_verdict_record(f"{prompt}{share}", prompt, PICTURE, right, {"prompt": prompt, "share": share, "exact": e})
        for prompt, share, right, e in facts
    ]
    write_dataset(tmp_path / "set", made, Origin(seed=0))
    table = make_verifier_table(judge_estimates(Known(), [tmp_path / "set"]))
    rows = [dict(zip(table.columns, row)) for row in table.rows]
    assert [row["steps done"] for row in rows] == [0.5, 1.0]
    assert [row["pictures"] for row in rows] == [3, 1]
    np.testing.assert_allclose([row["learned"] for row in rows], [2 / 3, 1])
    np.testing.assert_allclose([row["exact"] for row in rows], [1 / 3, 1])
    np.testing.assert_allclose([row["right"] for row in rows], [1 / 3, 1])
    np.testing.assert_allclose([row["calibration error"] for row in rows], [(0.1 + 0.8 + 0.3) / 3, 0.1], rtol=1e-6)


def test_other_data_are_refused_in_one_line(tmp_path):
    write_dataset(tmp_path / "set", records(2), Origin(seed=0))
    with pytest.raises(EvaluationError, match="is no question about an estimate; name data of mode estimates"):
        judge_estimates(Known(), [tmp_path / "set"])

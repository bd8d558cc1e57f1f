"""Data sets of other writers: parquet files, tar archives, JSON lines with their pictures."""

import pytest

from pdgen.sequence.trajectory_folder import save_trajectory
from pdgen.synthesis.importers import FORMATS, import_dataset
from tests.robustness.calls import survey
from tests.robustness.mutations import mutate
from tests.synthesis.importers.test_import_dataset import good
from tests.synthesis.importers.test_preferences import PLAN, trajectory

pytestmark = pytest.mark.slow  # hundreds of damaged copies


@pytest.mark.parametrize("name", ["bagel_t2i", "bagel_edit", "zebra_cot", "genref", "folder"])
def test_importers(tmp_path, capfd, name):
    file = good(name, tmp_path / "source")
    survey(file, mutate(file.read_bytes(), 81), lambda: list(FORMATS[name](file)), capfd)


def test_scores_of_preferences(tmp_path, capfd):
    for number in range(2):
        save_trajectory(tmp_path / f"{number}", trajectory(PLAN, number))
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(f'{{"trajectory": "{number}", "score": {number}.5}}\n' for number in range(2)))
    survey(file, mutate(file.read_bytes(), 83, 100), lambda: list(FORMATS["preferences"](tmp_path)), capfd)


def test_a_failed_import_leaves_nothing(tmp_path, capfd):
    file = good("folder", tmp_path / "source")
    target, counter = tmp_path / "data", iter(range(10**6))

    def read():
        import_dataset("folder", file, target / str(next(counter)))

    survey(file, mutate(file.read_bytes(), 82, 60), read, capfd)
    assert not [path for path in target.iterdir() if path.name.startswith(".")]

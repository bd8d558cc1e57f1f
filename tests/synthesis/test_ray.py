"""Shards on Ray, on a real cluster of one machine."""

import sys

import pytest

from pdgen.synthesis import build, runners
from tests.data import shards
from tests.synthesis.test_build import content


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_and_reports_faults_alike(tmp_path):
    shards.main(tmp_path / "here", "here")
    shards.main(tmp_path / "ray", "ray")
    assert content(tmp_path / "ray") == content(tmp_path / "here")
    with pytest.raises(build.BuildError, match="one-00000: no luck"):
        list(runners.run_on_ray(shards.fail, shards.SHARDS[:1]))


def test_a_missing_ray_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(runners.RunnerError, match=r"pip install 'pdgen\[cluster\]'"):
        list(runners.run_on_ray(len, [[]]))

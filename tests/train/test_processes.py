"""Which devices a run on a CPU makes of its cores."""

import dataclasses

import jax
import pytest

from pdgen.interleave.layout import Budgets
from pdgen.train import processes
from pdgen.train.run_config import RunConfig

RUN = RunConfig(data="", num_steps=1, rows=2, budgets=Budgets(1, 1, 1))


@pytest.fixture
def asked(monkeypatch):
    """What is asked of JAX on a machine of four cores; nothing is changed."""
    values = {}
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(jax.config, "update", values.__setitem__)
    return values


@pytest.mark.parametrize(
    "change, count",
    [
        ({"rows": 1}, 1),
        ({"rows": 2}, 2),
        ({"rows": 3}, 3),
        ({"rows": 4}, 4),
        ({"rows": 6}, 3),
        ({"rows": 4, "accumulate": 2}, 2),
        ({"rows": 4, "mesh": (2, -1, 1)}, 4),
        ({"rows": 2, "mesh": (1, -1, 2)}, 4),
    ],
)
def test_as_many_devices_as_divide_the_rows(asked, change, count):
    processes.use_cores(dataclasses.replace(RUN, **change))
    assert asked == {"jax_num_cpu_devices": count}


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 2, -1)])
def test_a_mesh_that_leaves_no_choice_of_rows_stays(asked, mesh):
    processes.use_cores(dataclasses.replace(RUN, mesh=mesh))
    assert not asked


def test_the_environment_has_precedence(asked, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    processes.use_cores(RUN)
    assert not asked

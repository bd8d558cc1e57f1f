"""Meshes and logical axes: their mapping and refusals."""

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from pdgen.models import bagel
from pdgen.sharding import (
    MESH_AXES,
    RULES,
    ShardingError,
    has_mesh,
    make_mesh,
    out_spec,
    parameter_specs,
    read_available_bytes,
)
from tests.support.small import CONFIG


def test_specs():
    assert RULES.spec("batch", None, "mlp") == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert RULES.spec("heads", None, "embed") == PartitionSpec("tensor", None, "fsdp")


def test_unknown_axis():
    with pytest.raises(ShardingError, match="logical axis 'width' is unknown; known: batch, embed, heads"):
        RULES.spec("batch", "width")


def test_mesh_axis_used_twice():
    with pytest.raises(ShardingError, match=r"use a mesh axis twice: .*'fsdp'"):
        RULES.spec("batch", "embed")


def test_mesh_of_another_size():
    with pytest.raises(ShardingError, match=r"mesh \(2, 2, 3\) \(data, fsdp, tensor\) needs 12 devices, there are 8"):
        make_mesh((2, 2, 3))


def test_a_mesh_has_all_axes_and_is_explicit():
    mesh = make_mesh((1, 8, 1))
    assert mesh.axis_names == MESH_AXES
    assert set(mesh.axis_types) == {AxisType.Explicit}


def test_without_a_mesh_there_are_no_constraints():
    assert not has_mesh() and out_spec("batch", None) is None
    with jax.set_mesh(make_mesh((2, 2, 2))):
        assert has_mesh() and out_spec("batch", None) == RULES.spec("batch", None)
    assert not has_mesh()


def test_parameters_are_split_where_they_are_large():
    """By width over fsdp and by heads, mlp or vocabulary over tensor; layers, norms and fixed tables whole."""
    specs = parameter_specs(bagel.abstract_params(CONFIG))
    layer = specs["language"]["layers"]["gen"]
    assert layer["attention"]["q"]["kernel"] == PartitionSpec(None, "tensor", None, "fsdp")
    assert layer["attention"]["o"]["kernel"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert layer["mlp"]["down"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert layer["input_norm"]["scale"] == PartitionSpec(None, None)
    assert specs["language"]["embed"]["embedding"] == PartitionSpec("tensor", "fsdp")
    assert specs["latent_position"]["table"] == PartitionSpec(None, None)


def test_available_memory_is_not_all_memory(tmp_path):
    """As the kernel estimates it, with the caches that it would give back; all, where it does not tell."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:   65536 kB\nMemFree:   900 kB\nMemAvailable:   1024 kB\nBuffers:   3 kB\n")
    assert read_available_bytes(meminfo) == 1024 * 1024
    assert read_available_bytes(tmp_path / "none") >= read_available_bytes() > 0

"""Checkpoints: any mesh and number of processes, digests, damaged and failed checkpoints, pruning."""

import errno
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pdgen.checkpoints.runs.workdir import DIGESTS, find_corruption, list_steps
from pdgen.sharding import make_mesh
from pdgen.train import checkpoint
from pdgen.train.checkpoint import Checkpoints
from pdgen.train.run_config import RunError
from pdgen.train.state import TrainState
from tests.support.disks import limit_file_size
from tests.train.two_processes import run_two_processes

ROOT = pathlib.Path(__file__).parents[2]
SPEC = PartitionSpec("fsdp", "tensor")


def state_at(step, seed=0):
    """Make a state with every kind of leaf: a scalar, matrices in two dtypes, empty parts, tuples."""
    rng = np.random.default_rng((seed, step))
    trained = {"a": {"kernel": jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)}}
    ema = {"a": {"kernel": jnp.asarray(rng.normal(size=(8, 16)), jnp.bfloat16)}}
    frozen = {"b": jnp.zeros((4,), jnp.float32)}
    moments = jax.tree.map(lambda leaf: leaf + 1, trained)
    return TrainState(jnp.int32(step), trained, frozen, (jnp.int32(step), {"mu": moments}, ()), ema, {})


def shardings(mesh_shape):
    mesh = make_mesh(mesh_shape, jax.devices()[: int(np.prod(mesh_shape))])
    return jax.tree.map(lambda x: NamedSharding(mesh, SPEC if x.ndim == 2 else PartitionSpec()), state_at(0))


def abstract():
    return jax.eval_shape(lambda: state_at(0))


def open_checkpoints(folder, lines=None, keep=3, keep_every=0):
    return Checkpoints(folder, keep, keep_every, print if lines is None else lines.append)


def save_steps(folder, *steps, **settings):
    """Save states on one device, one after the other."""
    with open_checkpoints(folder, **settings) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_at(step))
        checkpoints.finish()
    return folder / "checkpoints"


def assert_state(found, step):
    jax.tree.map(np.testing.assert_array_equal, found, state_at(step))
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, state_at(step))


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 4, 2), (2, 2, 1)], ids=str)
def test_a_state_is_restored_on_any_mesh(mesh, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, jax.device_put(state_at(5), shardings((2, 2, 2))))
        checkpoints.finish()
    with open_checkpoints(tmp_path, lines := []) as checkpoints:
        found = checkpoints.restore(abstract(), shardings(mesh))
    assert_state(found, 5)
    same = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), found, shardings(mesh))
    assert all(jax.tree.leaves(same))
    assert lines == ["resuming from step 5"]


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(), shardings((1, 1, 1))) is None


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    """The next steps write into the same memory; the saving thread must not see it."""
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 7, state), donate_argnums=0)
    with open_checkpoints(tmp_path) as checkpoints:
        state = jax.device_put(state_at(1), shardings((1, 1, 1)))
        checkpoints.save(1, state)
        for _ in range(5):
            state = overwrite(state)
    with open_checkpoints(tmp_path) as checkpoints:
        assert_state(checkpoints.restore(abstract(), shardings((1, 1, 1))), 1)


def test_the_newest_and_every_third_stay(tmp_path):
    assert list_steps(save_steps(tmp_path, *range(1, 8), keep=2, keep_every=3)) == [3, 6, 7]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    folder = save_steps(tmp_path, 1)
    for name in ("2.orbax-checkpoint-tmp", "0.removed"):
        (folder / name / "deep").mkdir(parents=True)
    with open_checkpoints(tmp_path):
        assert sorted(path.name for path in folder.iterdir()) == ["1"]


def test_digests_are_those_of_the_files_and_precede_the_commit(tmp_path, monkeypatch):
    write, seen = checkpoint.write_digests, []

    def spy(folder):
        write(folder)
        seen.append(((folder / DIGESTS).is_file(), list_steps(folder.parent)))

    monkeypatch.setattr(checkpoint, "write_digests", spy)
    folder = save_steps(tmp_path, 1) / "1"
    assert seen == [(True, [])]
    stated = json.loads((folder / DIGESTS).read_text())
    values = [path for path in folder.rglob("*") if path.is_file() and "/c" in str(path.relative_to(folder))]
    assert len(values) >= 6  # at least a file for every leaf
    for path in values:
        data = path.read_bytes()
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert stated[str(path.relative_to(folder))] == entry


def flip(path, offset=-1):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_any_file_is_detected(tmp_path):
    folder = save_steps(tmp_path, 1) / "1"
    assert find_corruption(folder) == ""
    for name in json.loads((folder / DIGESTS).read_text()):
        if (folder / name).stat().st_size:
            flip(folder / name)
            assert find_corruption(folder) == f"{name} has changed since it was written"
            flip(folder / name)
    assert find_corruption(folder) == ""


KERNEL = "trained.a.kernel/c/0/0"
DAMAGES = {
    "flipped": (lambda f: flip(f / KERNEL), f"{KERNEL} has changed since it was written"),
    "truncated": (lambda f: os.truncate(f / KERNEL, 10), rf"{KERNEL} has 10 bytes, not \d+"),
    "missing": (lambda f: (f / KERNEL).unlink(), f"{KERNEL} is missing"),
    "without digests": (lambda f: (f / DIGESTS).unlink(), "digests.json is missing"),
    "broken digests": (lambda f: os.truncate(f / DIGESTS, 50), "digests.json cannot be read"),
    "digests of another kind": (lambda f: (f / DIGESTS).write_text("[1]"), "digests.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_newest_checkpoint_is_set_aside(kind, tmp_path):
    folder = save_steps(tmp_path, 1, 2)
    (folder / "2.damaged").mkdir()  # left from an earlier start
    harm, what = DAMAGES[kind]
    harm(folder / "2")
    with open_checkpoints(tmp_path, lines := []) as checkpoints:
        assert_state(checkpoints.restore(abstract(), shardings((1, 1, 1))), 1)
    first, second = lines
    assert second == "resuming from step 1"
    line = rf"{folder}/2: step 2 is damaged, {what}; set aside as 2.damaged-2, the one before is used"
    assert re.fullmatch(line, first), first
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged", "2.damaged-2"]
    assert list((folder / "2.damaged-2").iterdir())


def test_with_all_checkpoints_damaged_the_run_is_refused(tmp_path):
    folder = save_steps(tmp_path, 1, 2)
    flip(folder / "1" / KERNEL)
    flip(folder / "2" / KERNEL)
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(RunError, match=r"/1: step 1 is damaged, .* no older") as fault,
    ):
        checkpoints.restore(abstract(), shardings((1, 1, 1)))
    assert "\n" not in str(fault.value)
    assert list_steps(folder) == [1]  # so that the next start is refused as well


def test_another_models_checkpoint_is_refused(tmp_path):
    save_steps(tmp_path, 1)
    other = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape, 2), leaf.dtype), abstract())
    place = jax.tree.map(lambda leaf: jax.sharding.SingleDeviceSharding(jax.devices()[0]), other)
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(RunError, match="/1: is a checkpoint of another") as fault,
    ):
        checkpoints.restore(other, place)
    assert "\n" not in str(fault.value)


def test_a_full_disk_does_not_stop_the_run(tmp_path):
    with open_checkpoints(tmp_path, lines := []) as checkpoints:
        checkpoints.save(1, state_at(1))
        checkpoints.wait()
        with limit_file_size(100):
            checkpoints.save(2, state_at(2))
            checkpoints.wait()
        assert list_steps(checkpoints.folder) == [1]
        assert lines == [
            f"{checkpoints.folder}/2: not saved ({os.strerror(errno.EFBIG)}); the run continues and tries "
            "again at the next save"
        ]
        checkpoints.save(3, state_at(3))
        checkpoints.finish()
    assert len(lines) == 1
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["1", "3"]
    with open_checkpoints(tmp_path) as checkpoints:
        assert_state(checkpoints.restore(abstract(), shardings((1, 1, 1))), 3)


def test_a_last_save_that_fails_ends_the_run(tmp_path):
    with open_checkpoints(tmp_path, lines := []) as checkpoints, limit_file_size(100):
        checkpoints.save(9, state_at(9))
        with pytest.raises(RunError, match=r"the last checkpoint could not be saved \(.*\); make room and start again"):
            checkpoints.finish()
    assert len(lines) == 1


FAILED_SAVES = """
from pathlib import Path
from pdgen.train.checkpoint import silence_orbax
from tests.support.disks import limit_file_size
from tests.train.test_checkpoint import open_checkpoints, state_at

silence_orbax()
with open_checkpoints(Path({folder!r})) as checkpoints:
    checkpoints.save(1, state_at(1))
    checkpoints.wait()
    with limit_file_size(100):
        for step in (2, 3):
            checkpoints.save(step, state_at(step))
            checkpoints.wait()
            assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["1"]  # what is half-written is gone
"""


def test_a_failed_save_is_one_line_and_nothing_else(tmp_path):
    command = [sys.executable, "-c", FAILED_SAVES.format(folder=str(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [f"{tmp_path}/checkpoints/{n}" for n in (2, 3)]


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Each writes its shards; both detect a flipped byte; SIGTERM to one stops both after the same step."""
    first, second = (json.loads(output.splitlines()[-1]) for output in run_two_processes("save", tmp_path))
    assert first["stopped_after"] == second["stopped_after"] >= 3
    assert first["lines"] == second["lines"]
    assert [line.partition(": ")[2] for line in first["lines"][:1]] == [
        f"step 2 is damaged, {KERNEL} has changed since it was written; set aside as 2.damaged, the one before is used"
    ]
    with open_checkpoints(tmp_path) as checkpoints:  # one process, another mesh
        assert_state(checkpoints.restore(abstract(), shardings((1, 2, 1))), 1)

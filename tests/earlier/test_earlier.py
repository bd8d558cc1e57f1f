"""Files of version 0.3.0 are read: a data set, a checkpoint, a trajectory's folder and a run's folder.

``0.3.0.tar.xz`` was written by the code of commit 95c0531, before its modules moved. The expected values below come
from that code too. The archive is never written again: a change that cannot read it breaks the users' files.
"""

import hashlib
import pathlib
import shutil
import tarfile

import jax
import numpy as np
import pytest
from flax import traverse_util

from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint, verify
from pdgen.data.loader import Batches, LoaderConfig
from pdgen.data.records import RecordSource, find_broken_records
from pdgen.flow.denoise import ImageSettings
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings
from pdgen.sequence.layout import Budgets
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory_folder import load_trajectory

ARCHIVE = pathlib.Path(__file__).parent / "0.3.0.tar.xz"
LOADER = LoaderConfig(rows=1, budgets=Budgets(text=640, vit=128, vae=896))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folders ``data``, ``checkpoint``, ``trajectory``, ``run`` and ``sampled``, which was sampled from the run."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _digest(params):
    """Return a digest of the names and bytes of all arrays of a nested dict."""
    whole = hashlib.sha256()
    for name, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        whole.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return whole.hexdigest()[:16]


def test_a_checkpoint_holds_the_same_tree(written):
    assert verify(written / "checkpoint").tensors
    assert _digest(load_checkpoint(written / "checkpoint")[1]) == "d3337d39c4dcfd86"


def test_records_are_whole_and_packed_alike(written):
    """Tokens, positions, intervals and routes of the first pack equal those of version 0.3.0."""
    assert not list(find_broken_records(written / "data"))
    source = RecordSource(written / "data")
    assert [(record.id, len(record.segments)) for record in source] == [
        ("multi_turn-0-000000", 4),
        ("multi_turn-0-000001", 7),
        ("multi_turn-0-000002", 7),
    ]
    config = load_checkpoint(written / "checkpoint")[0]
    tokenizer = load_tokenizer(written / "checkpoint" / "tokenizer")
    leaves = jax.tree.leaves(Batches(config, source, tokenizer, LOADER).make_pack(0))
    whole = hashlib.sha256()
    for leaf in map(np.asarray, leaves):
        if np.issubdtype(leaf.dtype, np.integer):
            whole.update(leaf.astype(np.int64).tobytes())
    assert whole.hexdigest()[:16] == "2b89ec8dcb5a27b9"


def test_a_trajectory_has_its_stages_and_picture(written):
    trajectory = load_trajectory(written / "trajectory")
    assert trajectory.fingerprint == "d729b714399e"
    assert trajectory.kinds == ["prompt", "plan", "image", "inspect"]
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    np.testing.assert_array_equal(np.asarray(trajectory.images[0]), pixels)


@pytest.mark.parametrize("exported", [True, False])
def test_a_run_is_sampled_from(written, tmp_path, monkeypatch, exported):
    """It draws the same picture from its final export and from its checkpoint alone.

    The paths of the run's data and first checkpoint are relative to the folder in which it was started.
    """
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if not exported:
        shutil.rmtree("run/export")
        pathlib.Path("run/export.json").unlink()
    sampler = Sampler.from_checkpoint("run", quick=True)
    assert _digest(sampler.model.params) == "78385a3400b6fbe4"  # the trained parameters, not the initial ones
    before = load_trajectory("sampled/000")
    settings = SampleSettings(mode="single_pass", image=ImageSettings(num_timesteps=3, text_scale=1.0))
    (drawn,) = sampler([before.prompt], [before.seed], settings)
    difference = np.asarray(drawn.images[0], np.int32) - np.asarray(before.images[0], np.int32)
    assert abs(difference).max() <= 2  # of 255: processors round differently

"""A run's folder as a model: what is read of it, and that nothing is written."""

import jax
import numpy as np
import pytest

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.load import compute_digest, find, load, load_autoencoder
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, EXPORT
from pdgen.train.export import export_newest
from tests.train.test_export import LORA, init, workdir  # noqa: F401


def tree(folder):
    return sorted((str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("changes", [{}, {"lora": LORA}], ids=["whole", "lora"])
def test_a_workdir_is_read_as_its_export_would_be(workdir, changes):  # noqa: F811
    """Values, name and digest; the digest is the export's, so that what was sampled from it goes on."""
    folder = workdir(3, **changes)
    before = tree(folder)
    loaded = load(folder)
    assert tree(folder) == before
    assert loaded.name == str(folder / CHECKPOINTS / "3")
    assert load(loaded.name).digest == compute_digest(find(folder)) == loaded.digest
    jax.tree.map(np.testing.assert_array_equal, load_autoencoder(folder)[1], loaded.params["autoencoder"])
    export_newest(folder, lambda line: None)
    exported = load(folder)
    assert (exported.name, exported.digest) == (str(folder / EXPORT), loaded.digest)
    assert exported.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, exported.params, loaded.params)


def test_a_damaged_step_that_is_named_is_refused(workdir):  # noqa: F811
    folder = workdir(3)
    step = folder / CHECKPOINTS / "3"
    next(path for path in step.rglob("0") if path.is_file() and path.stat().st_size > 4).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"the step is damaged, .* has 0 bytes, .*; name an older one"):
        load(step)

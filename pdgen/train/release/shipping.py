"""Replacing a model that ships with the package by the result of a training run."""

import pathlib
import shutil
import tempfile

import jax.numpy as jnp

from pdgen.assets import shapes_folder
from pdgen.checkpoints.conversion import to_bagel
from pdgen.checkpoints.runs.step import Weights
from pdgen.checkpoints.runs.workdir import is_run
from pdgen.checkpoints.shipped import shipped_name
from pdgen.checkpoints.sources.weights import AUTOENCODER
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import SHAPES_AUTOENCODER
from pdgen.data.latents import fingerprint_autoencoder
from pdgen.data.records import read_dataset
from pdgen.files import Log, log_stderr, new_file
from pdgen.sequence.tokenizer import TOKENIZER_FILES, load_tokenizer
from pdgen.train.export import open_weights, read_workdir_config
from pdgen.train.run_config import RunError


def replace_shipped(name: str, workdir: pathlib.Path, weights: Weights, log: Log = log_stderr) -> pathlib.Path:
    """Replace the files of a shipped model by those of a run's newest undamaged step, with weights in bfloat16.

    Each file is written under a temporary name and then renamed. The files of the autoencoder and the tokenizer stay,
    since the run was trained with them.

    Args:
      name: one of ``pdgen.checkpoints.shipped.SHIPPED``.
      workdir: the run's folder.
      weights: "raw", or "ema" for the moving average.
      log: receives lines for the user.

    Returns:
      The model's folder.

    Raises:
      RunError: the run does not fit the model's other files, see ``check_compatible``.
      CheckpointError: a checkpoint cannot be read, or the run keeps no moving average.
      RecordError: the run's data set cannot be read.
    """
    folder = shapes_folder(name)
    check_compatible(workdir, folder)
    with open_weights(workdir, weights, log) as source, tempfile.TemporaryDirectory() as scratch:
        exported = pathlib.Path(scratch) / name
        to_bagel(source, exported, dtype=jnp.dtype(jnp.bfloat16), log=log)
        for file in sorted(exported.iterdir()):
            if file.name not in (AUTOENCODER, *TOKENIZER_FILES):
                with new_file(folder / file.name) as partial:
                    shutil.copyfile(file, partial)
    return folder


def check_compatible(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    """Check that a run can ship with the autoencoder and the tokenizer in ``folder``.

    Raises:
      RunError: the data set of the run, or of a run that it started from, was built with others; or it started from a
        model that no longer ships.
    """
    run = read_workdir_config(workdir)
    origin = read_dataset(run.data).origin
    fingerprints = {
        "autoencoder": (origin.autoencoder, fingerprint_autoencoder(read_autoencoder(folder, SHAPES_AUTOENCODER))),
        "tokenizer": (origin.tokenizer, load_tokenizer(folder).fingerprint),
    }
    for part, (used, shipped) in fingerprints.items():
        if used != shipped:
            raise RunError(
                f"{workdir}: its data was built with another {part} than {folder} holds; train again in a new folder"
            )
    origin_run = pathlib.Path(run.init).parent
    if run.init and is_run(origin_run):
        check_compatible(origin_run, folder)
    elif run.init and shipped_name(run.init) is None:
        raise RunError(f"{workdir}: started from {run.init}, which is no longer shipped; train again in a new folder")

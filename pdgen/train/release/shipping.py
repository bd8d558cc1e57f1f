"""What a run has trained takes the place of a model that the package brings along."""

import pathlib
import shutil
import tempfile

import jax.numpy as jnp

from pdgen.assets import shapes_folder
from pdgen.checkpoints.conversion import to_bagel
from pdgen.checkpoints.runs.step import Weights
from pdgen.checkpoints.runs.workdir import is_run
from pdgen.checkpoints.shipped import shipped_name
from pdgen.checkpoints.torch_checkpoint import AUTOENCODER, TOKENIZER_FILES, read_autoencoder
from pdgen.config import SHAPES_AUTOENCODER
from pdgen.data.latents import fingerprint_autoencoder
from pdgen.data.records import read_dataset
from pdgen.files import Log, log_stderr, new_file
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.train.export import chosen_weights, read_workdir
from pdgen.train.run_config import RunError


def replace_shipped(name: str, workdir: pathlib.Path, weights: Weights, say: Log = log_stderr) -> pathlib.Path:
    """Replaces the files of a shipped model by those of a run's newest whole step, its weights in bfloat16.

    Each file is written under a temporary name and then renamed. The autoencoder's and the tokenizer's are not
    touched: the run was trained with them.

    Args:
      name: one of ``pdgen.checkpoints.shipped.SHIPPED``.
      workdir: the run.
      weights: "raw", or "ema" for the moving average.
      say: takes one line for the user.

    Returns:
      The model's folder.

    Raises:
      RunError: the run does not suit the model's other files or what it started from (see ``check_suits``), or it
        keeps no average.
      CheckpointError, RecordError: a checkpoint or the run's data set cannot be read.
    """
    folder = shapes_folder(name)
    check_suits(workdir, folder)
    with chosen_weights(workdir, weights, say) as source, tempfile.TemporaryDirectory() as scratch:
        made = pathlib.Path(scratch) / name
        to_bagel(source, made, dtype=jnp.dtype(jnp.bfloat16), log=say)
        for file in sorted(made.iterdir()):
            if file.name not in (AUTOENCODER, *TOKENIZER_FILES):
                with new_file(folder / file.name) as partial:
                    shutil.copyfile(file, partial)
    return folder


def check_suits(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    """Checks that a run may be shipped beside the autoencoder and the tokenizer in ``folder``.

    Raises:
      RunError: its data set, or that of a run that it started from, was made with others; or it started from a model
        that is not shipped any more.
    """
    run = read_workdir(workdir)
    origin = read_dataset(run.data).origin
    kept = {
        "autoencoder": (origin.autoencoder, fingerprint_autoencoder(read_autoencoder(folder, SHAPES_AUTOENCODER))),
        "tokenizer": (origin.tokenizer, load_tokenizer(folder).fingerprint),
    }
    for part, (used, shipped) in kept.items():
        if used != shipped:
            raise RunError(
                f"{workdir}: its data was made with another {part} than {folder} holds; train again in a new folder"
            )
    origin_run = pathlib.Path(run.init).parent
    if run.init and is_run(origin_run):
        check_suits(origin_run, folder)
    elif run.init and shipped_name(run.init) is None:
        raise RunError(
            f"{workdir}: started from {run.init}, which is not shipped (any more); train again in a new folder"
        )

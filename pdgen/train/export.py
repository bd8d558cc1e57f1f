"""From a run's checkpoints to the pdgen checkpoint that conversion and further runs read.

A workdir's ``export/`` holds the raw weights of one step, which ``export.json`` beside it names. It is written when
training ends, and again where a conversion or another run is given the workdir while a newer whole checkpoint lies
there. Arrays are read from the run's checkpoint layer by layer, so neither a device nor the host holds the whole model.
"""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Generator

import jax

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.load import find, open_step
from pdgen.checkpoints.pdgen_checkpoint import is_checkpoint, write_checkpoint
from pdgen.checkpoints.runs.step import Weights
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, CONFIG_FILE, EXPORT, EXPORTED, find_newest_step, is_run
from pdgen.files import Log, log_stderr, new_file
from pdgen.train.checkpoint import meet
from pdgen.train.run_config import RunConfig, RunError, read_run_config


def export_checkpoint(path: str | pathlib.Path, say: Log = log_stderr) -> pathlib.Path:
    """The pdgen checkpoint at ``path``; that of a run is its export, which is written first where it is older.

    Raises:
      CheckpointError: see ``pdgen.checkpoints.load.find``; or the run's config or checkpoint cannot be read.
    """
    path = pathlib.Path(path)
    return export_newest(path, say) if not is_checkpoint(path) and is_run(path) else find(path, say)


def export_newest(workdir: pathlib.Path, say: Log = log_stderr) -> pathlib.Path:
    """The up to date export of a run, raw weights; see ``export_checkpoint``."""
    step = find_newest_step(workdir, say)
    if step is not None:
        (workdir / EXPORTED).unlink(missing_ok=True)  # killed from here on, the export is of an unknown step
        export_run(workdir, workdir / EXPORT, step, "raw", say)
        with new_file(workdir / EXPORTED) as partial:
            partial.write_text(json.dumps({"step": step}) + "\n")
    return workdir / EXPORT


@contextlib.contextmanager
def chosen_weights(
    source: str | pathlib.Path, weights: Weights | None, say: Log = log_stderr
) -> Generator[pathlib.Path, None, None]:
    """The pdgen checkpoint of the chosen weights of a run's newest whole step; of another folder, that folder.

    The average is exported for the while alone, into the workdir.

    Raises:
      CheckpointError: ``weights`` are given, but ``source`` is no run's workdir; and see ``export_checkpoint``.
    """
    source = pathlib.Path(source)
    if is_checkpoint(source) or not is_run(source):
        if weights is not None:
            raise CheckpointError(
                f"{source}: is no workdir of a training run, so there is nothing to choose; leave --weights out"
            )
        yield source
    elif weights == "ema":
        step = find_newest_step(source, say, beyond_export=False)
        with tempfile.TemporaryDirectory(prefix=".ema-", dir=source) as folder:
            export_run(source, pathlib.Path(folder) / EXPORT, step, weights, say)
            yield pathlib.Path(folder) / EXPORT
    else:
        yield export_newest(source, say)


def export_run(workdir: pathlib.Path, target: pathlib.Path, step: int, weights: Weights, say: Log = log_stderr) -> None:
    """Writes one step of a run as a pdgen checkpoint, adapters merged; an existing one at ``target`` is replaced.

    Args:
      weights: "raw", or "ema" for the moving average of what is trained.

    Raises:
      CheckpointError: see ``pdgen.checkpoints.load.open_step``.
      FolderError: ``target`` cannot be written.
    """
    base, params = open_step(workdir / CHECKPOINTS / str(step), weights)
    write_checkpoint(
        target,
        base.config,
        params,
        tokenizer_files=base.tokenizer.files,
        source_json=base.source_json,
        overwrite=target.exists(),
        log=say,
    )
    say(f"exported step {step} to {target}")


def read_workdir(workdir: pathlib.Path) -> RunConfig:
    """The config of the run in ``workdir``. Raises RunError."""
    path = workdir / CONFIG_FILE
    try:
        return read_run_config(json.loads(path.read_text()))
    except (OSError, ValueError) as fault:
        raise RunError(f"{path}: cannot be read ({' '.join(str(fault).split())})") from None


def resolved(run: RunConfig, say: Log = log_stderr) -> RunConfig:
    """``run`` with the pdgen checkpoint that its ``init`` leads to."""
    return dataclasses.replace(run, init=str(export_checkpoint(run.init, say))) if run.init else run


def resolved_by_all(run: RunConfig, say: Log = log_stderr) -> RunConfig:
    """``resolved`` in every process of a run; the first goes first, since it may have to write an export."""
    if jax.process_index():
        meet()
    found = resolved(run, say)
    if not jax.process_index():
        meet()
    return found

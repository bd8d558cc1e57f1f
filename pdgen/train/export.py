"""From a run's checkpoints to the pdgen checkpoint that conversion and further runs read.

A workdir's ``export/`` holds the raw weights of one step; ``export.json`` names the step. Both are written when
training ends. They are written again when a conversion or another run reads a workdir with a newer undamaged
checkpoint. Arrays are copied layer by layer, so neither a device nor the host holds the whole model.
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
from pdgen.json_text import load_json
from pdgen.train.checkpoint import barrier
from pdgen.train.run_config import RunConfig, RunError, read_run_config


def export_checkpoint(path: str | pathlib.Path, log: Log = log_stderr) -> pathlib.Path:
    """Return the pdgen checkpoint at ``path``; for a run's workdir, bring its export up to date and return that.

    Raises:
      CheckpointError: see ``pdgen.checkpoints.load.find``; or the run's config or checkpoint cannot be read.
    """
    path = pathlib.Path(path)
    return export_newest(path, log) if not is_checkpoint(path) and is_run(path) else find(path, log)


def export_newest(workdir: pathlib.Path, log: Log = log_stderr) -> pathlib.Path:
    """Bring a run's export of raw weights up to date and return its folder; see ``export_checkpoint``."""
    step = find_newest_step(workdir, log)
    if step is not None:
        (workdir / EXPORTED).unlink(missing_ok=True)  # after a kill from here on, the step of export/ is unknown
        export_step(workdir, workdir / EXPORT, step, "raw", log)
        with new_file(workdir / EXPORTED) as partial:
            partial.write_text(json.dumps({"step": step}) + "\n")
    return workdir / EXPORT


@contextlib.contextmanager
def open_weights(
    source: str | pathlib.Path, weights: Weights | None, log: Log = log_stderr
) -> Generator[pathlib.Path, None, None]:
    """Yield a pdgen checkpoint with the requested weights of a run's newest undamaged step.

    The moving average is exported into the workdir for the duration of the block only.

    Args:
      source: a run's workdir, or another checkpoint, whose folder is yielded as it is.
      weights: "raw", "ema" for the moving average, or None: "raw" of a workdir, and all that other checkpoints have.
      log: receives lines for the user.

    Raises:
      CheckpointError: ``weights`` is given, but ``source`` is not a run's workdir; and see ``export_checkpoint``.
    """
    source = pathlib.Path(source)
    if is_checkpoint(source) or not is_run(source):
        if weights is not None:
            raise CheckpointError(
                f"{source}: is no workdir of a training run, so there is nothing to choose; leave --weights out"
            )
        yield source
    elif weights == "ema":
        step = find_newest_step(source, log, beyond_export=False)
        assert step is not None  # without beyond_export it raises instead
        with tempfile.TemporaryDirectory(prefix=".ema-", dir=source) as folder:
            export_step(source, pathlib.Path(folder) / EXPORT, step, weights, log)
            yield pathlib.Path(folder) / EXPORT
    else:
        yield export_newest(source, log)


def export_step(
    workdir: pathlib.Path, target: pathlib.Path, step: int, weights: Weights, log: Log = log_stderr
) -> None:
    """Write a saved step of a run as a pdgen checkpoint with adapters merged, replacing an existing ``target``.

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
        log=log,
    )
    log(f"exported step {step} to {target}")


def read_workdir_config(workdir: pathlib.Path) -> RunConfig:
    """Read the config of the run in ``workdir``. Raises RunError."""
    path = workdir / CONFIG_FILE
    try:
        values = load_json(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it holds no config of a run")
        return read_run_config(values)
    except (OSError, ValueError) as fault:
        raise RunError(f"{path}: cannot be read ({' '.join(str(fault).split())})") from None


def resolve_init(run: RunConfig, log: Log = log_stderr) -> RunConfig:
    """Return ``run`` with ``init`` replaced by the pdgen checkpoint it refers to, exporting a workdir if necessary."""
    return dataclasses.replace(run, init=str(export_checkpoint(run.init, log))) if run.init else run


def resolve_init_everywhere(run: RunConfig, log: Log = log_stderr) -> RunConfig:
    """Call ``resolve_init`` in every process, in the first one before the others, since it may write an export."""
    if jax.process_index():
        barrier()
    resolved = resolve_init(run, log)
    if not jax.process_index():
        barrier()
    return resolved

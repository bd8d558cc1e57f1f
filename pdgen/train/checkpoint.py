"""Saving and restoring a run's state with Orbax: asynchronous, sharded over processes, with digests.

``pdgen.checkpoints.runs.workdir`` describes the layout of the files.
"""

import itertools
import logging
import pathlib
import shutil
import sys
import time
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp

from pdgen.checkpoints.arrays import first_cause
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, find_corruption, list_steps, write_digests
from pdgen.files import Log, to_os_error
from pdgen.train.planning.processes import gather_lines
from pdgen.train.run_config import RunError
from pdgen.train.state import TrainState, add_shardings

_LEFTOVERS = ("*.orbax-checkpoint-tmp*", "*.removed")
_WAITS = (0.0, 0.1, 0.5, 2.0)  # seconds before each attempt to delete them
_LAYER_BYTES = 2**26  # a larger stacked array has one file per layer, so that a layer can be read alone
_TIMEOUT = 3600  # seconds; processes wait for each other's writes and for the digests
_barrier_numbers = itertools.count()  # every barrier needs a name of its own


class _DigestHandler(ocp.PyTreeCheckpointHandler):
    """Writes the digests in the background once all processes have written their shards."""

    def __init__(self) -> None:
        super().__init__(use_ocdbt=False, use_zarr3=True)

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        write_digests(pathlib.Path(directory))


@ocp.args.register_with_handler(_DigestHandler, for_save=True)
class _Save(ocp.args.PyTreeSave):
    pass


@ocp.args.register_with_handler(_DigestHandler, for_restore=True)
class _Restore(ocp.args.PyTreeRestore):
    pass


class Checkpoints:
    """The checkpoints under ``<workdir>/checkpoints``; a context manager that waits for a pending save on exit.

    Every process creates one and calls the same methods in the same order. A failed save, for instance on a full disk,
    is reported in one line and does not stop the run.

    Args:
      workdir: the run's folder.
      keep: number of newest checkpoints to keep, besides the one that is being saved.
      keep_every: also keep the checkpoints of every ``keep_every``-th step; 0 keeps none of these.
      log: receives lines for the user.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, keep_every: int, log: Log) -> None:
        self.folder = (workdir / CHECKPOINTS).absolute()
        self._keep, self._keep_every, self._log = keep, keep_every, log
        self._pending: int | None = None
        self._failure = ""  # of the last save
        if not jax.process_index():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        barrier()
        self._checkpointer = ocp.AsyncCheckpointer(_DigestHandler(), timeout_secs=_TIMEOUT)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._checkpointer.close()

    def restore(self, abstract: TrainState, shardings: TrainState) -> TrainState | None:
        """Restore the newest undamaged state; return None if there is no checkpoint.

        Damaged checkpoints that are newer are renamed and reported in one line each.

        Args:
          abstract: shapes and dtypes of the state.
          shardings: where to place it. Mesh and number of processes may differ from those of the save.

        Raises:
          RunError: all checkpoints are damaged, or the newest one is of another model.
        """
        for step in reversed(steps := list_steps(self.folder)):
            folder = self.folder / str(step)
            if not (fault := _agree_on_corruption(folder)):
                self._log(f"resuming from step {step}")
                return self._restore_step(step, abstract, shardings)
            if step == steps[0]:
                raise RunError(
                    f"{folder}: step {step} is damaged, {fault}, and no older checkpoint is left; name another "
                    "workdir, or remove the folder to start anew"
                )
            aside = self._set_aside(step)
            self._log(f"{folder}: step {step} is damaged, {fault}; set aside as {aside}, the one before is used")
        return None

    def save(self, step: int, state: TrainState) -> None:
        """Start saving ``state``. The caller may donate its arrays as soon as this returns."""
        self.wait()
        if not jax.process_index():
            self._remove_leftovers()
            self._prune()
        values = dict(vars(state))  # dataclasses.asdict would copy the arrays
        args = _Save(values, save_args=jax.tree.map(_make_save_args, values))
        self._pending, self._failure = step, ""
        try:
            self._checkpointer.save(self.folder / str(step), args=args)
        except Exception as fault:  # Orbax and TensorStore do not document what they raise
            self._report_failure(fault)

    def wait(self) -> None:
        """Wait for a pending save and report it if it failed."""
        try:
            self._checkpointer.wait_until_finished()
        except Exception as fault:  # see save
            self._report_failure(fault)
        self._pending = None

    def check(self) -> None:
        """Report a pending save that has already failed, without waiting for it."""
        try:
            self._checkpointer.check_for_errors()
        except Exception as fault:  # see save
            self._report_failure(fault)

    def finish(self) -> None:
        """Wait for the last save and delete old checkpoints. Raises RunError if that save failed."""
        self.wait()
        if self._failure:
            raise RunError(
                f"{self.folder}: the last checkpoint could not be saved ({self._failure}); make room and "
                "start again, the run resumes from the newest one"
            )
        if not jax.process_index():
            self._prune()

    def _report_failure(self, fault: Exception) -> None:
        # One failed save may raise several errors, some of them late: only the first is reported.
        if self._failure or self._pending is None or (self.folder / str(self._pending)).is_dir():
            return
        failure = to_os_error(fault, self.folder, first_cause(fault)[:300])
        self._failure = str(failure.strerror)
        self._log(
            f"{self.folder / str(self._pending)}: not saved ({self._failure}); the run continues and tries again at "
            "the next save"
        )
        if not jax.process_index():
            self._remove_leftovers()  # now, so that what else is written to the disk has room

    def _restore_step(self, step: int, abstract: TrainState, shardings: TrainState) -> TrainState:
        values = dict(vars(add_shardings(abstract, shardings)))
        args = _Restore(values, restore_args=ocp.checkpoint_utils.construct_restore_args(values))
        try:
            return TrainState(**self._checkpointer.restore(self.folder / str(step), args=args))
        except Exception as fault:  # the digests match, so the arrays must be those of another model
            raise RunError(
                f"{self.folder / str(step)}: is a checkpoint of another model ({first_cause(fault)[:300]}); "
                "name another workdir"
            ) from fault

    def _set_aside(self, step: int) -> str:
        """Rename a damaged checkpoint and return its new name."""
        number, aside = 1, f"{step}.damaged"
        while (self.folder / aside).exists():
            number, aside = number + 1, f"{step}.damaged-{number + 1}"
        barrier()  # every process has chosen the name before the first process renames
        if not jax.process_index():
            (self.folder / str(step)).rename(self.folder / aside)
        barrier()
        return aside

    def _remove_leftovers(self) -> None:
        """Delete what a killed process or a failed save has left."""
        for left in [path for pattern in _LEFTOVERS for path in self.folder.glob(pattern)]:
            for wait in _WAITS:  # other writes of a failed save may still add files
                time.sleep(wait)
                shutil.rmtree(left, ignore_errors=True)
                if not left.exists():
                    break

    def _prune(self) -> None:
        steps = list_steps(self.folder)
        for step in steps[: -self._keep]:
            if self._keep_every and step % self._keep_every == 0:
                continue
            removed = self.folder / f"{step}.removed"  # renamed first, so that a kill leaves no half checkpoint
            try:
                (self.folder / str(step)).rename(removed)
            except OSError as fault:
                self._log(f"{self.folder / str(step)}: an old checkpoint stays ({fault.strerror}); the run continues")
                return
            shutil.rmtree(removed, ignore_errors=True)


def _agree_on_corruption(folder: pathlib.Path) -> str:
    """Run ``find_corruption`` with each process reading its share of the files; all processes return the same line."""
    fault = find_corruption(folder, (jax.process_index(), jax.process_count()))
    return next(filter(None, gather_lines(fault)), "")


def _make_save_args(leaf: jax.Array) -> ocp.SaveArgs:
    large = leaf.ndim > 2 and leaf.nbytes > _LAYER_BYTES
    return ocp.SaveArgs(shard_axes=(0,)) if large else ocp.SaveArgs()


def silence_orbax() -> None:
    """Hide what Orbax says of its work and of a failed save, which ``Checkpoints`` reports in one line.

    A failed save has one traceback for every file that was not written, in two forms: asyncio logs tasks whose error
    nobody asked for, and TensorStore calls back into an event loop that the first error has closed.
    """
    absl.logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def show_others(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others


def barrier() -> None:
    """Wait until every process has called this the same number of times."""
    if jax.process_count() > 1:
        ocp.multihost.sync_global_processes(f"pdgen barrier {next(_barrier_numbers)}", timeout=_TIMEOUT)

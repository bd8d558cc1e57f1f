"""Saving and restoring a run's state: Orbax, asynchronous, every process its own shards, with digests.

How the files lie is told in ``pdgen.checkpoints.runs.workdir``.
"""

import dataclasses
import itertools
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pdgen.checkpoints.arrays import first_cause
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, find_corruption, list_steps, write_digests
from pdgen.files import DISK_FULL, Log
from pdgen.train.run_config import RunError
from pdgen.train.state import TrainState

_LEFT_BEHIND = ("*.orbax-checkpoint-tmp*", "*.removed")
_LAYER_BYTES = 2**26  # a stacked array beyond this has a file per layer, so that a layer can be read alone
_TIMEOUT = 3600  # seconds that processes wait for each other's writing and for the digests
_meetings = itertools.count()  # a barrier needs a name of its own


class _Handler(ocp.PyTreeCheckpointHandler):
    """Writes the digests when all processes have written, in the background."""

    def __init__(self) -> None:
        super().__init__(use_ocdbt=False, use_zarr3=True)

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        write_digests(pathlib.Path(directory))


@ocp.args.register_with_handler(_Handler, for_save=True)
class _Save(ocp.args.PyTreeSave):
    pass


@ocp.args.register_with_handler(_Handler, for_restore=True)
class _Restore(ocp.args.PyTreeRestore):
    pass


class Checkpoints:
    """The checkpoints under ``<workdir>/checkpoints``; a context manager that waits for a pending save.

    Every process makes one and calls the same methods. Of the saved ones stay the newest ``keep`` and those of every
    ``keep_every``-th step (0 keeps none of these); the one being saved comes on top of them. A save that fails, on a
    full disk for instance, is reported in one line and the run goes on; ``finish`` raises if the last one failed.

    Args:
      workdir: the run's folder.
      say: takes a line for the reader.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, keep_every: int, say: Log) -> None:
        self.folder = (workdir / CHECKPOINTS).absolute()
        self._keep, self._keep_every, self._say = keep, keep_every, say
        self._pending: int | None = None
        self._fault = ""  # of the last save
        if not jax.process_index():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
        meet()
        self._checkpointer = ocp.AsyncCheckpointer(_Handler(), timeout_secs=_TIMEOUT)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._checkpointer.close()

    def restore(self, abstract: TrainState, shardings: TrainState) -> TrainState | None:
        """The newest state that is whole, laid out by ``shardings`` (any mesh, any number of processes).

        Damaged ones are named in a line each and set aside.

        Returns:
          None if there is no checkpoint.

        Raises:
          RunError: all are damaged, or it is another model's.
        """
        for step in reversed(steps := list_steps(self.folder)):
            if not (fault := _agree_on_corruption(self.folder / str(step))):
                self._say(f"resuming from step {step}")
                return self._restore(step, abstract, shardings)
            if step == steps[0]:
                raise RunError(
                    f"{self.folder / str(step)}: step {step} is damaged, {fault}, and no older checkpoint "
                    "is left; name another workdir, or remove the folder to start anew"
                )
            aside = self._set_aside(step)
            self._say(
                f"{self.folder / str(step)}: step {step} is damaged, {fault}; set aside as {aside}, the one "
                "before is used"
            )
        return None

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving ``state``. The arrays may be donated as soon as it returns."""
        self.wait()
        if not jax.process_index():
            self._clean()
            self._prune()
        values = _as_dict(state)
        args = _Save(values, save_args=jax.tree.map(_save_args, values))
        self._pending, self._fault = step, ""
        try:
            self._checkpointer.save(self.folder / str(step), args=args)
        except Exception as fault:  # Orbax and TensorStore raise what they like
            self._failed(fault)

    def wait(self) -> None:
        """Waits for a pending save; says so if it failed."""
        try:
            self._checkpointer.wait_until_finished()
        except Exception as fault:  # as above
            self._failed(fault)
        self._pending = None

    def check(self) -> None:
        """Says so if a pending save has failed by now, without waiting for it."""
        try:
            self._checkpointer.check_for_errors()
        except Exception as fault:  # as above
            self._failed(fault)

    def finish(self) -> None:
        """Waits for the last save and removes what is no longer kept. Raises RunError if that save failed."""
        self.wait()
        if self._fault:
            raise RunError(
                f"{self.folder}: the last checkpoint could not be saved ({self._fault}); make room and "
                "start again, the run goes on from the newest one"
            )
        if not jax.process_index():
            self._prune()

    def _failed(self, fault: Exception) -> None:
        if self._fault or self._pending is None or (self.folder / str(self._pending)).is_dir():
            return  # of one failed save there may come several errors, some of them late
        text = first_cause(fault)
        self._fault = next((os.strerror(n) for n in DISK_FULL if os.strerror(n) in text), text[:300])
        self._say(
            f"{self.folder / str(self._pending)}: not saved ({self._fault}); the run goes on and tries again at "
            "the next save"
        )

    def _restore(self, step: int, abstract: TrainState, shardings: TrainState) -> TrainState:
        targets = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, shardings
        )
        values = _as_dict(targets)
        args = _Restore(values, restore_args=ocp.checkpoint_utils.construct_restore_args(values))
        try:
            return TrainState(**self._checkpointer.restore(self.folder / str(step), args=args))
        except Exception as fault:  # the files are whole, so the arrays are others
            raise RunError(
                f"{self.folder / str(step)}: is a checkpoint of another model ({first_cause(fault)[:300]}); "
                "name another workdir"
            ) from fault

    def _set_aside(self, step: int) -> str:
        number, aside = 1, f"{step}.damaged"
        while (self.folder / aside).exists():
            number, aside = number + 1, f"{step}.damaged-{number + 1}"
        meet()
        if not jax.process_index():
            (self.folder / str(step)).rename(self.folder / aside)
        meet()
        return aside

    def _clean(self) -> None:
        """Removes what a killed process or a failed save has left."""
        for pattern in _LEFT_BEHIND:
            for left in self.folder.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)

    def _prune(self) -> None:
        steps = list_steps(self.folder)
        for step in steps[: -self._keep]:
            if self._keep_every and step % self._keep_every == 0:
                continue
            removed = self.folder / f"{step}.removed"  # a run killed meanwhile leaves no half checkpoint
            (self.folder / str(step)).rename(removed)
            shutil.rmtree(removed, ignore_errors=True)


def _agree_on_corruption(folder: pathlib.Path) -> str:
    """``find_corruption`` of the whole folder, of which each process reads its part; all come to the same."""
    index, count = jax.process_index(), jax.process_count()
    fault = find_corruption(folder, (index, count))
    if count == 1:
        return fault
    found = multihost_utils.process_allgather(np.frombuffer(fault.encode()[:256].ljust(256), np.uint8))
    return next((line for line in (bytes(row).decode(errors="replace").strip() for row in found) if line), "")


def _save_args(leaf: jax.Array) -> ocp.SaveArgs:
    large = leaf.ndim > 2 and leaf.nbytes > _LAYER_BYTES
    return ocp.SaveArgs(shard_axes=(0,)) if large else ocp.SaveArgs()


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def meet() -> None:
    """Waits until every process has called this as often."""
    if jax.process_count() > 1:
        ocp.multihost.sync_global_processes(f"pdgen meeting {next(_meetings)}", timeout=_TIMEOUT)

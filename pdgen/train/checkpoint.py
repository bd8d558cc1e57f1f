"""Checkpoints of a training run: Orbax, asynchronous, every process its own shards."""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from pdgen.train.run_config import RunError
from pdgen.train.state import TrainState


class Checkpoints:
    """The checkpoints under ``<workdir>/checkpoints``; a context manager that waits for pending saves.

    Args:
      workdir: the run's folder.
      keep: newest checkpoints that stay.
    """

    def __init__(self, workdir: pathlib.Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The newest finished step, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving ``state``; the next save, or leaving the context, waits for it."""
        self._manager.save(step, args=ocp.args.StandardSave(_as_dict(state)))

    def restore(self, step: int, abstract: TrainState, shardings: TrainState) -> TrainState:
        """The state of ``step``, laid out by ``shardings`` (any mesh).

        Raises:
          RunError: the checkpoint is of another model or damaged.
        """
        targets = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        )
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(_as_dict(targets)))
        except (ValueError, KeyError, FileNotFoundError) as fault:
            line = " ".join(str(fault).split())[:300]
            raise RunError(f"{self._manager.directory}/{step}: cannot be restored ({line}); remove that folder, or "
                           "name another workdir for another model") from fault  # fmt: skip
        return TrainState(**restored)


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}

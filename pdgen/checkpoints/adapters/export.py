"""Export of the adapters that a training run learned, as a PEFT folder."""

import pathlib
from collections.abc import Iterator

import numpy as np

from pdgen.checkpoints.adapters.peft import write_adapter
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.load import open_step
from pdgen.checkpoints.mapping import places
from pdgen.checkpoints.runs.step import LazyArray, Weights, is_step, open_adapters, read_facts
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, find_newest_step, is_run
from pdgen.config import ModelConfig
from pdgen.files import Log, log_stderr


def export_adapters(
    source: str | pathlib.Path,
    target: str | pathlib.Path,
    weights: Weights = "raw",
    *,
    overwrite: bool = False,
    log: Log = log_stderr,
) -> str:
    """Write the adapters of a run as a PEFT folder, with the names of BAGEL's PyTorch model, in float32.

    Args:
      source: the workdir of a run, whose newest intact step is taken, or one of its steps.
      target: the folder to write.
      weights: "raw", or "ema" for the moving average of the adapters.
      overwrite, log: see ``pdgen.files.new_folder``.

    Returns:
      A line that says what was written.

    Raises:
      CheckpointError: ``source`` is no run, has no intact step, was trained without adapters or keeps no average.
      FolderError: ``target`` cannot be written.
    """
    source = pathlib.Path(source)
    if is_step(source):
        step = source
    elif is_run(source):
        # Without beyond_export it raises if there is no intact step.
        step = source / CHECKPOINTS / str(find_newest_step(source, log, beyond_export=False))
    else:
        raise CheckpointError(f"{source}: is no workdir of a training run; --adapters exports the adapters of one")
    facts = read_facts(step.absolute().parent.parent)
    if not facts.lora.rank:
        raise CheckpointError(f"{source}: was trained without adapters (lora.rank is 0); export it with --reverse")
    config = open_step(step, weights).base.config
    adapters = open_adapters(config, facts, step, weights)
    factors = [*_split_layers(config, adapters)]
    write_adapter(target, factors, facts.lora.rank, facts.lora.alpha, overwrite=overwrite, log=log)
    return f"{target}: {len(factors)} adapters of rank {facts.lora.rank} from step {step.name}"


def _split_layers(
    config: ModelConfig, adapters: dict[str, tuple[LazyArray, LazyArray]]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield PyTorch's name, A [r, in] and B [out, r] of every adapted kernel, layer by layer."""
    for place in places(config, ("model",)).values():
        if (found := adapters.get(place.path.removeprefix("model/"))) is None:
            continue
        a, b = (np.asarray(factor if place.layer is None else factor[place.layer]) for factor in found)
        out, inner = place.shape
        yield place.name, a.reshape(-1, inner), b.reshape(out, -1)

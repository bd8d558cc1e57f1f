"""From a run's checkpoints to the pdgen checkpoint that everything else reads, and the way to it from a path.

A workdir's ``export/`` holds the raw weights of one step, which ``export.json`` beside it names. It is written when
training ends, and again by whatever command is given the workdir while a newer whole checkpoint lies there. Arrays
are read from the run's checkpoint layer by layer, so neither a device nor the host holds the whole model.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from flax import traverse_util

from pdgen.checkpoints.arrays import short
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.pdgen_checkpoint import TOKENIZER, is_checkpoint, write_checkpoint
from pdgen.checkpoints.shipped import SHIPPED, shipped_checkpoint, shipped_name
from pdgen.checkpoints.torch_checkpoint import WHOLE_TOKENIZERS, is_bagel_folder
from pdgen.files import Say, new_file, to_stderr
from pdgen.train.base import load_base
from pdgen.train.checkpoint import CHECKPOINTS, damage, finished_steps, meet
from pdgen.train.lora import merge
from pdgen.train.run_config import CONFIG_FILE, RunConfig, RunError, read_run_config
from pdgen.train.state import StepConfig, Weights, abstract_state, model_params

EXPORT, EXPORTED = "export", "export.json"


def is_run(path: pathlib.Path) -> bool:
    """Whether ``path`` looks like the workdir of a training run."""
    return (path / CHECKPOINTS).is_dir() and (path / CONFIG_FILE).is_file()


def find_checkpoint(path: str | pathlib.Path, say: Say = to_stderr) -> pathlib.Path:
    """The pdgen checkpoint at ``path``: the folder itself, or the export of a training run's newest whole step.

    That export is written first where it is absent or older. A folder that does not exist may be the name of a model
    that the package brings along, one of ``SHIPPED``.

    Raises:
      CheckpointError: there is none, or it has no tokenizer; one line says what to do.
      RunError: the run's config or checkpoint cannot be read.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        if name := shipped_name(path):
            return shipped_checkpoint(name)
        raise CheckpointError(f"{path}: no such folder; name a pdgen checkpoint, the workdir of a training run, or "
                              f"{' or '.join(SHIPPED)}")  # fmt: skip
    if is_bagel_folder(path):
        raise CheckpointError(f"{path}: is a BAGEL folder; convert it first: "
                              f"python launch/convert.py --source={path} --target=NEW_FOLDER")  # fmt: skip
    if not is_checkpoint(path) and is_run(path):
        return export_newest(path, say)
    folder = next((f for f in (path, path / EXPORT) if is_checkpoint(f)), None)
    if folder is None:
        raise CheckpointError(f"{path}: is no pdgen checkpoint, and no workdir of a training run; "
                              "launch/convert.py and launch/train.py make them")  # fmt: skip
    if not any((folder / TOKENIZER / name).is_file() for name in WHOLE_TOKENIZERS):
        raise CheckpointError(f"{folder}: has no tokenizer; convert again from a folder that holds "
                              f"{' or '.join(WHOLE_TOKENIZERS)}")  # fmt: skip
    return folder


def export_newest(workdir: pathlib.Path, say: Say = to_stderr) -> pathlib.Path:
    """The up to date export of a run, raw weights; see ``find_checkpoint``."""
    exported, steps = exported_step(workdir), finished_steps(workdir / CHECKPOINTS)
    if exported is not None and exported >= max(steps, default=0):
        return workdir / EXPORT
    step = newest_whole(workdir, say, above=exported)
    if step is not None:
        (workdir / EXPORTED).unlink(missing_ok=True)  # killed from here on, the export is of an unknown step
        export_run(workdir, workdir / EXPORT, step, "raw", say)
        with new_file(workdir / EXPORTED) as partial:
            partial.write_text(json.dumps({"step": step}) + "\n")
    return workdir / EXPORT


@contextlib.contextmanager
def chosen_weights(
    source: str | pathlib.Path, weights: Weights | None, say: Say = to_stderr
) -> Generator[pathlib.Path, None, None]:
    """The pdgen checkpoint of the chosen weights of a run's newest whole step; of another folder, that folder.

    The average is exported for the while alone, into the workdir.

    Raises:
      CheckpointError: ``weights`` are given, but ``source`` is no run's workdir; and see ``find_checkpoint``.
      RunError: see ``export_run``.
    """
    source = pathlib.Path(source)
    if is_checkpoint(source) or not is_run(source):
        if weights is not None:
            raise CheckpointError(f"{source}: is no workdir of a training run, so there is nothing to choose; leave "
                                  "--weights out")  # fmt: skip
        yield source
    elif weights == "ema":
        with tempfile.TemporaryDirectory(prefix=".ema-", dir=source) as folder:
            export_run(source, pathlib.Path(folder) / EXPORT, newest_whole(source, say), weights, say)
            yield pathlib.Path(folder) / EXPORT
    else:
        yield find_checkpoint(source, say)


def newest_whole(workdir: pathlib.Path, say: Say, above: int | None = None) -> int | None:
    """The newest step whose files are as their digests say.

    Args:
      above: a step to be content with: None is returned if no later one is whole.

    Raises:
      CheckpointError: there is none.
    """
    for step in reversed(finished_steps(workdir / CHECKPOINTS)):
        if above is not None and step <= above:
            break
        folder = workdir / CHECKPOINTS / str(step)
        if not (fault := damage(folder)):
            return step
        say(f"{folder}: step {step} is damaged, {fault}; an older one is used")
    if above is None:
        raise CheckpointError(f"{workdir}: the training run has no whole checkpoint yet; wait for its first save")
    return None


def exported_step(workdir: pathlib.Path) -> int | None:
    """The step of a run's ``export/``; None if there is none or it is not known."""
    try:
        step = json.loads((workdir / EXPORTED).read_text())["step"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return step if is_checkpoint(workdir / EXPORT) else None


def export_run(workdir: pathlib.Path, target: pathlib.Path, step: int, weights: Weights, say: Say = to_stderr) -> None:
    """Writes one step of a run as a pdgen checkpoint, adapters merged; an existing one at ``target`` is replaced.

    Args:
      weights: "raw", or "ema" for the moving average of what is trained.

    Raises:
      RunError: the config or the checkpoint cannot be read, or the run keeps no average.
      FolderError: ``target`` cannot be written.
    """
    run = resolved(read_workdir(workdir), say)
    base = load_base(run)
    config = run.step(base.config)
    if weights == "ema" and not config.optimizer.ema_decay:
        raise RunError(f"{workdir}: the run keeps no moving average (optimizer.ema_decay is 0); take --weights=raw")
    params = {"model": stored_params(config, workdir / CHECKPOINTS / str(step), weights)}
    params["autoencoder"] = base.autoencoder
    write_checkpoint(
        target, base.config, params, tokenizer_files=base.tokenizer.files, source_json=base.source_json,
        overwrite=target.exists(), say=say,
    )  # fmt: skip
    say(f"exported step {step} to {target}")


def read_workdir(workdir: pathlib.Path) -> RunConfig:
    """The config of the run in ``workdir``. Raises RunError."""
    path = workdir / CONFIG_FILE
    try:
        return read_run_config(json.loads(path.read_text()))
    except (OSError, ValueError) as fault:
        raise RunError(f"{path}: cannot be read ({' '.join(str(fault).split())})") from None


def resolved(run: RunConfig, say: Say = to_stderr) -> RunConfig:
    """``run`` with the pdgen checkpoint that its ``init`` leads to."""
    return dataclasses.replace(run, init=str(find_checkpoint(run.init, say))) if run.init else run


def resolved_by_all(run: RunConfig, say: Say = to_stderr) -> RunConfig:
    """``resolved`` in every process of a run; the first goes first, since it may have to write an export."""
    if jax.process_index():
        meet()
    found = resolved(run, say)
    if not jax.process_index():
        meet()
    return found


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that is read when it is looked at; ``stored[layer]`` reads one layer."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray]

    def __getitem__(self, layer: int) -> np.ndarray:
        return self.read(layer)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(None), dtype)


def stored_params(config: StepConfig, folder: pathlib.Path, weights: Weights) -> dict[str, Any]:
    """The model's tree of ``Stored`` arrays of a run's checkpoint in ``folder``.

    Raises:
      RunError: an array is missing or has another shape.
    """
    state = abstract_state(config)
    part = "ema" if weights == "ema" else "trained"
    trained, frozen = _open(folder, part, getattr(state, part)), _open(folder, "frozen", state.frozen)
    if not config.lora.rank:
        return model_params(config, trained, frozen)
    adapters = traverse_util.flatten_dict(trained, sep="/")
    whole = traverse_util.flatten_dict(frozen, sep="/")
    for name in {name.rpartition("/")[0] for name in adapters}:
        factors = (whole[name], adapters[f"{name}/a"], adapters[f"{name}/b"])
        read = functools.partial(_merged, config.lora.scale, *factors)
        whole[name] = dataclasses.replace(whole[name], read=read)
    return traverse_util.unflatten_dict(whole, sep="/")


def _merged(scale: float, kernel: Stored, a: Stored, b: Stored, layer: int | None) -> np.ndarray:
    adapter = {"a": a.read(layer), "b": b.read(layer)}
    return np.asarray(merge({"kernel": kernel.read(layer)}, {"kernel": adapter}, scale)["kernel"])


def _open(folder: pathlib.Path, part: str, tree: Any) -> dict[str, Any]:
    """``Stored`` arrays in the place of the leaves of ``tree``."""
    leaves = traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict(
        {name: _open_array(folder / f"{part}/{name}".replace("/", "."), leaf) for name, leaf in leaves.items()}, sep="/"
    )


def _open_array(path: pathlib.Path, leaf: jax.ShapeDtypeStruct) -> Stored:
    kvstore = {"driver": "file", "path": str(path.absolute())}
    spec = {"driver": "zarr3", "kvstore": kvstore, "fill_missing_data_reads": False}
    try:
        array = ts.open(spec, open=True, read=True).result()
    except ValueError as fault:
        raise RunError(f"{path}: cannot be opened ({short(fault)})") from None
    if array.shape != leaf.shape or array.dtype.numpy_dtype != leaf.dtype:
        raise RunError(f"{path}: is {array.dtype.name} {list(array.shape)}, expected {leaf.dtype.name} "
                       f"{list(leaf.shape)}; the checkpoint is of another model")  # fmt: skip

    def read(layer: int | None) -> np.ndarray:
        return (array if layer is None else array[layer]).read().result()

    return Stored(leaf.shape, np.dtype(leaf.dtype), read)

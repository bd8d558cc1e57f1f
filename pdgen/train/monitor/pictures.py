"""Pictures along a training run: the same prompts and seeds every time, so that one sees the model learn."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from pdgen.checkpoints.load import Loaded
from pdgen.checkpoints.runs.base import Base
from pdgen.files import FolderError, Say, new_folder
from pdgen.flow.denoise import ImageSettings
from pdgen.sample.model import Model, make_model
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleError, SampleSettings
from pdgen.sequence.tokenizer import Tokenizer
from pdgen.sequence.trajectory import Trajectory
from pdgen.sequence.trajectory_folder import save_trajectory
from pdgen.sharding import without_mesh
from pdgen.train.monitor.run_log import pictures_folder
from pdgen.train.run_config import RunConfig, RunError

# A model that has learned little runs into every limit, so these are low.
SETTINGS = SampleSettings(max_images=3, max_prompt_tokens=256, image=ImageSettings(num_timesteps=25))


class Pictures:
    """Samples a run's prompts, prompt n with seed n, and keeps the trajectories in its folder.

    Everything is compiled at the first call and used again at the later ones. What cannot be drawn or written is said
    in one line, and the run goes on.

    Args:
      run: the config.
      workdir: gets ``pictures/<step>/<prompt>/``.
      say: takes a line for the reader.
      base: what the run builds on.
      settings: how it is sampled.

    Raises:
      RunError: a prompt is empty or too long.
    """

    def __init__(
        self, run: RunConfig, workdir: pathlib.Path, say: Say, base: Base, settings: SampleSettings = SETTINGS
    ) -> None:
        _check(run.prompts, base.tokenizer, settings.max_prompt_tokens)
        self._run, self._workdir, self._say, self._base, self._settings = run, workdir, say, base, settings
        self._model: Model | None = None  # without parameters: training needs the room

    def __call__(self, step: int, params: dict[str, Any]) -> None:
        """Draws with the model's parameters after ``step``, on one device, which holds them whole meanwhile.

        Pictures of that step that are there, since a run was lost after it, are replaced.
        """
        try:
            self._write(pictures_folder(self._workdir, step), self._draw(step, params))
        except (SampleError, FolderError, OSError) as fault:
            self._say(f"step {step}: no pictures ({fault}); the run goes on")

    def _draw(self, step: int, params: dict[str, Any]) -> list[Trajectory]:
        """One trajectory per prompt."""
        base = self._base
        device = SingleDeviceSharding(jax.local_devices()[0])  # the device itself would leave a leaf's type on the mesh
        with without_mesh():
            params = jax.device_put({"model": params, "autoencoder": base.autoencoder}, device)
            if self._model is None:
                model = make_model(Loaded(base.config, params, base.tokenizer), self._run.compute)
                self._model = dataclasses.replace(model, params={})
            model = dataclasses.replace(self._model, params=params, name=f"{self._workdir}, step {step}")
            return Sampler(model)(self._run.prompts, settings=self._settings)

    def _write(self, folder: pathlib.Path, trajectories: Sequence[Trajectory]) -> None:
        """The folder of a step, whole or not at all."""
        with new_folder(
            folder, kind="folder of pictures", replaceable=_is_pictures, overwrite=True, say=self._say
        ) as partial:
            for number, trajectory in enumerate(trajectories):
                save_trajectory(partial / f"{number:03d}", trajectory)


def _is_pictures(folder: pathlib.Path) -> bool:
    return any(folder.glob("*/trajectory.json"))


def _check(prompts: Sequence[str], tokenizer: Tokenizer, most: int) -> None:
    for number, prompt in enumerate(prompts):
        count = len(tokenizer.encode(prompt))
        if not prompt.strip() or count > most:
            fault = f"has {count} tokens, at most {most} are drawn from" if prompt.strip() else "is empty"
            raise RunError(f"config: prompts[{number}] {fault}; change it")

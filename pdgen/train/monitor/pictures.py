"""Pictures during a training run: the same prompts and seeds every time, to show what the model learns."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from pdgen.checkpoints.load import LoadedModel
from pdgen.checkpoints.runs.base import Base
from pdgen.files import Log, new_folder
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

# A model early in training runs into every limit, so the limits are low.
SETTINGS = SampleSettings(max_images=3, max_prompt_tokens=256, image=ImageSettings(num_timesteps=25))


class PictureSampler:
    """Samples a run's prompts, prompt n with seed n, and writes the trajectories to its folder.

    The first call compiles; later calls reuse the compiled functions. A failure to sample is reported in one line, and
    the next call tries again.

    Args:
      run: the config.
      workdir: the run's folder; the pictures are written to its ``pictures/<step>/<prompt>/``.
      log: receives lines for the user.
      base: the base model of the run.
      settings: settings of the sampler.

    Raises:
      RunError: a prompt is empty or too long.
    """

    def __init__(
        self, run: RunConfig, workdir: pathlib.Path, log: Log, base: Base, settings: SampleSettings = SETTINGS
    ) -> None:
        _check_prompts(run.prompts, base.tokenizer, settings.max_prompt_tokens)
        self._run, self._workdir, self._log, self._base, self._settings = run, workdir, log, base, settings
        self._model: Model | None = None  # without parameters: training needs the memory

    def __call__(self, step: int, params: dict[str, Any]) -> None:
        """Sample with the model's parameters after ``step`` on one device, which must have room for all of them.

        Existing pictures of the step, from a run that was killed after it, are replaced.

        Raises:
          FolderError, OSError: the pictures cannot be written.
        """
        try:
            trajectories = self._sample(step, params)
        except SampleError as fault:
            self._log(f"step {step}: no pictures ({fault}); the run continues")
            return
        folder = pictures_folder(self._workdir, step)
        with new_folder(
            folder, kind="folder of pictures", replaceable=_is_pictures, overwrite=True, log=self._log
        ) as partial:
            for number, trajectory in enumerate(trajectories):
                save_trajectory(partial / f"{number:03d}", trajectory)

    def _sample(self, step: int, params: dict[str, Any]) -> list[Trajectory]:
        """Return one trajectory per prompt."""
        base = self._base
        # Given the device instead of a sharding, device_put would keep the mesh in the type of each leaf.
        device = SingleDeviceSharding(jax.local_devices()[0])
        with without_mesh():
            params = jax.device_put({"model": params, "autoencoder": base.autoencoder}, device)
            if self._model is None:
                model = make_model(LoadedModel(base.config, params, base.tokenizer), self._run.compute)
                self._model = dataclasses.replace(model, params={})
            model = dataclasses.replace(self._model, params=params, name=f"{self._workdir}, step {step}")
            return Sampler(model)(self._run.prompts, settings=self._settings)


def _is_pictures(folder: pathlib.Path) -> bool:
    return any(folder.glob("*/trajectory.json"))


def _check_prompts(prompts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> None:
    for number, prompt in enumerate(prompts):
        count = len(tokenizer.encode(prompt))
        if not prompt.strip() or count > max_tokens:
            fault = f"has {count} tokens, expected at most {max_tokens}" if prompt.strip() else "is empty"
            raise RunError(f"config: prompts[{number}] {fault}; change it")

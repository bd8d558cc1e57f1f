"""Image generators for benchmarks: checkpoint, strategy and settings as one function of prompts and seeds."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from flax import traverse_util

from pdgen.checkpoints.load import compute_digest, find
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.folder import ImageGenerator
from pdgen.json_text import load_json
from pdgen.sample.sampler import Sampler, SampleSettings
from pdgen.sample.strategies.table import Strategy, Task, make_strategy, run_strategy
from pdgen.sequence.trajectory import Trajectory
from pdgen.teachers.advisers import Advisers

STRATEGY_PREFIX = "strategy."  # of the strategy's own settings, as in a trajectory's settings


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The model's folder, as ``find`` returns it, the strategy and the sampler's settings."""

    checkpoint: pathlib.Path
    strategy: Strategy
    settings: SampleSettings

    def facts(self) -> dict[str, Any]:
        """Return all that decides an image besides prompt and seed, as JSON values by name.

        Neither the checkpoint's path nor the batch size is included.
        """
        options = {STRATEGY_PREFIX + name: value for name, value in dataclasses.asdict(self.strategy).items()}
        settings = traverse_util.flatten_dict(dataclasses.asdict(self.settings), sep=".")
        del settings["batch_size"]
        facts = {"manifest": compute_digest(self.checkpoint), "strategy": self.strategy.name, **options, **settings}
        return json.loads(json.dumps(facts))  # tuples become lists, as in a file


def read_recipe(checkpoint: str, strategy: str, values: Mapping[str, Any]) -> Recipe:
    """Make a recipe from a user's arguments.

    Args:
      checkpoint: The checkpoint, see ``pdgen.checkpoints.load.find``.
      strategy: One of ``STRATEGIES``.
      values: Settings by their names in a trajectory's settings, such as "image.num_timesteps" or "strategy.n".

    Raises:
      EvaluationError: A setting is unknown or has an invalid value.
      StrategyError: The strategy is unknown.
      CheckpointError: The checkpoint does not exist.
    """
    own = {key: value for key, value in values.items() if key.startswith(STRATEGY_PREFIX)}
    chosen = make_strategy(strategy, **{key.removeprefix(STRATEGY_PREFIX): value for key, value in own.items()})
    settings = replace_settings(SampleSettings(), {key: value for key, value in values.items() if key not in own})
    return Recipe(find(checkpoint), chosen, settings)


def replace_settings(settings: SampleSettings, values: Mapping[str, Any]) -> SampleSettings:
    """Return settings with replaced values, by names such as "image.num_timesteps".

    Raises:
      EvaluationError: A setting is unknown or has an invalid value, or no image may be drawn.
    """
    for key, value in values.items():
        settings = _replace_field(settings, key.split("."), value, key)
    if not settings.max_images:
        raise EvaluationError("--setting=max_images=0: a benchmark needs images; give at least 1")
    return settings


def _replace_field(settings: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """Return a copy of nested dataclasses with one field replaced. The value is converted to the field's type."""
    fields = {field.name: field.type for field in dataclasses.fields(settings)}
    if path[0] not in fields:
        raise EvaluationError(f"--setting={key}: unknown; choose one of {', '.join(fields)}")
    old = getattr(settings, path[0])
    if len(path) > 1 and not dataclasses.is_dataclass(old):
        raise EvaluationError(f"--setting={key}: {path[0]} has no settings of its own")
    try:
        new = _replace_field(old, path[1:], value, key) if len(path) > 1 else msgspec.convert(value, fields[path[0]])
        return dataclasses.replace(settings, **{path[0]: new})
    except EvaluationError:
        raise
    except ValueError as fault:  # of msgspec, and of the settings' own checks
        raise EvaluationError(f"--setting={key}: {fault}") from None


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Parse NAME=VALUE pairs, a value JSON or else a string. Raises EvaluationError for another text."""
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise EvaluationError(f"--setting={assignment}: write NAME=VALUE, such as image.num_timesteps=50")
        try:
            values[name] = load_json(text)
        except ValueError:
            values[name] = text
    return values


def make_generator(recipe: Recipe, advisers: Advisers) -> ImageGenerator:
    """Make the function that generates images. Its first call loads the checkpoint."""
    sampler = functools.cache(lambda: Sampler.from_checkpoint(recipe.checkpoint))

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Trajectory]:
        drawn = run_strategy(recipe.strategy, Task(sampler(), prompts, seeds, recipe.settings, advisers))
        for trajectory in drawn:
            if not trajectory.images:
                raise EvaluationError(
                    f"seed {trajectory.seed}: {trajectory.prompt!r} ended without an image "
                    f"({trajectory.stop_reason}); raise max_images"
                )
        return drawn

    return generate

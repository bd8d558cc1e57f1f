"""What makes a benchmark's images: checkpoint, strategy and settings as one function of prompts and seeds."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from flax import traverse_util

from pdgen.checkpoints.load import digest_of, find
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.folder import Generate, Sample
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings
from pdgen.sample.strategies.table import Strategy, Task, make_strategy, run_strategy
from pdgen.teachers.advisers import Advisers

STRATEGY_PREFIX = "strategy."  # of the strategy's own settings, as trajectories name them


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model's folder, as ``find`` gives it, the strategy and the sampler's settings."""

    checkpoint: pathlib.Path
    strategy: Strategy
    settings: SampleSettings

    def facts(self) -> dict[str, Any]:
        """All that decides an image beside prompt and seed, as JSON has it, by one name each.

        Neither where the checkpoint lies nor how many images are made together is among them.
        """
        strategy = {"": self.strategy.name, **{f".{k}": v for k, v in dataclasses.asdict(self.strategy).items()}}
        settings = traverse_util.flatten_dict(dataclasses.asdict(self.settings), sep=".")
        del settings["batch_size"]
        facts = {
            "manifest": digest_of(self.checkpoint),
            **{f"strategy{name}": value for name, value in strategy.items()},
            **settings,
        }
        return json.loads(json.dumps(facts))


def read_recipe(checkpoint: str, strategy: str, values: Mapping[str, Any]) -> Recipe:
    """A recipe from what a user names.

    Args:
      checkpoint: see ``pdgen.checkpoints.load.find``.
      strategy: of ``STRATEGIES``.
      values: settings by the names that stand in a trajectory's settings: "image.num_timesteps", "strategy.n".

    Raises:
      EvaluationError: a setting is unknown or its value impossible.
      StrategyError, CheckpointError: there is no such strategy or checkpoint.
    """
    own = {key: value for key, value in values.items() if key.startswith(STRATEGY_PREFIX)}
    chosen = make_strategy(strategy, **{key.removeprefix(STRATEGY_PREFIX): value for key, value in own.items()})
    settings = changed(SampleSettings(), {key: value for key, value in values.items() if key not in own})
    return Recipe(find(checkpoint), chosen, settings)


def changed(settings: SampleSettings, values: Mapping[str, Any]) -> SampleSettings:
    """The settings with other values, by names such as "image.num_timesteps".

    Raises:
      EvaluationError: a setting is unknown or its value impossible, or no image may be drawn.
    """
    for key, value in values.items():
        settings = _changed(settings, key.split("."), value, key)
    if not settings.max_images:
        raise EvaluationError("--setting=max_images=0: a benchmark needs images; give at least 1")
    return settings


def _changed(settings: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """A copy of nested dataclasses with one field changed; its value is converted to the field's type."""
    fields = {field.name: field.type for field in dataclasses.fields(settings)}
    if path[0] not in fields:
        raise EvaluationError(f"--setting={key}: unknown; of {', '.join(fields)}")
    held = getattr(settings, path[0])
    if len(path) > 1 and not dataclasses.is_dataclass(held):
        raise EvaluationError(f"--setting={key}: {path[0]} has no settings of its own")
    try:
        new = _changed(held, path[1:], value, key) if len(path) > 1 else msgspec.convert(value, fields[path[0]])
        return dataclasses.replace(settings, **{path[0]: new})
    except EvaluationError:
        raise
    except ValueError as fault:  # of msgspec, and of the settings' own checks
        raise EvaluationError(f"--setting={key}: {fault}") from None


def read_values(assignments: Sequence[str]) -> dict[str, Any]:
    """ "name=value" pairs; a value is JSON, or else a string. Raises EvaluationError for what is no pair."""
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise EvaluationError(f"--setting={assignment}: write NAME=VALUE, such as image.num_timesteps=50")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def make_generate(recipe: Recipe, advisers: Advisers, say: Callable[[str], None] = lambda line: None) -> Generate:
    """The function that makes images; the checkpoint is loaded at its first call.

    Args:
      advisers: whom strategies ask from outside.
      say: told a line after every segment.
    """
    sampler = functools.cache(lambda: Sampler.from_checkpoint(recipe.checkpoint))

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        task = Task(sampler(), prompts, seeds, recipe.settings, advisers, say)
        drawn = run_strategy(recipe.strategy, task)
        for trajectory in drawn:
            if not trajectory.images:
                raise EvaluationError(
                    f"seed {trajectory.seed}: {trajectory.prompt!r} ended without an image "
                    f"({trajectory.stop_reason}); raise max_images"
                )
        return [Sample(trajectory.images[-1], trajectory) for trajectory in drawn]

    return generate

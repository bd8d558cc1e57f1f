"""What strategies share: their task, questions to advisers, sums of costs."""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import PIL.Image

from pdgen.flow.denoise import ImageSettings
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings, make_base_settings
from pdgen.sequence.trajectory import Mode, Trajectory
from pdgen.shapes.world import GRID
from pdgen.teachers.advisers import Advisers, make_exact_advisers
from pdgen.teachers.protocols import Critic, Declined, Verifier
from pdgen.teachers.verifier import ExactCritic, ExactVerifier

Costs = Mapping[str, float]
WHOLE_CALL = ("batch_seconds", "compile_seconds")
_THREADS = 16  # concurrent questions; an endpoint has a limit of its own


class StrategyError(ValueError):
    """An unknown strategy or setting, or a value out of range; one line names the possible ones."""


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raise StrategyError where a setting is below its minimum."""
    if not value >= minimum:
        raise StrategyError(f"{name}={value}: must be at least {minimum}")


@dataclasses.dataclass(frozen=True)
class Task:
    """The input of a strategy.

    Attributes:
      prompts, seeds: of the trajectories; ``derive_seed`` gives all other seeds.
      settings: of every drawn trajectory; most strategies choose the mode themselves.
      advisers: by default the exact ones of shapes world.
      progress: takes a line after every segment and every choice.
    """

    sampler: Sampler
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: SampleSettings = SampleSettings()
    advisers: Advisers = make_exact_advisers()
    progress: Callable[[str], None] = lambda line: None

    def draw(
        self,
        mode: Mode,
        prompts: Sequence[str],
        seeds: Sequence[int],
        given: Sequence[Sequence[PIL.Image.Image]] | None = None,
    ) -> list[Trajectory]:
        """Draw one trajectory per prompt; in mode "edit" with the guidance of edits."""
        changes = {"image": self.edit_settings} if mode == "edit" else {}
        settings = dataclasses.replace(self.settings, mode=mode, **changes)
        return self.sampler(prompts, seeds, settings, given=given, progress=self.progress)

    def fix_batch_size(self) -> "Task":
        """Return the task with one batch size for all its calls, so that smaller ones compile nothing new."""
        settings = self.sampler.resolve_batch_size(self.settings, len(self.prompts))
        return dataclasses.replace(self, settings=settings)

    @property
    def edit_settings(self) -> ImageSettings:
        """Settings of an image that changes another one: as refinements, or with the base model's guidance of edits."""
        base = make_base_settings("edit").image
        guidance = {"image_scale": base.image_scale, "interval": base.interval, "renorm": base.renorm}
        return self.settings.refine or dataclasses.replace(self.settings.image, **guidance)


def check_pictures(task: Task, mode: Mode, judge: Critic | Verifier | None = None) -> None:
    """Raise StrategyError where a task draws no picture, or none that the adviser ``judge`` can read."""
    settings = task.settings
    if not settings.count_images_left(mode, 0):
        raise StrategyError(
            f"mode {mode} with max_images={settings.max_images} draws no picture, which this strategy "
            "needs; choose max_images of at least 1 and a mode that draws"
        )
    height, width = settings.height, settings.width
    if isinstance(judge, ExactCritic | ExactVerifier) and (height != width or 0 < height < GRID):
        raise StrategyError(
            f"height={height} and width={width}: shapes world's exact advisers read squares of {GRID} "
            "pixels or more; choose such a size, or advisers on an endpoint"
        )


@runtime_checkable
class Strategy(Protocol):
    """A strategy with its settings, a frozen dataclass."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __call__(self, task: Task) -> list[Trajectory]:
        """Return one trajectory per prompt.

        Raises:
          StrategyError: the task cannot have the pictures that the strategy needs; before anything is drawn or asked.
          SampleError: as ``Sampler``.
          TeacherError: an adviser cannot be reached.
        """


def derive_seed(seed: int, number: int) -> int:
    """Return the seed of a trajectory's candidate ``number``, within [0, 2^32); candidate 0 has ``seed`` itself."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) if number else seed


class Advice(NamedTuple):
    """An adviser's answer, None where it declined, and the costs of the question."""

    answer: Any
    costs: Costs


class Score(NamedTuple):
    """A verifier's score within [0, 1], 0 where it declined, and the costs of the question."""

    value: float
    costs: Costs


def query(task: Task, question: Callable[..., Any], arguments: Iterable[tuple]) -> list[Advice]:
    """Call ``question(*one)`` of an adviser for each of ``arguments``, several at a time."""

    def query_one(one: tuple) -> Advice:
        try:
            return Advice(question(*one), {"questions": 1.0, "declined": 0.0})
        except Declined as fault:
            task.progress(f"declined: {fault}")
            return Advice(None, {"questions": 1.0, "declined": 1.0})

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(query_one, arguments))


def score_pictures(task: Task, prompts: Sequence[str], pictures: Sequence[PIL.Image.Image]) -> list[Score]:
    """Let the verifier score each picture."""
    pairs = [(prompt, np.asarray(picture)) for prompt, picture in zip(prompts, pictures, strict=True)]
    return [Score(answer or 0.0, costs) for answer, costs in query(task, task.advisers.verifier.score, pairs)]


def sum_costs(costs: Iterable[Costs]) -> dict[str, float]:
    """Add costs, name by name; leave out a batch's seconds, which belong to no single trajectory."""
    summed: dict[str, float] = collections.defaultdict(float)
    for name, value in itertools.chain.from_iterable(c.items() for c in costs):
        if name not in WHOLE_CALL:
            summed[name] += value
    return dict(summed)

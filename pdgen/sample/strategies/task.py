"""What strategies share: their task, asking advisers, adding up costs."""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import PIL.Image

from pdgen.flow.denoise import ImageSettings
from pdgen.sample.engine import Sampler
from pdgen.sample.settings import SampleSettings, base_settings
from pdgen.sequence.trajectory import Mode, Trajectory
from pdgen.shapes.world import GRID
from pdgen.teachers.advisers import Advisers, make_exact_advisers
from pdgen.teachers.protocols import Critic, Declined, Verifier
from pdgen.teachers.verifier import ExactCritic, ExactVerifier

Costs = Mapping[str, float]
WHOLE_CALL = ("batch_seconds", "compile_seconds")
_ASKED_TOGETHER = 16  # questions under way at a time; an endpoint has a limit of its own


class StrategyError(ValueError):
    """No such strategy, or a setting that it does not have or that is out of range; one line says which there are."""


def at_least(name: str, value: float, least: float) -> None:
    """Raises StrategyError where a setting is below its bound."""
    if not value >= least:
        raise StrategyError(f"{name}={value}: must be at least {least}")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a strategy is called with.

    Attributes:
      prompts, seeds: of the trajectories; ``candidate_seed`` derives all other seeds.
      settings: of every trajectory that is drawn; most strategies choose the mode themselves.
      advisers: shapes world's exact ones by default.
      progress: called with a line after every segment and every pick.
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
        """One trajectory per prompt; in mode "edit" with the guidance of edits."""
        changes = {"image": self.edit_image} if mode == "edit" else {}
        settings = dataclasses.replace(self.settings, mode=mode, **changes)
        return self.sampler(prompts, seeds, settings, given=given, progress=self.progress)

    def grouped(self) -> "Task":
        """The task with one size of groups for all its batches, so that those of fewer rows compile nothing."""
        return dataclasses.replace(self, settings=self.sampler.grouped(self.settings, len(self.prompts)))

    @property
    def edit_image(self) -> ImageSettings:
        """How an image that changes another one is denoised: as refinements are, or with the base model's guidance."""
        base = base_settings("edit").image
        guidance = {"image_scale": base.image_scale, "interval": base.interval, "renorm": base.renorm}
        return self.settings.refine or dataclasses.replace(self.settings.image, **guidance)


def check_pictures(task: Task, mode: Mode, judge: Critic | Verifier | None = None) -> None:
    """Raises StrategyError where a task of a strategy has no picture, or none that its judge can read."""
    settings = task.settings
    if not settings.images_left(mode, 0):
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

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]

    def __call__(self, task: Task) -> list[Trajectory]:
        """One trajectory per prompt.

        Raises:
          StrategyError: the task cannot have the pictures that the strategy needs; before anything is drawn or asked.
          SampleError: as ``Sampler``.
          TeacherError: an adviser cannot be asked at all.
        """


def candidate_seed(seed: int, number: int) -> int:
    """The seed of a trajectory's ``number``-th candidate, within [0, 2^32); that of number 0 is ``seed`` itself."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) if number else seed


class Advice(NamedTuple):
    """An adviser's answer, None where he declined, and what asking cost."""

    answer: Any
    costs: Costs


def ask(task: Task, question: Callable[..., Any], about: Iterable[tuple]) -> list[Advice]:
    """An adviser's answer to ``question(*arguments)`` for each of ``about``; several are asked at a time."""

    def one(arguments: tuple) -> Advice:
        try:
            return Advice(question(*arguments), {"questions": 1.0, "declined": 0.0})
        except Declined as fault:
            task.progress(f"declined: {fault}")
            return Advice(None, {"questions": 1.0, "declined": 1.0})

    with concurrent.futures.ThreadPoolExecutor(_ASKED_TOGETHER) as pool:
        return list(pool.map(one, about))


def ask_scores(task: Task, prompts: Sequence[str], pictures: Sequence[PIL.Image.Image]) -> list[Advice]:
    """The verifier's score of each picture, 0 where he declines."""
    about = [(prompt, np.asarray(picture)) for prompt, picture in zip(prompts, pictures, strict=True)]
    return [a._replace(answer=a.answer or 0.0) for a in ask(task, task.advisers.verifier.score, about)]


def total(costs: Iterable[Costs]) -> dict[str, float]:
    """The sum, name by name, of what each trajectory has for itself: a batch's seconds are no one's own."""
    summed: dict[str, float] = collections.defaultdict(float)
    for name, value in itertools.chain.from_iterable(c.items() for c in costs):
        if name not in WHOLE_CALL:
            summed[name] += value
    return dict(summed)

"""Stories, which define what a trajectory draws step by step, and the builder of their records.

The same code is used for shapes world and for real pictures. They differ in the teachers, and only shapes world has
scenes.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Generator
from typing import Any, Literal

import msgspec
import numpy as np

from pdgen.sequence.images import Picture, encode_png
from pdgen.sequence.trajectory import Image, Record, Text, parse_plan
from pdgen.shapes import inspections, language
from pdgen.shapes.graph import SceneGraph, Step
from pdgen.shapes.placement import LATTICE, Placement
from pdgen.shapes.world import Scene
from pdgen.synthesis.base.captions import write_report
from pdgen.synthesis.faults import corrupt
from pdgen.teachers.protocols import Declined, Judge, Painter, Stroke, Verdict, Writer

WRONG_PICTURE = "picture rejected by the judge"
HELD_OUT = "held out from training"


class BuildStopped(Exception):
    """Raised to abandon a sample because another sample has stopped the build."""


class Rejected(Exception):
    """A sample that is not used. ``reason`` is one of a few texts, for counting."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Teachers:
    """The teachers of a build.

    Attributes:
      painter, judge, writer: see ``pdgen.teachers.protocols``.
      placement: placement of the scenes for the painter of shapes world; None: the painter needs no scenes.
      judge_explains: whether inspections use the judge's words; otherwise ``shapes.inspections`` writes them.
      redraws: further attempts if the judge rejects a picture.
      assumed: whether answers are assumed, as in a dry run, so that none rejects a sample.
      stop: once set, no teacher is called any more, and ``BuildStopped`` is raised.
    """

    painter: Painter
    judge: Judge
    writer: Writer
    placement: Placement | None = LATTICE
    judge_explains: bool = False
    redraws: int = 0
    assumed: bool = False
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)


@contextlib.contextmanager
def consult(teachers: Teachers) -> Generator[None]:
    """Call a teacher in the block. Raises BuildStopped if the build has stopped, Rejected if the teacher declines."""
    if teachers.stop.is_set():
        raise BuildStopped
    try:
        yield
    except Declined:
        raise Rejected("judge declined") from None


@dataclasses.dataclass(frozen=True)
class Story:
    """The plan of a trajectory.

    Attributes:
      task: the task of the prompt.
      prompt: the text of the prompt.
      asked: the graph of the prompt.
      steps: one per picture, with the ids of ``asked``.
      scenes: the scene after each step; None if the painter needs none. Empty before ``prompts.place_story``.
    """

    task: str
    prompt: str
    asked: SceneGraph
    steps: tuple[Step, ...]
    scenes: tuple[Scene | None, ...] = ()

    def get_graph_before(self, number: int) -> SceneGraph | None:
        """Return the graph before step ``number``; None for step 0."""
        return self.steps[number - 1].graph if number else None


class RecordBuilder:
    """A builder that adds segments to a record. ``rng`` determines wordings and the painter's seeds.

    Attributes:
      segments: the segments so far; the first is the story's prompt.
      steps: the steps of the plans so far.
      picture: the last picture; None before the first.
      scene: the scene of the last picture; None if there is none.
      verdicts: the judge's verdicts by number of segment.
    """

    def __init__(self, story: Story, teachers: Teachers, rng: np.random.Generator):
        self.story, self.teachers, self.rng = story, teachers, rng
        self.segments: list[Text | Image] = [Text(stage="prompt", text=story.prompt, target=False)]
        self.steps: list[Step] = []
        self.picture: Picture | None = None
        self.scene: Scene | None = None
        self.verdicts: dict[int, Verdict] = {}

    @property
    def plans(self) -> list[str]:
        """The texts of the plans so far."""
        return [s.text for s in self.segments if isinstance(s, Text) and s.stage == "plan"]

    def add_plan(self, step: Step, text: str, target: bool = True) -> None:
        """Add a plan for ``step``."""
        self.steps.append(step)
        self.segments.append(Text(stage="plan", text=text, target=target))

    def add_inspection(self, text: str, faulty: int | None = None) -> None:
        """Add an inspection. In shapes world it first describes the picture, so that the verdict follows from it.

        ``faulty`` is the id of the entity that the picture does not show as planned.
        """
        if self.scene is not None and not self.teachers.judge_explains:
            text = f"{write_report(self.scene, self.steps[-1].graph, faulty)} {text}"
        self.segments.append(Text(stage="inspect", text=text, target=True))

    def _paint(self, scene: Scene | None, previous: Picture | None) -> tuple[Picture, Verdict]:
        """Paint and judge a picture of the last plan. It is not added to the record. Raises Rejected."""
        instruction, _ = parse_plan(self.plans[-1])
        stroke = Stroke(instruction, previous, scene, int(self.rng.integers(2**31)))
        self.scene = scene
        with consult(self.teachers):
            picture = self.teachers.painter.paint(stroke)
        with consult(self.teachers):
            return picture, self.teachers.judge.judge_picture(self.plans[-1], picture, previous)

    def add_image(
        self, picture: Picture, verdict: Verdict, stage: Literal["sketch", "refine"] = "sketch", target: bool = True
    ) -> None:
        """Add a picture and the judge's verdict on it."""
        self.verdicts[len(self.segments)] = verdict
        self.segments.append(Image(stage=stage, png=encode_png(picture), target=target))
        self.picture = picture

    def judge_plan(self) -> Verdict:
        """Judge the last plan, which must be the last segment. Raises Rejected if the judge declines."""
        with consult(self.teachers):
            verdict = self.teachers.judge.judge_plan(self.story.prompt, self.plans)
        self.verdicts[len(self.segments) - 1] = verdict
        return verdict

    def check_verdict(self, accepted: bool, verdict: Verdict, reason: str) -> None:
        """Raise Rejected with ``reason`` if the verdict differs from ``accepted``."""
        if verdict.accept != accepted and not self.teachers.assumed:
            raise Rejected(reason)

    def add_drawn_image(
        self, scene: Scene | None, previous: Picture | None, stage: Literal["sketch", "refine"] = "sketch"
    ) -> None:
        """Paint the last plan until the judge accepts a picture, and add it. Raises Rejected if none is accepted."""
        for _ in range(1 + self.teachers.redraws):
            picture, verdict = self._paint(scene, previous)
            if verdict.accept:
                return self.add_image(picture, verdict, stage)
        raise Rejected(WRONG_PICTURE)

    def add_draft(self, scene: Scene | None, previous: Picture | None, accepted: bool, reason: str) -> None:
        """Add a picture of the last plan as context. Raises Rejected if the verdict differs from ``accepted``."""
        picture, verdict = self._paint(scene, previous)
        self.check_verdict(accepted, verdict, reason)
        self.add_image(picture, verdict, target=False)

    def add_agreement(self, number: int) -> None:
        """Add an inspection that finds no fault in step ``number``."""
        if self.teachers.judge_explains:
            return self.add_inspection(self.verdicts[len(self.segments) - 1].analysis)
        self.add_inspection(inspections.write_agreement(self.rng, self.story.steps[number].graph, self.story.asked))

    def add_turn(self, number: int) -> None:
        """Add a whole turn: a plan, a sketch and an inspection that finds no fault."""
        self.add_plan_of_step(number)
        self.add_drawn_image(self.story.scenes[number], self.picture)
        self.add_agreement(number)

    def add_plan_of_step(self, number: int) -> None:
        """Add the plan of step ``number``."""
        step = self.story.steps[number]
        self.add_plan(step, language.write_plan(self.rng, self.story.get_graph_before(number), step, self.story.asked))

    def add_corrected_turn(self, number: int) -> str:
        """Add a plan, a faulty draft, its inspection and the refined picture. Returns the kind of fault."""
        self.add_plan_of_step(number)
        step, scene, previous = self.story.steps[number], self.story.scenes[number], self.picture
        assert scene is not None and self.teachers.placement is not None  # see ``can_be_faulty``
        present = [e.id for e in step.graph.entities if e.id in step.entities]
        entity = present[int(self.rng.integers(len(present)))]
        draft, kind = corrupt(self.rng, scene, step.graph, entity, self.teachers.placement)
        self.add_draft(draft, previous, False, "fault not seen by the judge")
        self.add_inspection(inspections.write_draft_fault(self.rng, kind, step.graph, entity, draft), entity)
        self.add_drawn_image(scene, previous, "refine")
        return kind

    def can_be_faulty(self, number: int) -> bool:
        """Return whether step ``number`` shows an entity that can be drawn wrong."""
        step, scene = self.story.steps[number], self.story.scenes[number]
        return scene is not None and any(e.id in step.entities for e in step.graph.entities)

    def build_record(self, source: str, complete: bool, positive: bool | None = None, note: str = "") -> Record:
        """Build the record, without an id. Its ``scene`` holds task, graphs, verdicts and note as plain data."""
        story = self.story
        scene: dict[str, Any] = {
            "task": story.task,
            "prompt_graph": msgspec.to_builtins(story.asked),
            "steps": [msgspec.to_builtins(step) for step in self.steps],
            "judge": self.teachers.judge.name,
            "verdicts": [verdict_to_dict(number, verdict) for number, verdict in sorted(self.verdicts.items())],
        }
        if positive is not None:
            scene["positive"] = positive
        if note:
            scene["note"] = note
        return Record(id="", source=source, complete=complete, segments=self.segments, scene=scene)


def verdict_to_dict(segment: int, verdict: Verdict) -> dict[str, Any]:
    """Convert a verdict on a segment to plain data."""
    return {"segment": segment, **msgspec.to_builtins(verdict)}

"""Stories: what a trajectory is to draw, step by step, and the record that comes of drawing it.

The same code draws shapes world and real pictures: only the teachers differ, and that shapes world knows where
everything stands.
"""

import dataclasses
import threading
from typing import Any, Literal

import msgspec
import numpy as np

from pdgen.sequence.images import Picture, encode_png
from pdgen.sequence.trajectory import Image, Record, Text, parse_plan
from pdgen.shapes import inspections, language
from pdgen.shapes.graph import SceneGraph, Step
from pdgen.shapes.placement import LATTICE, Placement
from pdgen.shapes.world import Scene
from pdgen.synthesis.faults import corrupt
from pdgen.teachers.protocols import Declined, Judge, Painter, Stroke, Verdict, Writer

WRONG_PICTURE = "picture rejected by the judge"
HELD_OUT = "held out from training"


class BuildStopped(Exception):
    """Other samples made the build end, so this one is given up."""


class Rejected(Exception):
    """A sample that is not kept. ``reason`` is one of few, for counting."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Teachers:
    """Who draws, judges and writes.

    Attributes:
      painter, judge, writer: see ``pdgen.teachers.protocols``.
      placement: of the scenes that the painter draws, which is that of shapes world; None: they have none.
      judge_explains: the words of inspections are the judge's; else ``language`` writes them.
      redraws: further tries where the judge rejects a picture.
      assumed: nobody is asked, as in a dry run, so no answer rejects a sample.
      stop: once it is set, nobody is asked any more: ``BuildStopped`` is raised.
    """

    painter: Painter
    judge: Judge
    writer: Writer
    placement: Placement | None = LATTICE
    judge_explains: bool = False
    redraws: int = 0
    assumed: bool = False
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)


@dataclasses.dataclass(frozen=True)
class Story:
    """What is to be drawn.

    Attributes:
      task: what the prompt was made for.
      prompt: its text.
      asked: what it asks for.
      steps: the way there, one per picture; ids are those of ``asked``.
      scenes: as placed after each step; None where the painter decides.
    """

    task: str
    prompt: str
    asked: SceneGraph
    steps: tuple[Step, ...]
    scenes: tuple[Scene | None, ...]

    def get_graph_before(self, number: int) -> SceneGraph | None:
        """The graph before step ``number``; None for the first, number 0."""
        return self.steps[number - 1].graph if number else None


class RecordBuilder:
    """A record on its way: segments so far, the judge's verdicts by number of segment, and the last picture.

    Args:
      story: its prompt begins the record.
      teachers: they draw and judge.
      rng: of wordings and of the painter's seeds.
    """

    def __init__(self, story: Story, teachers: Teachers, rng: np.random.Generator):
        self.story, self.teachers, self.rng = story, teachers, rng
        self.segments: list[Text | Image] = [Text(stage="prompt", text=story.prompt, target=False)]
        self.steps: list[Step] = []
        self.picture: Picture | None = None
        self.verdicts: dict[int, Verdict] = {}

    @property
    def plans(self) -> list[str]:
        """The plans so far."""
        return [s.text for s in self.segments if isinstance(s, Text) and s.stage == "plan"]

    def add_plan(self, step: Step, text: str, target: bool = True) -> None:
        """Adds a plan, which is for ``step``."""
        self.steps.append(step)
        self.segments.append(Text(stage="plan", text=text, target=target))

    def add_inspection(self, text: str) -> None:
        """Adds an inspection."""
        self.segments.append(Text(stage="inspect", text=text, target=True))

    def paint(self, scene: Scene | None, previous: Picture | None) -> Picture:
        """A picture after the last plan; nothing is added."""
        self._check_stop()
        instruction, _ = parse_plan(self.plans[-1])
        seed = int(self.rng.integers(2**31))
        return self.teachers.painter.paint(Stroke(instruction, previous, scene, seed))

    def add_image(
        self,
        picture: Picture,
        verdict: Verdict,
        stage: Literal["given", "sketch", "refine"] = "sketch",
        target: bool = True,
    ) -> None:
        """Adds a picture and the judge's verdict on it."""
        self.verdicts[len(self.segments)] = verdict
        self.segments.append(Image(stage=stage, png=encode_png(picture), target=target))
        self.picture = picture

    def judge_picture(self, picture: Picture, previous: Picture | None) -> Verdict:
        """The judge's verdict on a picture of the last plan. Raises Rejected where he declines."""
        self._check_stop()
        try:
            return self.teachers.judge.judge_picture(self.plans[-1], picture, previous)
        except Declined:
            raise Rejected("judge declined") from None

    def judge_plan(self) -> Verdict:
        """The judge's verdict on the last plan, just added. Raises Rejected where he declines."""
        self._check_stop()
        try:
            verdict = self.teachers.judge.judge_plan(self.story.prompt, self.plans)
        except Declined:
            raise Rejected("judge declined") from None
        self.verdicts[len(self.segments) - 1] = verdict
        return verdict

    def _check_stop(self) -> None:
        if self.teachers.stop.is_set():
            raise BuildStopped

    def check_verdict(self, accepted: bool, verdict: Verdict, reason: str) -> None:
        """Raises Rejected with the reason where the verdict is another one."""
        if verdict.accept != accepted and not self.teachers.assumed:
            raise Rejected(reason)

    def add_drawn_image(self, scene: Scene | None, previous: Picture | None, stage: str = "sketch") -> None:
        """Draws the last plan until the judge accepts it, and adds the picture. Raises Rejected if he never does."""
        for _ in range(1 + self.teachers.redraws):
            picture = self.paint(scene, previous)
            verdict = self.judge_picture(picture, previous)
            if verdict.accept:
                return self.add_image(picture, verdict, stage)
        raise Rejected(WRONG_PICTURE)

    def add_draft(self, scene: Scene | None, previous: Picture | None, accepted: bool, reason: str) -> None:
        """Adds a picture of the last plan that is context alone. Raises Rejected where the verdict is another one."""
        picture = self.paint(scene, previous)
        verdict = self.judge_picture(picture, previous)
        self.check_verdict(accepted, verdict, reason)
        self.add_image(picture, verdict, target=False)

    def add_agreement(self, number: int) -> None:
        """Adds the inspection that finds step ``number`` as planned."""
        if self.teachers.judge_explains:
            return self.add_inspection(self.verdicts[len(self.segments) - 1].analysis)
        story = self.story
        self.add_inspection(
            inspections.write_agreement(self.rng, story.get_graph_before(number), story.steps[number], story.asked)
        )

    def add_turn(self, number: int) -> None:
        """A whole turn: plan, sketch and the inspection that agrees."""
        self.add_plan_of_step(number)
        self.add_drawn_image(self.story.scenes[number], self.picture)
        self.add_agreement(number)

    def add_plan_of_step(self, number: int) -> None:
        """Adds the plan of step ``number``."""
        step = self.story.steps[number]
        self.add_plan(step, language.write_plan(self.rng, self.story.get_graph_before(number), step, self.story.asked))

    def add_corrected_turn(self, number: int) -> str:
        """A plan, a faulty draft, its inspection and the refined picture. Returns the fault's kind."""
        self.add_plan_of_step(number)
        step, scene, previous = self.story.steps[number], self.story.scenes[number], self.picture
        here = [e.id for e in step.graph.entities if e.id in step.entities]
        entity = here[int(self.rng.integers(len(here)))]
        draft, kind = corrupt(self.rng, scene, step.graph, entity, self.teachers.placement)
        self.add_draft(draft, previous, False, "fault not seen by the judge")
        self.add_inspection(inspections.write_draft_fault(self.rng, kind, step.graph, entity, draft))
        self.add_drawn_image(scene, previous, "refine")
        return kind

    def can_be_faulty(self, number: int) -> bool:
        """Whether something of step ``number`` is in its picture, so that it can be drawn wrong."""
        step, scene = self.story.steps[number], self.story.scenes[number]
        return scene is not None and any(e.id in step.entities for e in step.graph.entities)

    def build_record(
        self, name: str, source: str, complete: bool, positive: bool | None = None, note: str = ""
    ) -> Record:
        """The record, with what is known of it as plain data in ``scene``."""
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
        return Record(id=name, source=source, complete=complete, segments=self.segments, scene=scene)


def verdict_to_dict(segment: int, verdict: Verdict) -> dict[str, Any]:
    """A verdict on a segment as plain data."""
    return {"segment": segment, **msgspec.to_builtins(verdict)}

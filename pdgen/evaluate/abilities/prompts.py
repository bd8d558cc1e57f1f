"""Prompts of the abilities benchmark: pictures to draw, to edit and to read in shapes world, row by row.

    drawing   one thing, one thing of an unseen pair of color and noun, two things, two in a position, 2 to 4 of a
              kind, three to six things
    editing   a picture and an instruction; a row for each of ``graph.OPERATIONS``
    reading   a picture and a question; a row for each of ``questions.KINDS``
    thinking  the prompts of drawing, with a thought before the picture

All prompts come from a stream of seeds that no data set uses. Held-out pairs are in no training sample. The prompts of
the other rows are of kinds that occur in training, and short ones occur there verbatim.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pdgen.evaluate.folder import ImageJob
from pdgen.evaluate.shapes import generate_scenes
from pdgen.sequence.modes import Mode
from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.shapes import language
from pdgen.shapes.graph import OPERATIONS, SceneGraph, Step
from pdgen.shapes.held_out import is_held_out
from pdgen.shapes.instruction import Instruction, make_instruction
from pdgen.shapes.lexicon import NUMBERS
from pdgen.synthesis.base.questions import KINDS
from pdgen.synthesis.settings import DatasetSettings, Edit, TextToImage, Understand
from pdgen.synthesis.story import Teachers
from pdgen.synthesis.subsets import make_sample
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.exact.painter import ShapesPainter
from pdgen.teachers.exact.writer import RulesWriter

COUNT = 300  # prompts of a row, and the least number of its draws
SIZE = 64  # pixels of a given picture's side, as in the data
_STREAM = 2**48  # above the seed of any data set
_COMPOSITIONS = range(3, 7)  # things

UNSEEN = "one thing, unseen pair"
_TASKS = {
    "one thing": "colors",
    UNSEEN: "colors",
    "two things": "color_attr",
    "position": "position",
    "counting": "counting",
}
DRAWING = (*_TASKS, *(f"{NUMBERS[n - 1]} things" for n in _COMPOSITIONS))
EDITING = OPERATIONS
READING = KINDS
GROUPS: dict[str, tuple[Mode, tuple[str, ...]]] = {
    "drawing": ("single_pass", DRAWING),
    "editing": ("edit", EDITING),
    "reading": ("understand", READING),
    "thinking": ("think", DRAWING),
}

_SEEDED = ("drawing", "editing", "reading")  # groups with prompts of their own


class AbilityCase(NamedTuple):
    """A prompt and its correct answer.

    Attributes:
      group, row: See ``GROUPS``.
      prompt: The prompt, instruction or question.
      asked: What the drawn picture must show. None if none is drawn.
      given: The PNG of the picture to edit or read; b"" if there is none.
      instruction: The instruction of an edit.
      answer: The answer to a question.
    """

    group: str
    row: str
    prompt: str
    asked: SceneGraph | None = None
    given: bytes = b""
    instruction: Instruction | None = None
    answer: str = ""

    @property
    def mode(self) -> Mode:
        """The mode in which the model is sampled."""
        return GROUPS[self.group][0]


class AbilityDraw(NamedTuple):
    """A case and one seed. The job's name gives group, row, prompt and sample."""

    job: ImageJob
    case: AbilityCase


def make_draws(
    count: int = COUNT, seed: int = 0, rows: Mapping[str, tuple[str, ...]] | None = None
) -> list[AbilityDraw]:
    """Return all draws, row after row. Equal arguments give equal draws.

    Args:
      count: The largest number of prompts of a row. A row with fewer prompts is sampled several times.
      seed: Selects the prompts. It is the seed of the first draw; each further one has the next.
      rows: The rows by group. None for all.
    """
    wanted = {group: names for group, (_, names) in GROUPS.items()} if rows is None else rows
    made: list[AbilityDraw] = []
    for group, names in wanted.items():
        for row in names:
            cases = _MAKERS[group](row, count, seed)
            for number, case in enumerate(cases):
                for sample in range(-(-count // len(cases))):
                    name = f"{group}/{row.replace(',', '').replace(' ', '_')}/{number:05d}-{sample:02d}"
                    made.append(AbilityDraw(ImageJob(name, case.prompt, seed + len(made)), case))
    return made


def _make_thinking_cases(row: str, count: int, seed: int) -> list[AbilityCase]:
    return [case._replace(group="thinking") for case in _make_drawing_cases(row, count, seed)]


def _compute_row_seed(group: str, row: str, seed: int) -> int:
    places = [(one, name) for one in _SEEDED for name in GROUPS[one][1]]
    return _STREAM + seed * len(places) + places.index((group, row))


def _make_drawing_cases(row: str, count: int, seed: int) -> list[AbilityCase]:
    if row not in _TASKS:
        things = DRAWING.index(row) - len(_TASKS) + _COMPOSITIONS.start
        part = TextToImage(count, tuple(float(n == things) for n in range(1, things + 1)), {"prompt": 1.0})
        records = _make_records("text_to_image", count, _compute_row_seed("drawing", row, seed), text_to_image=part)
        return [
            AbilityCase(
                "drawing", row, _get_text(r.segments[0]), msgspec.convert(_get_scene(r)["prompt_graph"], SceneGraph)
            )
            for r in records
        ]
    rng = np.random.default_rng(_compute_row_seed("drawing", row, seed))
    every = [graph for graph in generate_scenes(_TASKS[row]) if is_held_out(graph) == (row == UNSEEN)]
    graphs = [every[i] for i in sorted(rng.permutation(len(every))[:count])]
    return [AbilityCase("drawing", row, language.write_prompt(rng, graph, "short"), graph) for graph in graphs]


def _make_editing_cases(row: str, count: int, seed: int) -> list[AbilityCase]:
    part = Edit(count, operations={row: 1.0})
    cases = []
    for record in _make_records("edit", count, _compute_row_seed("editing", row, seed), edit=part):
        given, prompt, _ = record.segments
        before = msgspec.convert(_get_scene(record)["before"], SceneGraph)
        (step,) = msgspec.convert(_get_scene(record)["steps"], list[Step])
        cases.append(
            AbilityCase("editing", row, _get_text(prompt), step.graph, _get_png(given), make_instruction(before, step))
        )
    return cases


def _make_reading_cases(row: str, count: int, seed: int) -> list[AbilityCase]:
    part = Understand(count, questions={row: 1.0})
    records = _make_records("understand", count, _compute_row_seed("reading", row, seed), understand=part)
    return [
        AbilityCase("reading", row, _get_text(prompt), given=_get_png(given), answer=_get_text(answer))
        for given, prompt, answer in (record.segments for record in records)
    ]


def _get_text(segment: Text | Image) -> str:
    assert isinstance(segment, Text)
    return segment.text


def _get_png(segment: Text | Image) -> bytes:
    assert isinstance(segment, Image)
    return segment.png


def _get_scene(record: Record) -> dict[str, Any]:
    assert record.scene is not None  # every record of shapes world has one
    return record.scene


_MAKERS: dict[str, Callable[[str, int, int], list[AbilityCase]]] = {
    "drawing": _make_drawing_cases,
    "editing": _make_editing_cases,
    "reading": _make_reading_cases,
    "thinking": _make_thinking_cases,
}


def _make_records(subset: str, count: int, seed: int, **part: Any) -> list[Record]:
    settings = DatasetSettings(seed=seed, image_size=SIZE, tasks={"composition": 1.0}, **part)
    teachers = Teachers(ShapesPainter(SIZE), ExactJudge(), RulesWriter())
    return [make_sample(settings, teachers, subset, number)[0] for number in range(count)]

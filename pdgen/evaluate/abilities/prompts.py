"""What the base model of shapes world can do: prompts to draw, pictures to edit and pictures to read, row by row.

    drawing   one thing, one thing of an unseen pair of colour and noun, two things, two in a position, 2 to 4 of a
              kind, three to six things
    editing   a picture and an instruction; a row for each of ``graph.OPERATIONS``
    reading   a picture and a question; a row for each of ``questions.KINDS``

All is drawn from a stream of seeds that no data set has. Pairs that are held out are in no training sample; the
prompts of all other rows are of kinds that occur in training, and short ones of them occur there word by word.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pdgen.evaluate.folder import Job
from pdgen.evaluate.shapes import scenes_of
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

COUNT = 300  # prompts of a row, and images that are drawn for it at least
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
}


class Case(NamedTuple):
    """A prompt and what is right.

    Attributes:
      group, row: of ``GROUPS``.
      prompt: what to draw, the instruction or the question.
      asked: what the drawn picture is to show; None where none is drawn.
      given: the PNG of the picture that is edited or read; b"" where there is none.
      instruction: of an edit.
      answer: to a question.
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
        """In which mode the model is asked."""
        return GROUPS[self.group][0]


class Draw(NamedTuple):
    """A case that is sampled from one seed; the job's name tells group, row, prompt and sample."""

    job: Job
    case: Case


def draws(count: int = COUNT, seed: int = 0, rows: Mapping[str, tuple[str, ...]] | None = None) -> list[Draw]:
    """All that is to be sampled, row after row; the same for equal arguments.

    Args:
      count: prompts of a row at most; a row that has fewer is sampled several times, so that as many are drawn.
      seed: decides which prompts; that of the first draw, each further one has the next.
      rows: by group those that are wanted; None for all.
    """
    wanted = {group: names for group, (_, names) in GROUPS.items()} if rows is None else rows
    made: list[Draw] = []
    for group, names in wanted.items():
        for row in names:
            cases = _MAKERS[group](row, count, seed)
            for number, case in enumerate(cases):
                for sample in range(-(-count // len(cases))):
                    name = f"{group}/{row.replace(',', '').replace(' ', '_')}/{number:05d}-{sample:02d}"
                    made.append(Draw(Job(name, case.prompt, seed + len(made)), case))
    return made


def _row_seed(group: str, row: str, seed: int) -> int:
    places = [(one, name) for one, (_, names) in GROUPS.items() for name in names]
    return _STREAM + seed * len(places) + places.index((group, row))


def _drawing(row: str, count: int, seed: int) -> list[Case]:
    if row not in _TASKS:
        things = DRAWING.index(row) - len(_TASKS) + _COMPOSITIONS.start
        part = TextToImage(count, tuple(float(n == things) for n in range(1, things + 1)), {"prompt": 1.0})
        records = _records("text_to_image", count, _row_seed("drawing", row, seed), text_to_image=part)
        return [Case("drawing", row, _text(r.segments[0]), _graph(_scene(r)["prompt_graph"])) for r in records]
    rng = np.random.default_rng(_row_seed("drawing", row, seed))
    every = [graph for graph in scenes_of(_TASKS[row]) if is_held_out(graph) == (row == UNSEEN)]
    graphs = [every[i] for i in sorted(rng.permutation(len(every))[:count])]
    return [Case("drawing", row, language.write_prompt(rng, graph, "short"), graph) for graph in graphs]


def _editing(row: str, count: int, seed: int) -> list[Case]:
    part = Edit(count, operations={row: 1.0})
    cases = []
    for record in _records("edit", count, _row_seed("editing", row, seed), edit=part):
        given, prompt, _ = record.segments
        before, (step,) = _graph(_scene(record)["before"]), msgspec.convert(_scene(record)["steps"], list[Step])
        cases.append(Case("editing", row, _text(prompt), step.graph, _png(given), make_instruction(before, step)))
    return cases


def _reading(row: str, count: int, seed: int) -> list[Case]:
    part = Understand(count, questions={row: 1.0})
    records = _records("understand", count, _row_seed("reading", row, seed), understand=part)
    told = [record.segments for record in records]
    return [
        Case("reading", row, _text(prompt), given=_png(given), answer=_text(answer)) for given, prompt, answer in told
    ]


def _text(segment: Text | Image) -> str:
    assert isinstance(segment, Text)
    return segment.text


def _png(segment: Text | Image) -> bytes:
    assert isinstance(segment, Image)
    return segment.png


def _scene(record: Record) -> dict[str, Any]:
    assert record.scene is not None  # every record of shapes world has one
    return record.scene


_MAKERS: dict[str, Callable[[str, int, int], list[Case]]] = {
    "drawing": _drawing,
    "editing": _editing,
    "reading": _reading,
}


@functools.cache
def _teachers() -> Teachers:
    return Teachers(ShapesPainter(SIZE), ExactJudge(), RulesWriter())


def _records(subset: str, count: int, seed: int, **part: Any) -> list[Record]:
    settings = DatasetSettings(seed=seed, image_size=SIZE, tasks={"composition": 1.0}, **part)
    return [make_sample(settings, _teachers(), subset, number)[0] for number in range(count)]


def _graph(told: Any) -> SceneGraph:
    return msgspec.convert(told, SceneGraph)

"""Planners, which divide a prompt into drawing steps: one exact for shapes world, one on a chat endpoint."""

import zlib

import msgspec
import numpy as np

from pdgen.sequence.trajectory import format_plan
from pdgen.shapes import language
from pdgen.shapes.graph import SceneError, grow
from pdgen.shapes.parse import parse
from pdgen.teachers.chat import ChatRequest
from pdgen.teachers.endpoint import Endpoint, EndpointTeacher
from pdgen.teachers.protocols import Declined

PROMPT_VERSION = 1
MAX_STEPS = 5

PLAN_RULES = """\
Plan how to draw a picture step by step. The first step draws on an empty canvas, every later one edits the picture \
of the step before. Draw large and far things first, then what stands before, on or beside them; one kind of thing a \
step, at most {max_steps} steps, a single one for a simple prompt. The last step completes all that the prompt asks \
for; nothing else is drawn.

Answer with JSON of the given schema, steps in order:
- instruction: one imperative sentence that says what to add or change now, with number, colour, size and place as \
the prompt states them ("Add two red apples to the left of the bowl.").
- description: one or two sentences on the whole picture after the step, with all that earlier steps drew.
No tags, no numbering, one line each.
"""


class PlanStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step as the model writes it."""

    instruction: str
    description: str


class PlanAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The steps of a prompt."""

    steps: list[PlanStep]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("there is no step")
        for number, step in enumerate(self.steps, 1):
            if not (step.instruction.strip() and step.description.strip()):
                raise ValueError(f"step {number}: instruction and description must both say something")
        self.to_plans()  # raises ValueError for texts with tags

    def to_plans(self) -> list[str]:
        """Convert the steps to plans, one line each."""
        return [format_plan(" ".join(s.instruction.split()), " ".join(s.description.split())) for s in self.steps]


_ASSUMED = PlanAnswer([PlanStep("Draw the first thing that the prompt names.", "The first thing.")] * 3)


class ExactPlanner:
    """The exact ``Planner`` of shapes world: it parses the prompt and adds one or two entities per step.

    Args:
      seed: determines order and wording, together with the prompt.
      max_steps: maximum steps of a prompt, at least 1.
    """

    name = "exact"

    def __init__(self, seed: int = 0, max_steps: int = MAX_STEPS):
        self._seed, self._max_steps = seed, max_steps

    def plan(self, prompt: str) -> list[str]:
        """Write the plans of ``grow``'s steps. Raises Declined if a word is not understood or nothing is named."""
        rng = np.random.default_rng((self._seed, zlib.crc32(prompt.encode())))
        try:
            graph = parse(prompt)
            if not graph.entities:
                raise SceneError(f"{prompt!r} names nothing to draw")
            steps = grow(rng, graph, self._max_steps)
            befores = [None, *(step.graph for step in steps)]
            return [language.write_plan(rng, before, step) for before, step in zip(befores, steps)]
        except SceneError as fault:
            raise Declined(f"planner 'exact': {fault}") from None


class EndpointPlanner(EndpointTeacher):
    """A ``Planner`` on a chat endpoint; ``max_steps`` is the maximum number of steps of a prompt, at least 1."""

    def __init__(self, endpoint: Endpoint, max_steps: int = MAX_STEPS):
        super().__init__(endpoint)
        self._max_steps = max_steps

    def plan(self, prompt: str) -> list[str]:
        """Return the model's plans."""

        def check(answer: PlanAnswer) -> None:
            if len(answer.steps) > self._max_steps:
                raise ValueError(f"{len(answer.steps)} steps, at most {self._max_steps} are allowed")

        rules = PLAN_RULES.format(max_steps=self._max_steps)
        assumed = PlanAnswer(_ASSUMED.steps[: self._max_steps])
        content = (f"Prompt:\n{prompt}",)
        request = ChatRequest("plan steps", PROMPT_VERSION, rules, content, PlanAnswer, assumed, check)
        return self._endpoint.ask(request).to_plans()

"""The writer without a model, which parses and rewrites everything that ``parse`` understands."""

import numpy as np

from pdgen.sequence.trajectory import TAG, TrajectoryError, format_plan, parse_plan
from pdgen.shapes import language
from pdgen.shapes.graph import SceneError, SceneGraph
from pdgen.shapes.instruction import write_instruction
from pdgen.shapes.parse import parse, parse_instruction
from pdgen.teachers.protocols import Declined, TeacherError

_DESCRIPTION_STARTS = tuple(form.split(" {")[0] for form in language.DESCRIPTIONS)
TRIES = 8  # wordings drawn until one differs


class RulesWriter:
    """A ``Writer`` for the texts of ``language`` and GenEval's prompts."""

    name = "rules"

    def parse(self, prompt: str) -> SceneGraph:
        """Parse a prompt to a graph. Raises Declined naming the word that is not understood."""
        try:
            return parse(prompt)
        except SceneError as fault:
            raise Declined(f"writer 'rules': {fault}") from None

    def rewrite(self, text: str, seed: int) -> str:
        """Rewrite a prompt, a description or a plan in other words.

        In rare cases all random draws give the same wording, which is then returned.

        Raises:
          TeacherError: the text has a tag but is not a plan, or a part of it is not understood.
        """
        rng = np.random.default_rng(seed)
        try:
            draws = (self._reword(rng, text) for _ in range(TRIES))
            return next((words for words in draws if words != text), text)
        except (SceneError, TrajectoryError) as fault:
            raise TeacherError(f"writer 'rules': {fault}") from None

    def _reword(self, rng: np.random.Generator, text: str) -> str:
        if TAG.search(text) is None:
            if text.startswith(_DESCRIPTION_STARTS):
                return language.write_description(rng, parse(text))
            return language.write_prompt(rng, parse(text), "composition" if text.endswith(".") else "short")
        instruction, description = parse_plan(text)
        order = parse_instruction(instruction)
        graph = parse(description)
        first = order.operation == "add" and len(order.entities) == len(graph.entities)
        return format_plan(write_instruction(rng, order, first), language.write_description(rng, graph))

"""The writer without a model, which understands the texts of ``language`` and GenEval's prompts."""

from pdgen.shapes.graph import SceneError, SceneGraph
from pdgen.shapes.parse import parse
from pdgen.teachers.protocols import Declined


class RulesWriter:
    """The ``Writer`` of shapes world."""

    name = "rules"

    def parse(self, prompt: str) -> SceneGraph:
        """Parse a prompt to a graph. Raises Declined naming the word that is not understood."""
        try:
            return parse(prompt)
        except SceneError as fault:
            raise Declined(f"writer 'rules': {fault}") from None

"""Critics, which list what is wrong with a picture, and verifiers, which score how much of its prompt is right.

Those of shapes world are exact: they parse the prompt and detect the shapes. The others use any vision model behind a
chat endpoint.
"""

import itertools
import zlib
from collections.abc import Iterator

import msgspec
import numpy as np

from pdgen.sequence.images import Picture, encode_png
from pdgen.shapes.detector import detect_background
from pdgen.shapes.graph import SceneError, SceneGraph
from pdgen.shapes.matching import get_words
from pdgen.shapes.parse import parse
from pdgen.shapes.world import find_relations
from pdgen.teachers.chat import ChatRequest
from pdgen.teachers.endpoint import EndpointTeacher
from pdgen.teachers.exact.judge import detect_cached, make_verdict
from pdgen.teachers.exact.picture_check import MatchedPicture, describe_detection, match_detections, write_inspections
from pdgen.teachers.protocols import Declined, Verdict
from pdgen.teachers.remote_teachers import JudgeAnswer

PROMPT_VERSION = 1

CRITIC_RULES = """\
You see a picture that was drawn for a prompt, and say what of it is not as the prompt asks: things that are missing \
or too many, another kind, number, colour, size, position or relation, another background, prominent things that \
nobody asked for, things broken beyond recognition. Details that the prompt leaves open are no faults. Count \
carefully. Left and right are the viewer's.

Answer with JSON of the given schema:
- analysis: one to three short plain sentences (at most 60 words) on what you compared and every fault you see.
- accept: true if there is no fault, else false.
- correction: null if you accept; else short imperative sentences, one for each fault, that an image editor can \
follow without seeing the prompt ("Make the car red. Remove the dog on the left.").
No tags, no lists. Never mention this task, the schema or yourself.
"""

VERIFIER_RULES = """\
You see a picture that was drawn for a prompt. List what the prompt asks for as separate checks and say of each \
whether the picture shows it: for every kind of thing one check that it is there, one of its number, one of each \
stated attribute; one of each stated position or relation; one of the background if it is stated. Add one check \
that is not right for each prominent thing that the prompt does not ask for. A check of something that is not there \
is not right. Count carefully. Left and right are the viewer's.

Answer with JSON of the given schema: checks, each with what (a few words, such as "two dogs") and right (true or \
false). At least one check.
"""


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One requirement, and whether it is met."""

    what: str
    right: bool


class VerifierAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A verifier's checks as the model writes them."""

    checks: list[Check]

    def __post_init__(self) -> None:
        if not self.checks or not all(check.what.strip() for check in self.checks):
            raise ValueError("there is no check, or one that does not say what")


_ACCEPTED = JudgeAnswer("The picture shows all that the prompt asks for, in the right number and colour.", True, None)
_SCORED = VerifierAnswer([Check(f"thing number {i}, which the prompt asks for", True) for i in range(6)])


class ExactCritic:
    """The exact ``Critic`` of shapes world. Equal inputs give equal answers; ``seed`` determines the wording."""

    name = "exact"

    def __init__(self, seed: int = 0):
        self._seed = seed

    def critique(self, prompt: str, picture: Picture) -> Verdict:
        """List all faults of the picture and their corrections.

        Raises:
          Declined: the prompt is not understood.
          ValueError: the picture is not square, or smaller than 32 pixels.
        """
        seen, graph = _read_picture("critic", prompt, picture)
        words = (self._seed, zlib.crc32(prompt.encode()), zlib.crc32(picture.tobytes()))
        found = [make_verdict(text) for text in write_inspections(np.random.default_rng(words), seen, graph)]
        if not found:
            return Verdict(accept=True, analysis="The picture shows all that the prompt asks for.")
        analysis, correction = (" ".join(parts) for parts in zip(*((v.analysis, v.correction) for v in found)))
        return Verdict(accept=False, analysis=analysis, correction=correction)


class ExactVerifier:
    """The exact ``Verifier`` of shapes world."""

    name = "exact"

    def score(self, prompt: str, picture: Picture) -> float:
        """Compute the share of the prompt's requirements that the picture meets.

        Each entity has requirements for its number, its noun and each attribute, which all its instances must have.
        Each relation must hold between all instances of both entities. The background is a requirement if stated. A
        missing entity meets none of its requirements, and each further shape counts as one that is not met.

        Raises:
          Declined: the prompt is not understood.
          ValueError: the picture is not square, or smaller than 32 pixels.
        """
        met = list(_check_requirements(*_read_picture("verifier", prompt, picture)))
        return sum(met) / len(met)


def _read_picture(role: str, prompt: str, picture: Picture) -> tuple[MatchedPicture, SceneGraph]:
    try:
        graph = parse(prompt)
    except SceneError as fault:
        raise Declined(f"{role} 'exact': {fault}") from None
    return match_detections(detect_cached(picture), detect_background(picture), graph), graph


def _check_requirements(seen: MatchedPicture, graph: SceneGraph) -> Iterator[bool]:
    """Yield for each requirement whether it is met; at least one."""
    for entity in graph.entities:
        shown = [describe_detection(o) for o in seen.objects_of(entity.id)]
        yield len(shown) == entity.count
        for key, value in get_words(entity).items():
            yield bool(shown) and all(looks.get(key) == value for looks in shown)
    for relation in graph.relations:
        pairs = list(itertools.product(seen.objects_of(relation.subject), seen.objects_of(relation.reference)))
        yield bool(pairs) and all(relation.kind in find_relations(a, b) for a, b in pairs)
    if graph.background is not None:
        yield graph.background == seen.background
    yield from (False for _ in seen.extra)


class EndpointCritic(EndpointTeacher):
    """A ``Critic`` on a chat endpoint."""

    def critique(self, prompt: str, picture: Picture) -> Verdict:
        """Return the model's critique."""
        content = (f"Prompt:\n{prompt}", "The picture:", encode_png(picture))
        request = ChatRequest("critique", PROMPT_VERSION, CRITIC_RULES, content, JudgeAnswer, _ACCEPTED)
        return self._endpoint.ask(request).to_verdict()


class EndpointVerifier(EndpointTeacher):
    """A ``Verifier`` on a chat endpoint."""

    def score(self, prompt: str, picture: Picture) -> float:
        """Return the share of the model's checks that are right."""
        content = (f"Prompt:\n{prompt}", "The picture:", encode_png(picture))
        request = ChatRequest("verify", PROMPT_VERSION, VERIFIER_RULES, content, VerifierAnswer, _SCORED)
        checks = self._endpoint.ask(request).checks
        return sum(check.right for check in checks) / len(checks)

"""A judge and a writer on a chat endpoint, and their system prompts.

``PROMPT_VERSION`` is part of the cache key of every answer. Increase it if a change must discard the cached answers.
"""

from collections.abc import Sequence

import msgspec

from pdgen.sequence.images import Picture, encode_png
from pdgen.sequence.trajectory import format_inspection
from pdgen.shapes.graph import MAX_COUNT, PLACES, Entity, SceneGraph
from pdgen.teachers.chat import ChatRequest
from pdgen.teachers.endpoint import EndpointTeacher
from pdgen.teachers.protocols import Declined, TeacherError, Verdict

PROMPT_VERSION = 1

_ANSWER_RULES = """
Answer with JSON of the given schema:
- analysis: one or two short plain sentences (at most 40 words) that name what you compared and, if there is a \
fault, exactly what is wrong. No tags, no lists.
- accept: true if there is no fault, else false.
- correction: null if you accept; else one short imperative sentence that says what to do, such as \
"Make the car red." or "Plan two dogs instead of three.". Never mention this task, the schema or yourself.
"""

PLAN_RULES = (
    """\
A picture is drawn in several steps. Before each step there is a plan: <ins> says what to add or change now, <des> \
describes the whole picture after the step. You check the LAST plan against the user's prompt; earlier plans are \
given as context and have been drawn already.

The last plan has a fault only if it contradicts the prompt, that is:
- it gives something another colour, size, material or other attribute, another number, another kind, another \
position or relation, or another background than the prompt asks for;
- it adds a thing that the prompt neither asks for nor needs (a plain setting or surface is allowed);
- it removes something the prompt asks for;
- <ins> and <des> contradict each other, or <des> drops something that earlier plans drew and that <ins> does not \
remove.

These are NOT faults:
- anything the prompt asks for that is merely not drawn yet: later steps may add it;
- fewer things than asked for so far, unless <ins> or <des> says that the picture is finished;
- details the prompt leaves open (a colour or a place it does not state);
- other wording for the same content.
"""
    + _ANSWER_RULES
)

PICTURE_RULES = (
    """\
A picture is drawn in several steps. You see the picture after one step and the step's plan: <ins> says what was to \
be added or changed, <des> describes the whole picture after the step. Where the picture before the step is given, \
compare the two. You check the picture against the plan.

The picture has a fault if:
- something that <ins> or <des> names is missing, or shown with another colour, number, kind, size, position or \
relation;
- it shows a further prominent thing that neither <ins> nor <des> names;
- something that <ins> does not concern changed clearly from the picture before (another thing, colour, place or \
style; small differences of texture or light are no fault);
- a thing is broken beyond recognition.

Judge only what the plan states, from what is visible. What the plan does not mention yet is NOT a fault, nor is a \
detail it leaves open. Count carefully. Left and right are the viewer's.
"""
    + _ANSWER_RULES
)

PARSE_RULES = f"""\
Turn a prompt for a picture into a scene graph. Keep to what the prompt states; add nothing.

- entities: one for each kind of thing with the same attributes, in the order in which a painter would draw them \
(large and far things first). id: 0, 1, 2, ... noun: singular, lower case, without colour or number ("traffic \
light"). count: 1 to {MAX_COUNT}; take 1 where no number is said, 3 for "some" or "several". attributes: an object of \
lower-case words, such as {{"color": "red", "size": "small", "material": "wooden", "action": "sleeping"}}; use \
"place" for a stated part of the picture, one of: {", ".join(PLACES)}. Two entities must differ in noun or attributes.
- relations: subject and reference are ids of two different entities; kind is "left of", "right of", "above" or \
"below" where that is meant, else a short lower-case preposition ("on", "behind", "holding"). State each relation once.
- background: the setting in a few lower-case words ("a snowy forest"), or null if the prompt says none. It is no \
entity.

If the text is no description of something visible, or contradicts itself, or asks for more than {MAX_COUNT} of one \
thing, give graph null and the reason in a sentence. Else give the graph, and reason "".
"""


class JudgeAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A judge's answer as the model writes it, with the reasons before the verdict."""

    analysis: str
    accept: bool
    correction: str | None

    def __post_init__(self) -> None:
        self.to_verdict()

    def to_verdict(self) -> Verdict:
        """Convert to a verdict; an empty correction counts as None. Raises ValueError if the answer is inconsistent."""
        correction = " ".join((self.correction or "").split()) or None
        analysis = " ".join(self.analysis.split())
        if not analysis:
            raise ValueError("the analysis is empty")
        format_inspection(analysis, correction)
        return Verdict(accept=self.accept, analysis=analysis, correction=correction)


class ParseAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The graph of a prompt, or the reason why it has none."""

    reason: str
    graph: SceneGraph | None

    def __post_init__(self) -> None:
        if self.graph is None and not self.reason.strip():
            raise ValueError("no graph and no reason")
        if self.graph is not None and not self.graph.entities:
            raise ValueError("the graph has no entity; if there is nothing to draw, give graph null and the reason")
        for relation in self.graph.relations if self.graph else ():
            if relation.kind != relation.kind.strip().lower() or not relation.kind:
                raise ValueError(f"relation {relation.kind!r} is no lower-case preposition")


_ACCEPTED = JudgeAnswer(
    analysis="The plan adds what the prompt asks for, with the right colour and place; the rest is still to come.",
    accept=True,
    correction=None,
)
# A dry run assumes three things in every prompt, so that it also counts the requests of the steps that draw them.
_THINGS = tuple(Entity(i, f"thing {i}", attributes={"color": "red", "size": "small"}) for i in range(3))
_PARSED = ParseAnswer(reason="", graph=SceneGraph(_THINGS))


class EndpointJudge(EndpointTeacher):
    """A ``Judge`` on a chat endpoint."""

    def judge_plan(self, prompt: str, plans: Sequence[str]) -> Verdict:
        """Judge whether the last of ``plans`` agrees with the prompt."""
        if not plans:
            raise TeacherError("judge plan: there is no plan to judge")
        earlier = "\n".join(f"{n}. {plan}" for n, plan in enumerate(plans[:-1], 1)) or "none"
        content = f"Prompt:\n{prompt}\n\nEarlier plans:\n{earlier}\n\nLast plan:\n{plans[-1]}"
        request = ChatRequest("judge plan", PROMPT_VERSION, PLAN_RULES, (content,), JudgeAnswer, _ACCEPTED)
        return self._endpoint.ask(request).to_verdict()

    def judge_picture(self, plan: str, picture: Picture, previous: Picture | None = None) -> Verdict:
        """Judge whether the picture shows what ``plan`` describes and leaves everything else unchanged."""
        before = () if previous is None else ("The picture before the step:", encode_png(previous))
        content = (f"Plan of the step:\n{plan}", *before, "The picture after the step:", encode_png(picture))
        request = ChatRequest("judge picture", PROMPT_VERSION, PICTURE_RULES, content, JudgeAnswer, _ACCEPTED)
        return self._endpoint.ask(request).to_verdict()


class EndpointWriter(EndpointTeacher):
    """A ``Writer`` on a chat endpoint."""

    def parse(self, prompt: str) -> SceneGraph:
        """Parse any prompt to a graph. Raises Declined with the reason if it has none."""
        content = (f"Prompt:\n{prompt}",)
        request = ChatRequest("parse", PROMPT_VERSION, PARSE_RULES, content, ParseAnswer, _PARSED)
        answer = self._endpoint.ask(request)
        if answer.graph is None:
            raise Declined(f"{self.name}: {prompt[:60]!r} has no scene graph: {answer.reason}")
        return answer.graph

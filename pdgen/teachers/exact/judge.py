"""The exact judge of shapes world, which parses the texts and detects the shapes.

It has no access to the painted scene, nor to the graph that a prompt was made from.
"""

import functools
import zlib
from collections.abc import Sequence

import numpy as np

from pdgen.sequence.images import Picture
from pdgen.sequence.trajectory import TrajectoryError, parse_plan, parse_refine
from pdgen.shapes.detector import Detection, detect, detect_background
from pdgen.shapes.graph import SceneError, SceneGraph
from pdgen.shapes.instruction import Instruction
from pdgen.shapes.matching import align
from pdgen.shapes.parse import parse, parse_instruction
from pdgen.shapes.phrases import phrase_scene
from pdgen.teachers.exact.picture_check import check_picture, check_unchanged, match_detections
from pdgen.teachers.exact.plan_check import check_plan, describe_missing
from pdgen.teachers.protocols import Declined, TeacherError, Verdict


class ExactJudge:
    """The exact ``Judge`` of shapes world. Equal inputs give equal verdicts; ``seed`` determines the wording."""

    name = "exact"

    def __init__(self, seed: int = 0):
        self._seed = seed

    def judge_plan(self, prompt: str, plans: Sequence[str]) -> Verdict:
        """Judge whether the last plan agrees with the prompt and the plan before it, and whether its parts agree.

        A contradiction is another colour, noun, count, relation, size, fill, place or background than the prompt asks
        for, or something that the prompt does not ask for. What the plan does not state yet is no contradiction.

        Raises:
          Declined: a text is not a plan or is not understood; the message names it.
          TeacherError: there is no plan.
        """
        if not plans:
            raise TeacherError("exact judge: there is no plan to judge")
        rng = self._rng(prompt, *plans)
        try:
            asked = parse(prompt)
            before = _read_plan(plans[-2])[1] if len(plans) > 1 else None
            instruction, description = _read_plan(plans[-1])
            if (text := check_plan(rng, asked, before, instruction, description)) is not None:
                return make_verdict(text)
        except (SceneError, TrajectoryError) as fault:
            raise Declined(f"exact judge: {fault}") from None
        rest = describe_missing(asked, align(asked, description))
        return Verdict(accept=True, analysis=f"The plan agrees with the prompt; {rest}.")

    def judge_picture(self, plan: str, picture: Picture, previous: Picture | None = None) -> Verdict:
        """Judge whether the picture shows everything in the plan's description, and no further shape.

        With ``previous``, also judge whether everything else is unchanged; see ``picture_check`` for the tolerances.

        Raises:
          Declined: the text is not a plan or is not understood.
          ValueError: a picture is not square, or smaller than 32 pixels.
        """
        try:
            instruction, description = _read_plan(plan)
            rng = self._rng(plan, zlib.crc32(picture.tobytes()))
            found = detect_cached(picture)
            text = check_picture(rng, match_detections(found, detect_background(picture), description), description)
            if text is None and previous is not None:
                text = check_unchanged(rng, instruction, (previous, detect_cached(previous)), (picture, found))
        except (SceneError, TrajectoryError) as fault:
            raise Declined(f"exact judge: {fault}") from None
        if text is not None:
            return make_verdict(text)
        shown, _ = phrase_scene(description, [e.id for e in description.entities])
        return Verdict(accept=True, analysis=f"The picture shows {shown}, as planned.")

    def _rng(self, *parts: str | int) -> np.random.Generator:
        return np.random.default_rng((self._seed, *(zlib.crc32(str(part).encode()) for part in parts)))


def _read_plan(text: str) -> tuple[Instruction, SceneGraph]:
    instruction, description = parse_plan(text)
    return parse_instruction(instruction), parse(description)


def detect_cached(picture: Picture) -> tuple[Detection, ...]:
    """Detect the shapes of a picture as ``detect``, with a cache."""
    return _detect(picture.tobytes(), picture.shape)


@functools.lru_cache(maxsize=64)  # each picture is used twice: after its step, and before the next one
def _detect(data: bytes, shape: tuple[int, ...]) -> tuple[Detection, ...]:
    return tuple(detect(np.frombuffer(data, np.uint8).reshape(shape)))


def make_verdict(inspection: str) -> Verdict:
    """Convert an inspection that found a fault to a verdict."""
    return Verdict(
        accept=False, analysis=inspection.partition("<refine>")[0].strip(), correction=parse_refine(inspection)
    )

"""The exact judge on hand-made pictures: correct ones, every kind of fault, noise and stains."""

import numpy as np
import pytest
from msgspec.structs import replace

from pdgen.shapes.painter import paint
from pdgen.shapes.world import Scene, SceneObject
from pdgen.teachers.exact.judge import ExactJudge
from tests.teachers.exact.test_judge import FIRST, JUDGE, SECOND, WORDINGS, assert_rejected, plan

CIRCLE = SceneObject(0, 0, "circle", "red", 10, 2, 11)
SQUARE = SceneObject(1, 1, "square", "blue", 10, 20, 11)
STAR = SceneObject(2, 2, "star", "yellow", 10, 11, 22)
BOTH = Scene((CIRCLE, SQUARE))


PICTURES = [
    # (plan, scene, scene before, words of the analysis or the correction; None: accepted)
    (SECOND, BOTH, None, None),
    (SECOND, BOTH, Scene((CIRCLE,)), None),
    (SECOND, Scene((CIRCLE, replace(SQUARE, color="green"))), Scene((CIRCLE,)), ["green", "blue"]),
    (SECOND, Scene((CIRCLE, replace(SQUARE, shape="diamond"))), Scene((CIRCLE,)), ["diamond", "square"]),
    (SECOND, Scene((CIRCLE,)), Scene((CIRCLE,)), ["blue square"]),
    (SECOND, Scene((CIRCLE, replace(SQUARE, x=2, y=0))), Scene((CIRCLE,)), ["left of"]),
    (SECOND, Scene((CIRCLE, SQUARE, STAR)), Scene((CIRCLE,)), ["yellow star"]),
    (SECOND, Scene((CIRCLE, SQUARE, replace(SQUARE, id=5, y=0))), Scene((CIRCLE,)), ["two", "one"]),
    (FIRST, Scene(()), None, ["red circle"]),
    (plan("Draw a small circle.", "There is a small circle."), Scene((CIRCLE,)), None, ["small", "medium"]),
    (plan("Draw an outlined circle.", "There is an outlined circle."), Scene((CIRCLE,)), None, ["solid"]),
    (plan("Draw a circle.", "There is a circle on the left."), Scene((replace(CIRCLE, x=20),)), None, ["right"]),
    (plan("Draw a circle.", "There is a circle on a beige background."), Scene((CIRCLE,)), None, ["light grey"]),
    (
        plan("Draw three stars.", "There are three stars."),
        Scene((STAR, replace(STAR, id=3, x=0), replace(STAR, id=4, x=22))),
        None,
        None,
    ),
    (plan("Draw three stars.", "There are three stars."), Scene((STAR, replace(STAR, id=3, x=0))), None, ["three"]),
    # One of two is wrong.
    (
        plan("Draw two yellow stars.", "There are two yellow stars."),
        Scene((STAR, replace(STAR, id=3, x=22, color="pink"))),
        None,
        ["pink", "yellow"],
    ),
    # Each of several has its place.
    (
        plan("Draw two stars.", "There are two stars at the bottom left and at the bottom right."),
        Scene((replace(STAR, x=22), replace(STAR, id=3, x=0))),
        None,
        None,
    ),
    (
        plan("Draw two stars.", "There are two stars at the bottom left and at the top right."),
        Scene((replace(STAR, x=22), replace(STAR, id=3, x=0))),
        None,
        ["bottom right"],
    ),
    # The looks differ in one word: objects are assigned to entities all together.
    (
        plan("Draw a star and a small star.", "There is a star and a small star."),
        Scene((replace(STAR, id=3, size=7, x=0), STAR)),
        None,
        None,
    ),
    # Bystanders: moved, recoloured, removed, or swapped although the description still holds; and the ground.
    (SECOND, Scene((replace(CIRCLE, x=5), SQUARE)), Scene((CIRCLE,)), ["red circle has moved"]),
    (
        plan("Add a star.", "There is a circle and a star."),
        Scene((replace(CIRCLE, color="pink"), STAR)),
        Scene((CIRCLE,)),
        ["the red circle is now a pink circle"],
    ),
    (plan("Add a star.", "There is a star."), Scene((STAR,)), Scene((CIRCLE,)), ["the red circle is gone"]),
    (SECOND, Scene((CIRCLE, SQUARE), "beige"), Scene((CIRCLE,)), ["beige", "light grey"]),
    (
        plan("Add a blue square on a beige background.", "There is a red circle and a blue square."),
        Scene((CIRCLE, SQUARE), "beige"),
        Scene((CIRCLE,)),
        None,
    ),
    # Only what the instruction names may change.
    (
        plan("Make the blue square green.", "There is a red circle and a green square."),
        Scene((CIRCLE, replace(SQUARE, color="green"))),
        BOTH,
        None,
    ),
    (
        plan("Make the blue square green.", "There is a circle and a green square."),
        Scene((replace(CIRCLE, color="pink"), replace(SQUARE, color="green"))),
        BOTH,
        ["now a pink circle"],
    ),
    (
        plan("Swap the red circle and the blue square.", "There is a red circle right of a blue square."),
        Scene((replace(CIRCLE, x=20), replace(SQUARE, x=2))),
        BOTH,
        None,
    ),
    (
        plan("Move the red circle above the blue square.", "There is a red circle above a blue square."),
        Scene((replace(CIRCLE, x=20, y=0), SQUARE)),
        BOTH,
        None,
    ),
    (
        plan("Replace the blue square with a star.", "There is a red circle and a star."),
        Scene((CIRCLE, replace(STAR, x=20, y=11))),
        BOTH,
        None,
    ),
    (plan("Remove the blue square.", "There is a red circle."), Scene((CIRCLE,)), BOTH, None),
    (plan("Remove the red circle.", "There is a square."), Scene((replace(SQUARE, y=0),)), BOTH, ["square has moved"]),
]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("text", "scene", "before", "words"), PICTURES)
def test_pictures_made_by_hand(text, scene, before, words, size):
    pictures = (paint(scene, size), None if before is None else paint(before, size))
    verdicts = [ExactJudge(seed).judge_picture(text, *pictures) for seed in range(WORDINGS)]
    if words is None:
        assert all(v.accept and "as planned" in v.analysis for v in verdicts), verdicts
    else:
        assert_rejected(words, verdicts)


def test_noise_is_not_a_fault_but_a_stain_is():
    rng = np.random.default_rng(5)
    for _ in range(10):
        pictures = [paint(scene) + rng.normal(0, 10, (32, 32, 3)) for scene in (Scene((CIRCLE,)), BOTH)]
        before, after = (np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in pictures)
        verdict = JUDGE.judge_picture(SECOND, after, before)
        assert verdict.accept, verdict
    before, stained = paint(Scene((CIRCLE,))), paint(BOTH)
    stained[:2, 12:] -= 60
    verdict = JUDGE.judge_picture(SECOND, stained, before)
    assert (verdict.accept, "changed at the top that" in verdict.analysis) == (False, True)
    # Without the picture before, its absence is unknown.
    assert JUDGE.judge_picture(SECOND, stained).accept

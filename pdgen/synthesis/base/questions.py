"""Questions about a picture of shapes world, with answers that the picture determines word for word.

    caption   the content of the picture; see ``captions``
    places    the content and the places of all things
    color     the colour of things that share one, or of the background
    count     the number of things with certain looks, also of absent ones
    place     the place of one thing
    check     whether the picture shows a description, which is right or wrong in one respect; see ``checks``

If the picture has no held-out combination, neither have questions and answers.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pdgen.shapes.graph import COLORS, SceneGraph
from pdgen.shapes.held_out import is_held_out_look
from pdgen.shapes.lexicon import make_sentence, phrase_place, pick, pluralize, spell_number
from pdgen.shapes.world import MAX_OBJECTS, SHAPES, Scene
from pdgen.synthesis.base.captions import write_caption
from pdgen.synthesis.base.checks import Aim, draw_aim, make_check

CAPTION_FORMS = (
    "Describe the picture.",
    "What does the picture show?",
    "What is in the picture?",
    "Say what the picture shows.",
)
PLACES_FORMS = (
    "Describe the picture and say where everything is.",
    "What does the picture show, and where?",
    "What is where in the picture?",
)
COUNT_FORMS = ("How many {} are there?", "How many {} does the picture show?", "How many {} are in the picture?")
PLACE_FORMS = ("Where is the {}?", "Where in the picture is the {}?", "Where does the {} stand?")
CHECK_FORMS = ("Does the picture show {}?", "Is this a picture of {}?")
BACKGROUND_RATE = 0.2  # share of the questions about colour that are about the background
BARE_RATE = 0.5  # share of the things with a unique noun that are named by the noun alone
MAX_SCENES = 40  # scenes tried to find one with the number that a question of "count" asks for
NONE = "None."


class Question(NamedTuple):
    """A question about a picture.

    Attributes:
      text, answer: the question and the answer.
      right: for a check, whether the answer is "Yes."; otherwise None.
      said: for a check, the description as a graph; otherwise None.
    """

    text: str
    answer: str
    right: bool | None = None
    said: SceneGraph | None = None


def _ask_caption(rng: np.random.Generator, scene: Scene) -> Question:
    return Question(pick(rng, CAPTION_FORMS), write_caption(scene))


def _ask_places(rng: np.random.Generator, scene: Scene) -> Question:
    return Question(pick(rng, PLACES_FORMS), write_caption(scene, places=True))


def _ask_color(rng: np.random.Generator, scene: Scene) -> Question | None:
    colors: dict[str, list[str]] = {}
    if rng.random() < BACKGROUND_RATE:
        colors["background"] = [scene.background]
    else:
        for item in scene.objects:
            colors.setdefault(item.shape, []).append(item.color)
    clear = [noun for noun, own in colors.items() if len({*own}) == 1]
    if not clear:
        return None
    noun = pick(rng, clear)
    if len(colors[noun]) == 1:
        forms = (f"What colour is the {noun}?", f"Which colour does the {noun} have?")
    else:
        forms = (f"What colour are the {pluralize(noun)}?", f"Which colour do the {pluralize(noun)} have?")
    return Question(pick(rng, forms), make_sentence(colors[noun][0]))


def _ask_count(rng: np.random.Generator, scene: Scene, wanted: int | None) -> Question | None:
    looks = [(o.color, o.shape) for o in scene.objects]
    shown: dict[str, int] = {"things": len(looks)}
    for color, shape in looks:
        for words in (pluralize(shape), f"{color} {pluralize(shape)}"):
            shown[words] = shown.get(words, 0) + 1
    count = int(rng.choice(sorted({*shown.values()}))) if wanted is None else wanted
    asked = [words for words, number_shown in shown.items() if number_shown == count] if count else _list_absent(looks)
    if not asked:
        return None
    answer = make_sentence(spell_number(count)) if count else NONE
    return Question(pick(rng, COUNT_FORMS).format(pick(rng, asked)), answer)


def _list_absent(looks: Sequence[tuple[str, str]]) -> list[str]:
    """List absent things in the plural: nouns, and pairs of colour and noun of which the picture has only one."""
    colors, nouns = {color for color, _ in looks}, {noun for _, noun in looks}
    near = [
        f"{color} {pluralize(noun)}"
        for color in COLORS
        for noun in SHAPES
        if (color, noun) not in looks and (color in colors or noun in nouns) and not is_held_out_look(color, noun)
    ]
    return [*near, *(pluralize(noun) for noun in SHAPES if noun not in nouns)]


def _ask_place(rng: np.random.Generator, scene: Scene) -> Question | None:
    looks = [(o.color, o.shape) for o in scene.objects]
    nouns = [noun for _, noun in looks]
    single = [o for o in scene.objects if looks.count((o.color, o.shape)) == 1]
    if not single:
        return None
    item = single[rng.integers(len(single))]
    bare = nouns.count(item.shape) == 1 and rng.random() < BARE_RATE
    name = item.shape if bare else f"{item.color} {item.shape}"
    return Question(pick(rng, PLACE_FORMS).format(name), make_sentence(phrase_place(item.place)))


def _ask_check(rng: np.random.Generator, scene: Scene, wanted: Aim) -> Question | None:
    found = make_check(rng, scene, wanted)
    if found is None:
        return None
    return Question(pick(rng, CHECK_FORMS).format(found.words), found.answer, found.right, found.said)


_OTHERS = {"caption": _ask_caption, "places": _ask_places, "color": _ask_color, "place": _ask_place}
KINDS = ("caption", "places", "color", "count", "place", "check")


def make_asker(rng: np.random.Generator, kind: str) -> Callable[[Scene], Question | None]:
    """Make a function that asks a question of one of ``KINDS`` about a scene without held-out combinations.

    The function returns None if the scene allows no such question with a unique answer. The subject of a check and the
    number of a count are drawn here and not for each scene, so that their frequencies do not depend on what scenes
    allow.
    """
    if kind == "count":
        # Otherwise 0 and 1 would be far more frequent than 5 and 6, because every scene allows them. After
        # ``MAX_SCENES`` scenes without this number, any number that the scene has is used.
        wanted, scenes = int(rng.integers(MAX_OBJECTS + 1)), itertools.count(1)
        return lambda scene: _ask_count(rng, scene, wanted if next(scenes) <= MAX_SCENES else None)
    if kind == "check":
        return functools.partial(_ask_check, rng, wanted=draw_aim(rng))
    return functools.partial(_OTHERS[kind], rng)

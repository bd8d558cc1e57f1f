"""Questions about a picture of shapes world, and their answers, which the picture decides to the word.

    caption   what it shows; see ``captions``
    places    what it shows, and where
    color     of what has one colour, or of the background
    count     of things of some looks, also of such as are not there
    place     of one thing
    check     whether it shows a scene that is described, which is as said or wrong in one respect; see ``checks``

No question or answer says what ``held_out`` keeps from training, as long as the picture does not show it.
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
BACKGROUND_RATE = 0.2  # of the questions about colour that are about the background
BARE_RATE = 0.5  # of the things that the noun alone tells from others and that are named by it alone
MAX_SCENES = 40  # scenes looked at for one with the number that a question of "count" is to be answered with
NONE = "None."


_Ask = Callable[[np.random.Generator, Scene], "Question | None"]


class Question(NamedTuple):
    """A question about a picture.

    Attributes:
      text, answer: in words.
      right: of a check, whether the answer is "Yes."; None of any other.
      said: of a check, what is asked for.
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


def _make_count_asker(rng: np.random.Generator) -> Callable[[Scene], Question | None]:
    # The number is drawn before there is a scene: every scene has what is not there and what is there once, few have
    # five or six of anything. Where none of many scenes has that number, any that one has will do.
    wanted, scenes = int(rng.integers(MAX_OBJECTS + 1)), itertools.count(1)

    def ask(scene: Scene) -> Question | None:
        return _ask_count(rng, scene, wanted if next(scenes) <= MAX_SCENES else None)

    return ask


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
    return Question(pick(rng, COUNT_FORMS).format(pick(rng, asked)), _phrase_count(count))


def _phrase_count(count: int) -> str:
    return make_sentence(spell_number(count)) if count else NONE


def _list_absent(looks: Sequence[tuple[str, str]]) -> list[str]:
    """What is not there, in the plural: nouns, and colours and nouns of which the picture has one or the other."""
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


_OTHERS: dict[str, _Ask] = {
    "caption": _ask_caption,
    "places": _ask_places,
    "color": _ask_color,
    "place": _ask_place,
}
KINDS = ("caption", "places", "color", "count", "place", "check")


def make_asker(rng: np.random.Generator, kind: str) -> Callable[[Scene], Question | None]:
    """What asks a question of that kind about any scene.

    What a check is about and the number that a count comes to are drawn here and not for each scene, so that scenes
    which allow little do not decide it.

    Args:
      rng: decides everything, now and at every call.
      kind: one of ``KINDS``.

    Returns:
      A function of a scene that shows nothing that is held out. It gives None where there is no such question that has
      one answer alone.
    """
    if kind == "count":
        return _make_count_asker(rng)
    if kind == "check":
        return functools.partial(_ask_check, rng, wanted=draw_aim(rng))
    return functools.partial(_OTHERS[kind], rng)

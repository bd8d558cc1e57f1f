"""The vocabulary of prompts, plans and inspections: nouns and their plurals, numbers, colours, places, relations.

``language`` writes with it and ``parse`` reads with it. A noun is a shape of shapes world or one of the 80 classes of
COCO, under the name that GenEval's prompts use.
"""

from collections.abc import Sequence

import numpy as np

from pdgen.shapes.graph import COLORS, split_places
from pdgen.shapes.placement import SIZES
from pdgen.shapes.world import FILLS, SHAPES

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
NOUNS = tuple(dict.fromkeys((*SHAPES, *COCO)))
NUMBERS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
# The words of each attribute, in the order of adjectives before a noun.
ADJECTIVES = {"size": tuple(SIZES), "fill": FILLS, "color": COLORS}
SYNONYMS = {"big": "large", "little": "small", "gray": "grey", "center": "centre", "middle": "centre"}
# The first wording is the one that GenEval uses.
RELATIONS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
PREPOSITIONS = {"left": "on", "right": "on", "centre": "in"}  # "at" before any other place
_IRREGULAR = {"person": "people", "knife": "knives", "sheep": "sheep", "skis": "skis", "scissors": "scissors"}


def pick(rng: np.random.Generator, forms: Sequence[str]) -> str:
    """Draw one of several wordings, all with the same probability."""
    return forms[int(rng.integers(len(forms)))]


def pluralize(noun: str) -> str:
    """Return the plural of a noun: "crosses", "wine glasses", "knives"."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    return f"{noun}es" if noun.endswith(("s", "x", "z", "ch", "sh")) else f"{noun}s"


def spell_number(count: int) -> str:
    """Return the word for a count from 1 to 20."""
    return NUMBERS[count - 1]


def add_article(words: str) -> str:
    """Put "a" or "an" before the words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase_place(place: str) -> str:
    """Phrase a ``place`` attribute: "on the left", "at the top right, on the right and at the bottom"."""
    return join_words([f"{PREPOSITIONS.get(word, 'at')} the {word}" for word in split_places(place)])


def phrase_target(place: str) -> str:
    """Phrase a ``place`` attribute as the target of a move: "to the left", "to the top and to the right"."""
    return join_words([f"to the {word}" for word in split_places(place)])


def join_words(parts: list[str]) -> str:
    """Join as a list in words: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def make_sentence(words: str) -> str:
    """Capitalise the words and add a full stop."""
    return f"{words[0].upper()}{words[1:]}."

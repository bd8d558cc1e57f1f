"""The words of the project's own language: nouns and their plurals, numbers, colours, places, relations.

``language`` writes with them and ``parse`` reads with them. A noun is a shape of shapes world or one of the 80
classes of COCO by the names that GenEval's prompts give them.
"""

from pdgen.shapes.graph import COLORS, words_of_place
from pdgen.shapes.placement import SIZES
from pdgen.shapes.world import FILLS, SHAPES

COCO = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "computer mouse",
    "tv remote",
    "computer keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)
NOUNS = tuple(dict.fromkeys((*SHAPES, *COCO)))
NUMBERS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
# By attribute, in the order in which adjectives stand before a noun.
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


def plural(noun: str) -> str:
    """The noun's plural: "crosses", "wine glasses", "knives"."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    return f"{noun}es" if noun.endswith(("s", "x", "z", "ch", "sh")) else f"{noun}s"


def number(count: int) -> str:
    """The word of a count from 1 to 20."""
    return NUMBERS[count - 1]


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def place_phrase(place: str) -> str:
    """Where, of the attribute ``place``: "on the left", "at the top right, on the right and at the bottom"."""
    return join([f"{PREPOSITIONS.get(word, 'at')} the {word}" for word in words_of_place(place)])


def target_phrase(place: str) -> str:
    """Where to: "to the left", "to the top, to the right and to the bottom"."""
    return join([f"to the {word}" for word in words_of_place(place)])


def join(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def sentence(words: str) -> str:
    """The words with a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."

"""What the contexts of a trajectory have still to read: pieces of finished texts, and pictures."""

from collections.abc import Hashable, Iterator
from typing import Literal, NamedTuple

import PIL.Image

from pdgen.sample.image import ImageGrid, make_picture_grid
from pdgen.sample.model import Model
from pdgen.sequence.tokenizer import Tokenizer
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory

PIECE_TOKENS = 64  # of a finished text that are read at a time; fewer are padded

Context = Literal["full", "texts"]


class Piece(NamedTuple):
    """Tokens of a finished text.

    Attributes:
      ids: 1 to PIECE_TOKENS.
      contexts: the contexts that read them.
      ends_view: text guidance sees everything up to here.
    """

    ids: list[int]
    contexts: tuple[Context, ...]
    ends_view: bool = False


class Picture(NamedTuple):
    """An image. ``given``: it comes from the user and is resized."""

    image: PIL.Image.Image
    grid: ImageGrid
    given: bool


Pending = Piece | Picture


def get_reading_key(part: Pending) -> Hashable:
    """Return what parts must have in common to be read by one call."""
    return (part.grid, part.given) if isinstance(part, Picture) else part.contexts


def choose_contexts(stage: str, has_texts: bool, in_full: bool = False) -> tuple[Context, ...]:
    """Return the contexts that still have to read a text.

    Args:
      stage: of the text; image guidance never sees a "thought".
      has_texts: whether there is a context of texts alone.
      in_full: whether the full context holds it already, since the model wrote it there.
    """
    full: tuple[Context, ...] = () if in_full else ("full",)
    texts: tuple[Context, ...] = ("texts",) if has_texts and stage != "thought" else ()
    return full + texts


def split_text(model: Model, ids: list[int], contexts: tuple[Context, ...], ends_view: bool = False) -> list[Piece]:
    """Split a text, with its switch tokens, into pieces; only the last piece may end the view."""
    if not contexts:
        return []
    opening, closing = model.text_switches
    ids = [opening, *ids, closing]
    starts = range(0, len(ids), PIECE_TOKENS)
    return [Piece(ids[n : n + PIECE_TOKENS], contexts, ends_view and n == starts[-1]) for n in starts]


def encode_text(tokenizer: Tokenizer, stage: TextStage) -> list[int]:
    """Return a text's tokens: as the model wrote them, unless the text was edited since."""
    return stage.ids if stage.ids and tokenizer.decode(stage.ids) == stage.text else tokenizer.encode(stage.text)


def make_picture(model: Model, image: PIL.Image.Image, mode: str, given: bool) -> Picture:
    """Return an image as the contexts of a trajectory of this mode read it."""
    return Picture(image, make_picture_grid(model.config, image, given, vit_only=mode == "understand"), given)


def read_history(model: Model, system: str, start: Trajectory, has_texts: bool) -> Iterator[Pending]:
    """Yield all that a trajectory holds already, the ``system`` text first."""
    if system:
        contexts = choose_contexts("prompt", has_texts)
        yield from split_text(model, model.tokenizer.encode(system), contexts, ends_view=True)
    images, stages = iter(start.images), iter(start.stages)
    for kind in start.kinds:
        if kind == "prompt":
            yield from split_text(model, model.tokenizer.encode(start.prompt), choose_contexts(kind, has_texts))
            continue
        stage = next(stages)
        if isinstance(stage, ImageStage):
            yield make_picture(model, next(images), start.mode, stage.stage == "given")
        else:
            ids = encode_text(model.tokenizer, stage)
            yield from split_text(model, ids, choose_contexts(stage.stage, has_texts))

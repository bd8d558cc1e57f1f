"""Text to scene graphs: prompts and descriptions in the project's own wordings, and GenEval's prompts.

    text       = sentence ("." sentence)*
    sentence   = opener? scene | "the background is" BACKGROUND | statement (("," | "and") statement)*
    scene      = (background "with")? item (("," | "and")+ item)* ("on" background)?
    item       = new place? relation?            relation = KIND thing ("and" KIND thing)*
    thing      = new place? | known              statement = known "is" (place | KIND thing) ("and" ...)*
    new        = ("a" | NUMBER) ADJECTIVE* NOUN  known = "the" NUMBER? ADJECTIVE* NOUN place?

A recursive descent over the words, one method per rule; ``parse_instruction`` reads the sentences of
``instruction.write_instruction`` with the same rules. What the words of ``lexicon`` do not cover is refused with the word.
"""

import re
from collections.abc import Iterable, Mapping

import msgspec

from pdgen.shapes.graph import PLACES, Entity, Relation, SceneError, SceneGraph, join_places
from pdgen.shapes.instruction import EXCHANGED, Instruction
from pdgen.shapes.lexicon import ADJECTIVES, NOUNS, NUMBERS, RELATIONS, SYNONYMS, phrase_place, pluralize
from pdgen.shapes.world import BACKGROUNDS

OPENERS = (
    "a photo of",
    "a picture of",
    "an image of",
    "a drawing of",
    "draw",
    "paint",
    "show",
    "the picture shows",
    "the picture now shows",
    "now the picture shows",
    "there is",
    "there are",
)
_END = ""
_WORD = re.compile(r"[a-z0-9'-]+|[^\sa-z0-9'-]")
_NUMBERS = {word: n for n, word in enumerate(NUMBERS, 1)} | {str(n): n for n in range(1, len(NUMBERS) + 1)}
_ATTRIBUTE = {word: attribute for attribute, words in ADJECTIVES.items() for word in words}
# GenEval forms plurals by rule alone ("knifes", "benchs", "sheeps").
_NOUN = {form: noun for noun in NOUNS for form in (pluralize(noun), f"{noun}s", noun)}
_LOOK_STARTS = {form.split()[0] for form in (*_NOUN, *_ATTRIBUTE)}
_BACKGROUND = {f"{article} {b} background": b for article in ("a", "an") for b in BACKGROUNDS}
_PLACE = {f"{preposition} the {p}": p for p in PLACES for preposition in (phrase_place(p).split()[0], "at", "in")}
_TARGET = {f"to the {p}": p for p in PLACES}
_KIND = {wording: kind for kind, wordings in RELATIONS.items() for wording in wordings}


def canonicalize(graph: SceneGraph) -> tuple:
    """What the graph says, whatever its ids and order, and whichever way its relations are told.

    Equal for two graphs exactly if they say the same, as long as their entities can be told apart.
    """
    looks = {e.id: (e.noun, e.count, tuple(sorted(e.attributes.items()))) for e in graph.entities}
    turned = {r.with_subject(r.reference) if r.kind in ("right of", "below") else r for r in graph.relations}
    relations = sorted((looks[r.subject], r.kind, looks[r.reference]) for r in turned)
    return tuple(sorted(looks.values())), tuple(relations), graph.background


def parse(text: str) -> SceneGraph:
    """The graph of a prompt or a description; ids are 0, 1, ... in the order of naming.

    Raises:
      SceneError: naming the word that is not understood, or what contradicts itself.
    """
    reader = _Reader(text)
    while not reader.at_end():
        reader.sentence()
    return reader.graph()


def parse_instruction(text: str) -> Instruction:
    """The instruction in a sentence of ``instruction.write_instruction``; ids are 0, 1, ... in the order of naming.

    Things that are there already have the attributes by which they are named. Raises SceneError as ``parse``.
    """
    reader = _Reader(text, anything_known=True)
    for words, rule in _INSTRUCTIONS:
        if reader.take(words):
            instruction = rule(reader)
            for_now = reader.take("for now")
            reader.stop()
            return msgspec.structs.replace(instruction, for_now=for_now)
    raise reader.not_understood("an instruction")


class _Reader:
    """The words of a text, a position in them, and what was understood so far."""

    def __init__(self, text: str, anything_known: bool = False) -> None:
        self.text = text
        self.words = [SYNONYMS.get(w, w) for w in _WORD.findall(text.lower())]
        self.position = 0
        self.anything_known = anything_known  # "the circle" need not be named before
        self.entities: list[Entity] = []
        self.relations: list[Relation] = []
        self.background: str | None = None

    def graph(self) -> SceneGraph:
        if not self.entities and self.background is None:
            raise SceneError(f"{self.text!r} names nothing")
        return SceneGraph(tuple(self.entities), tuple(self.relations), self.background)

    # Words.

    def at_end(self) -> bool:
        return self.position == len(self.words)

    def word(self, ahead: int = 0) -> str:
        at = self.position + ahead
        return self.words[at] if at < len(self.words) else _END

    def not_understood(self, expected: str) -> SceneError:
        found = "the text ends" if self.at_end() else f"{self.word()!r} is not understood"
        return SceneError(f"{self.text!r}: {found} where {expected} is expected")

    def take(self, phrase: str) -> bool:
        """Goes past the phrase if it stands here."""
        wanted = phrase.split()
        if self.words[self.position : self.position + len(wanted)] != wanted:
            return False
        self.position += len(wanted)
        return True

    def take_one(self, phrases: Iterable[str]) -> str | None:
        """Goes past the longest of the phrases that stands here."""
        rest = " ".join(self.words[self.position : self.position + 6]) + " "
        found = max((p for p in phrases if rest.startswith(f"{p} ")), key=len, default=None)
        if found is not None:
            self.take(found)
        return found

    def must(self, phrase: str) -> None:
        if not self.take(phrase):
            raise self.not_understood(repr(phrase))

    def stop(self) -> None:
        """The end of a sentence and of the text."""
        self.take(".")
        if not self.at_end():
            raise self.not_understood("the end")

    # Sentences.

    def sentence(self) -> None:
        if self.take("the background is"):
            self.set_background(self.take_one(BACKGROUNDS))
        elif self.take_one(OPENERS) is None and self.word() == "the":
            self.statement()
            while self.separator():
                self.statement()
        else:
            self.scene()
        if not self.take(".") and not self.at_end():
            raise self.not_understood("the end of the sentence")

    def scene(self) -> None:
        if self.background_phrase() and not self.take("with"):
            return
        self.items()

    def items(self) -> list[int]:
        """Items up to the end of the sentence; their ids, those of their references excluded."""
        new = self.item()
        while self.separator():
            new += self.item()
        if self.take("on") and not self.background_phrase():
            raise self.not_understood("a background")
        return new

    def separator(self) -> bool:
        comma = self.word() == ","
        if self.word(int(comma)) == "on":
            self.position += int(comma)
            return False
        self.position += int(comma)
        return self.take("and") or comma

    def item(self) -> list[int]:
        entity = self.new()
        return [entity, *self.related(entity)]

    def related(self, entity: int) -> list[int]:
        """Relations said of the entity; the ids of new things they are said with."""
        new = []
        if self.word() == "and" and self.starts_relation(1):  # after a place
            self.take("and")
        while (kind := self.relation_kind()) is not None:
            if self.word() == "the":
                reference = self.known()
            else:
                reference = self.new()
                new.append(reference)
            self.relations.append(Relation(entity, kind, reference))
            if self.word() != "and" or not self.starts_relation(1):
                break
            self.take("and")
        return new

    def statement(self) -> None:
        entity = self.known()
        if not self.take("is") and not self.take("are"):
            raise self.not_understood("'is' or 'are'")
        while True:
            if (place := self.place()) is not None:
                self.set_place(entity, place)
            elif (kind := self.relation_kind()) is not None:
                self.relations.append(Relation(entity, kind, self.known() if self.word() == "the" else self.new()))
            else:
                raise self.not_understood("a place or relation")
            if self.word() != "and" or self.word(1) == "the":
                return
            self.take("and")

    # Things.

    def new(self) -> int:
        """Something named for the first time; its id."""
        count = 1 if self.take_one(("a", "an")) else self.number()
        noun, attributes = self.look()
        if (place := self.place()) is not None:
            attributes["place"] = place
        return self.append(noun, count, attributes)

    def append(self, noun: str, count: int, attributes: dict[str, str]) -> int:
        self.entities.append(Entity(len(self.entities), noun, count, attributes))
        return len(self.entities) - 1

    def number(self) -> int:
        count = _NUMBERS.get(self.word())
        if count is None:
            raise self.not_understood("'a', 'an' or a number")
        self.position += 1
        return count

    def look(self) -> tuple[str, dict[str, str]]:
        """Adjectives and a noun."""
        attributes: dict[str, str] = {}
        while (attribute := _ATTRIBUTE.get(self.word())) is not None and self.noun_follows():
            if attribute in attributes:
                raise self.not_understood(f"a noun (its {attribute} is {attributes[attribute]})")
            attributes[attribute] = self.word()
            self.position += 1
        form = self.take_one(_NOUN)
        if form is None:
            raise self.not_understood("a noun")
        return _NOUN[form], attributes

    def noun_follows(self) -> bool:
        # "orange" is a colour before a noun or an adjective, and a noun otherwise.
        return self.word() not in _NOUN or self.word(1) in _LOOK_STARTS

    def known(self) -> int:
        """Something named before; its id."""
        start = self.position
        self.must("the")
        count = self.number() if self.word() in _NUMBERS else None
        noun, attributes = self.look()
        if (place := self.place()) is not None:
            attributes["place"] = place
        found = [e for e in self.entities if e.noun == noun and attributes.items() <= e.attributes.items()]
        found = [e for e in found if count in (None, e.count)]
        if len(found) > 1:
            found = [e for e in found if e.attributes == attributes]
        if found:
            return found[0].id
        if self.anything_known:
            return self.append(noun, count or 1, attributes)
        raise SceneError(f"{self.text!r}: {' '.join(self.words[start : self.position])!r} is not named before")

    # Places, relations, background.

    def place(self, phrases: Mapping[str, str] = _PLACE) -> str | None:
        """A place, or one for each of several things, as the attribute ``place`` has it."""
        found, end = [], self.position
        while not self.starts_relation() and (phrase := self.take_one(phrases)) is not None:
            found.append(phrases[phrase])
            end = self.position
            self.take(",")
            self.take("and")
        self.position = end
        return join_places(found) if found else None

    def set_place(self, entity: int, place: str) -> None:
        old = self.entities[entity]
        self.entities[entity] = Entity(old.id, old.noun, old.count, old.attributes | {"place": place})

    def starts_relation(self, ahead: int = 0) -> bool:
        rest = " ".join(self.words[self.position + ahead : self.position + ahead + 4]) + " "
        return any(rest.startswith(f"{wording} ") for wording in _KIND)

    def relation_kind(self) -> str | None:
        wording = self.take_one(_KIND)
        return None if wording is None else _KIND[wording]

    def background_phrase(self) -> bool:
        """ "a grey background", if that stands here."""
        phrase = self.take_one(_BACKGROUND)
        if phrase is not None:
            self.set_background(_BACKGROUND[phrase])
        return phrase is not None

    def set_background(self, background: str | None) -> None:
        if background is None:
            raise self.not_understood("a background")
        if self.background not in (None, background):
            raise SceneError(f"{self.text!r}: the background is both {self.background!r} and {background!r}")
        self.background = background

    # Instructions. Each rule reads what follows its verb.

    def instruct(self, operation: str, entities: Iterable[int], changes: dict[str, str] | None = None) -> Instruction:
        graph = SceneGraph(tuple(self.entities), tuple(self.relations), self.background)
        return Instruction(operation, tuple(entities), graph, changes or {})

    def two(self, between: str) -> tuple[int, int]:
        first = self.known()
        self.must(between)
        return first, self.known()

    def add(self) -> Instruction:
        return self.instruct("add", self.items())

    def put(self) -> Instruction:
        return self.move() if self.word() == "the" else self.add()

    def move(self) -> Instruction:
        entity = self.known()
        target = self.place(_TARGET)
        changes = {} if target is None else {"place": target}
        if target is None or self.take("and"):
            if not self.starts_relation():
                raise self.not_understood("a place or relation")
            self.related(entity)
        return self.instruct("move", [entity], changes)

    def modify(self) -> Instruction:
        entity = self.known()
        if self.take("into") or self.word() in ("a", "an"):
            return self.instruct("replace", [entity, self.new()])
        self.take("to")
        changes: dict[str, str] = {}
        while True:
            word = self.word()
            key = _ATTRIBUTE.get(word)
            if key is None or key in changes:
                raise self.not_understood("a new colour, size or fill")
            changes[key] = word
            self.position += 1
            if not self.take("and"):
                return self.instruct("modify", [entity], changes)

    def swap(self) -> Instruction:
        if self.take("the colours of"):
            return self.instruct("swap", self.two("and"), {"color": EXCHANGED})
        first = self.known()
        if self.take("for"):
            return self.instruct("replace", [first, self.new()])
        self.must("and")
        return self.instruct("swap", [first, self.known()])

    def let(self) -> Instruction:
        pair = self.two("and")
        self.must("change")
        if self.take("colours"):
            return self.instruct("swap", pair, {"color": EXCHANGED})
        self.must("places")
        return self.instruct("swap", pair)

    def replace(self) -> Instruction:
        first = self.known()
        self.must("with")
        return self.instruct("replace", [first, self.new()])

    def remove(self) -> Instruction:
        gone = [self.known()]
        while self.separator():
            gone.append(self.known())
        return self.instruct("remove", gone)


_INSTRUCTIONS = (
    ("add", _Reader.add),
    ("draw", _Reader.add),
    ("paint", _Reader.add),
    ("start with", _Reader.add),
    ("begin with", _Reader.add),
    ("place", _Reader.put),
    ("put", _Reader.put),
    ("move", _Reader.move),
    ("shift", _Reader.move),
    ("bring", _Reader.move),
    ("make", _Reader.modify),
    ("turn", _Reader.modify),
    ("change", _Reader.modify),
    ("swap", _Reader.swap),
    ("exchange", _Reader.swap),
    ("let", _Reader.let),
    ("replace", _Reader.replace),
    ("remove", _Reader.remove),
    ("erase", _Reader.remove),
    ("take away", _Reader.remove),
)

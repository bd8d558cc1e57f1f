"""The parser from texts to scene graphs: prompts and descriptions as ``language`` writes them, and GenEval's prompts.

    text       = sentence ("." sentence)*
    sentence   = opener? scene | "the background is" BACKGROUND | statement (("," | "and") statement)*
    scene      = (background "with")? item (("," | "and")+ item)* ("on" background)?
    item       = new place? relation?            relation = KIND thing ("and" KIND thing)*
    thing      = new place? | known              statement = known "is" (place | KIND thing) ("and" ...)*
    new        = ("a" | NUMBER) ADJECTIVE* NOUN  known = "the" NUMBER? ADJECTIVE* NOUN place?

It is a recursive descent over the words, with one method per rule. ``parse_instruction`` uses the same rules for the
sentences of ``instruction.write_instruction``. A word that ``lexicon`` does not contain is an error that names it.
"""

import re
from collections.abc import Iterable, Mapping

import msgspec

from pdgen.shapes.graph import PLACES, Entity, Relation, SceneError, SceneGraph, join_places
from pdgen.shapes.instruction import EXCHANGED, Instruction
from pdgen.shapes.lexicon import ADJECTIVES, NOUNS, NUMBERS, RELATIONS, SYNONYMS, phrase_place, pluralize
from pdgen.shapes.world import BACKGROUNDS

OPENERS = (
    "a photo of", "a picture of", "an image of", "a drawing of", "draw", "paint", "show",
    "the picture shows", "the picture now shows", "now the picture shows", "there is", "there are",
)  # fmt: skip
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
    """Return a form of the graph that does not depend on ids, order or the direction of relations.

    Two graphs with distinguishable entities have equal forms exactly if they state the same.
    """
    looks = {e.id: (e.noun, e.count, tuple(sorted(e.attributes.items()))) for e in graph.entities}
    turned = {r.with_subject(r.reference) if r.kind in ("right of", "below") else r for r in graph.relations}
    relations = sorted((looks[r.subject], r.kind, looks[r.reference]) for r in turned)
    return tuple(sorted(looks.values())), tuple(relations), graph.background


def parse(text: str) -> SceneGraph:
    """Parse a prompt or a description. Ids are 0, 1, ... in the order of naming.

    Raises:
      SceneError: a word is not understood, or the text contradicts itself; the message names it.
    """
    reader = _Reader(text)
    while not reader.at_end():
        reader.read_sentence()
    if not reader.entities and reader.background is None:
        raise SceneError(f"{text!r} names nothing")
    return reader.build_graph()


def parse_instruction(text: str) -> Instruction:
    """Parse a sentence of ``instruction.write_instruction``. Ids are 0, 1, ... in the order of naming.

    Entities that exist already have only the attributes in their names. Raises SceneError as ``parse``.
    """
    reader = _Reader(text, anything_known=True)
    for rule, verbs in _INSTRUCTIONS.items():
        if reader.take_one(verbs) is not None:
            instruction = rule(reader)
            for_now = reader.take("for now")
            reader.take(".")
            if not reader.at_end():
                raise reader.make_error("the end")
            return msgspec.structs.replace(instruction, for_now=for_now)
    raise reader.make_error("an instruction")


class _Reader:
    """A text as words, the current position, and the graph read so far."""

    def __init__(self, text: str, anything_known: bool = False) -> None:
        self.text = text
        self.words = [SYNONYMS.get(w, w) for w in _WORD.findall(text.lower())]
        self.position = 0
        self.anything_known = anything_known  # "the circle" need not have been named before
        self.entities: list[Entity] = []
        self.relations: list[Relation] = []
        self.background: str | None = None

    def build_graph(self) -> SceneGraph:
        return SceneGraph(tuple(self.entities), tuple(self.relations), self.background)

    # Words.

    def at_end(self) -> bool:
        return self.position == len(self.words)

    def get_word(self, ahead: int = 0) -> str:
        at = self.position + ahead
        return self.words[at] if at < len(self.words) else _END

    def make_error(self, expected: str) -> SceneError:
        found = "the text ends" if self.at_end() else f"{self.get_word()!r} is not understood"
        return SceneError(f"{self.text!r}: {found} where {expected} is expected")

    def take(self, phrase: str) -> bool:
        """Consume the phrase if it comes next; return whether it does."""
        wanted = phrase.split()
        if self.words[self.position : self.position + len(wanted)] != wanted:
            return False
        self.position += len(wanted)
        return True

    def take_one(self, phrases: Iterable[str]) -> str | None:
        """Consume and return the longest of the phrases that comes next; None if there is none."""
        rest = " ".join(self.words[self.position : self.position + 6]) + " "
        found = max((p for p in phrases if rest.startswith(f"{p} ")), key=len, default=None)
        if found is not None:
            self.take(found)
        return found

    def expect(self, phrase: str) -> None:
        if not self.take(phrase):
            raise self.make_error(repr(phrase))

    # Sentences.

    def read_sentence(self) -> None:
        if self.take("the background is"):
            self.set_background(self.take_one(BACKGROUNDS))
        elif self.take_one(OPENERS) is None and self.get_word() == "the":
            self.read_statement()
            while self.take_separator():
                self.read_statement()
        else:
            self.read_scene()
        if not self.take(".") and not self.at_end():
            raise self.make_error("the end of the sentence")

    def read_scene(self) -> None:
        if self.read_background_phrase() and not self.take("with"):
            return
        self.read_items()

    def read_items(self) -> list[int]:
        """Read items up to the end of the sentence. Returns their ids without those of their references."""
        new = self.read_item()
        while self.take_separator():
            new += self.read_item()
        if self.take("on") and not self.read_background_phrase():
            raise self.make_error("a background")
        return new

    def take_separator(self) -> bool:
        comma = self.get_word() == ","
        if self.get_word(int(comma)) == "on":
            self.position += int(comma)
            return False
        self.position += int(comma)
        return self.take("and") or comma

    def read_item(self) -> list[int]:
        entity = self.read_new()
        return [entity, *self.read_relations(entity)]

    def read_relations(self, entity: int) -> list[int]:
        """Read relations of the entity. Returns the ids of new things in them."""
        new = []
        if self.get_word() == "and" and self.starts_relation(1):  # after a place
            self.take("and")
        while (kind := self.read_relation_kind()) is not None:
            if self.get_word() == "the":
                reference = self.read_known()
            else:
                reference = self.read_new()
                new.append(reference)
            self.relations.append(Relation(entity, kind, reference))
            if self.get_word() != "and" or not self.starts_relation(1):
                break
            self.take("and")
        return new

    def read_statement(self) -> None:
        entity = self.read_known()
        if not self.take("is") and not self.take("are"):
            raise self.make_error("'is' or 'are'")
        while True:
            if (place := self.read_place()) is not None:
                old = self.entities[entity]
                self.entities[entity] = msgspec.structs.replace(old, attributes=old.attributes | {"place": place})
            elif (kind := self.read_relation_kind()) is not None:
                reference = self.read_known() if self.get_word() == "the" else self.read_new()
                self.relations.append(Relation(entity, kind, reference))
            else:
                raise self.make_error("a place or relation")
            if self.get_word() != "and" or self.get_word(1) == "the":
                return
            self.take("and")

    # Things.

    def read_new(self) -> int:
        """Read a thing named for the first time. Returns its id."""
        count = 1 if self.take_one(("a", "an")) else self.read_number()
        noun, attributes = self.read_look()
        if (place := self.read_place()) is not None:
            attributes["place"] = place
        return self.append(noun, count, attributes)

    def append(self, noun: str, count: int, attributes: dict[str, str]) -> int:
        self.entities.append(Entity(len(self.entities), noun, count, attributes))
        return len(self.entities) - 1

    def read_number(self) -> int:
        count = _NUMBERS.get(self.get_word())
        if count is None:
            raise self.make_error("'a', 'an' or a number")
        self.position += 1
        return count

    def read_look(self) -> tuple[str, dict[str, str]]:
        """Read adjectives and a noun."""
        attributes: dict[str, str] = {}
        while (attribute := _ATTRIBUTE.get(self.get_word())) is not None and self.noun_follows():
            if attribute in attributes:
                raise self.make_error(f"a noun (its {attribute} is {attributes[attribute]})")
            attributes[attribute] = self.get_word()
            self.position += 1
        form = self.take_one(_NOUN)
        if form is None:
            raise self.make_error("a noun")
        return _NOUN[form], attributes

    def noun_follows(self) -> bool:
        # "orange" is a colour if a noun or an adjective follows, and otherwise a noun.
        return self.get_word() not in _NOUN or self.get_word(1) in _LOOK_STARTS

    def read_known(self) -> int:
        """Read a thing named before. Returns its id."""
        start = self.position
        self.expect("the")
        count = self.read_number() if self.get_word() in _NUMBERS else None
        noun, attributes = self.read_look()
        if (place := self.read_place()) is not None:
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

    def read_place(self, phrases: Mapping[str, str] = _PLACE) -> str | None:
        """Read a place, or one place for each of several things, as a ``place`` attribute."""
        found, end = [], self.position
        while not self.starts_relation() and (phrase := self.take_one(phrases)) is not None:
            found.append(phrases[phrase])
            end = self.position
            self.take(",")
            self.take("and")
        self.position = end
        return join_places(found) if found else None

    def starts_relation(self, ahead: int = 0) -> bool:
        rest = " ".join(self.words[self.position + ahead : self.position + ahead + 4]) + " "
        return any(rest.startswith(f"{wording} ") for wording in _KIND)

    def read_relation_kind(self) -> str | None:
        wording = self.take_one(_KIND)
        return None if wording is None else _KIND[wording]

    def read_background_phrase(self) -> bool:
        """Consume a background such as "a grey background" if it comes next; return whether it does."""
        phrase = self.take_one(_BACKGROUND)
        if phrase is not None:
            self.set_background(_BACKGROUND[phrase])
        return phrase is not None

    def set_background(self, background: str | None) -> None:
        if background is None:
            raise self.make_error("a background")
        if self.background not in (None, background):
            raise SceneError(f"{self.text!r}: the background is both {self.background!r} and {background!r}")
        self.background = background

    # Instructions. Each method reads what follows the verb.

    def make_instruction(
        self, operation: str, entities: Iterable[int], changes: dict[str, str] | None = None
    ) -> Instruction:
        return Instruction(operation, tuple(entities), self.build_graph(), changes or {})

    def read_pair(self) -> tuple[int, int]:
        first = self.read_known()
        self.expect("and")
        return first, self.read_known()

    def read_add(self) -> Instruction:
        return self.make_instruction("add", self.read_items())

    def read_put(self) -> Instruction:
        return self.read_move() if self.get_word() == "the" else self.read_add()

    def read_move(self) -> Instruction:
        entity = self.read_known()
        target = self.read_place(_TARGET)
        changes = {} if target is None else {"place": target}
        if target is None or self.take("and"):
            if not self.starts_relation():
                raise self.make_error("a place or relation")
            self.read_relations(entity)
        return self.make_instruction("move", [entity], changes)

    def read_modify(self) -> Instruction:
        entity = self.read_known()
        if self.take("into") or self.get_word() in ("a", "an"):
            return self.make_instruction("replace", [entity, self.read_new()])
        self.take("to")
        changes: dict[str, str] = {}
        while True:
            word = self.get_word()
            key = _ATTRIBUTE.get(word)
            if key is None or key in changes:
                raise self.make_error("a new colour, size or fill")
            changes[key] = word
            self.position += 1
            if not self.take("and"):
                return self.make_instruction("modify", [entity], changes)

    def read_swap(self) -> Instruction:
        if self.take("the colours of"):
            return self.make_instruction("swap", self.read_pair(), {"color": EXCHANGED})
        first = self.read_known()
        if self.take("for"):
            return self.make_instruction("replace", [first, self.read_new()])
        self.expect("and")
        return self.make_instruction("swap", [first, self.read_known()])

    def read_let(self) -> Instruction:
        pair = self.read_pair()
        self.expect("change")
        if self.take("colours"):
            return self.make_instruction("swap", pair, {"color": EXCHANGED})
        self.expect("places")
        return self.make_instruction("swap", pair)

    def read_replace(self) -> Instruction:
        first = self.read_known()
        self.expect("with")
        return self.make_instruction("replace", [first, self.read_new()])

    def read_remove(self) -> Instruction:
        gone = [self.read_known()]
        while self.take_separator():
            gone.append(self.read_known())
        return self.make_instruction("remove", gone)


_INSTRUCTIONS = {
    _Reader.read_add: ("add", "draw", "paint", "start with", "begin with"),
    _Reader.read_put: ("place", "put"),
    _Reader.read_move: ("move", "shift", "bring"),
    _Reader.read_modify: ("make", "turn", "change"),
    _Reader.read_swap: ("swap", "exchange"),
    _Reader.read_let: ("let",),
    _Reader.read_replace: ("replace",),
    _Reader.read_remove: ("remove", "erase", "take away"),
}

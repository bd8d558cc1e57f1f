"""The decoding grammar: an automaton over bytes, and its table over tokens.

The byte automaton accepts exactly the texts of a trajectory that ``trajectory.parse_plan`` and ``parse_refine`` accept
and that sampling may write:

    plan      = "<ins>" words "</ins>" (" " | newline)? "<des>" words "</des>"
    inspect   = words ("<refine>" words "</refine>")?
    free      = words
    words     = any UTF-8 without a tag, with either slash

``build_automaton`` runs the bytes of every token through it from every state. So tags are enforced and ``<refine>`` is
recognised however the tokenizer splits them, and sampling needs one table lookup for each token. A state is a position
in a text: "ins:</i" is in the instruction, after "</i". The state does not change when the text closes, so it still
gives the text's kind.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int8, Int16, Int32

from pdgen.sequence.modes import END, MODES
from pdgen.sequence.tokenizer import Tokenizer

FORBIDDEN = -1
KINDS = ("plan", "inspect", "inspect+refine", "free", "image")
SWITCHES = ("image", "text", END)
# The start state of a text, by the kind of the segment before it.
START_AFTER = {"prompt": "plan", "image": "after_image", "inspect": "plan", "inspect+refine": "plan"}

_TAGS = tuple(f"<{slash}{name}>" for name in ("ins", "des", "refine") for slash in ("", "/", "\\"))
_PREFIXES = sorted({tag[:n] for tag in _TAGS for n in range(len(tag))})
# The kind of a text by the part of its state (the name before ":").
_KIND_OF_PART = {
    **dict.fromkeys(("plan", "ins", "gap", "des", "plan_end"), "plan"),
    **dict.fromkeys(("after_image", "inspect"), "inspect"),
    **dict.fromkeys(("refine", "refine_end"), "inspect+refine"),
    "free": "free",
}
_ACCEPTING_PARTS = ("plan_end", "after_image", "inspect", "refine_end", "free")

ByteMachine = dict[str, dict[int, str]]  # state -> byte -> next state


@dataclasses.dataclass(frozen=True)
class Automaton:
    """The grammar for one tokenizer. S states, V ids of the model, K kinds.

    Attributes:
      names: the states' names, in order.
      table: the state after a token, FORBIDDEN (-1) if the token is not allowed. ``im_end`` is allowed in accepting
        states and does not change the state. Other special tokens are forbidden.
      accepting: whether the text may close in a state.
      kind: index into KINDS of the text's kind, as far as it is known ("inspect" until a tag decides).
      closings: the shortest tokens that lead to an accepting state, padded with -1. A text that is cut at its limit
        ends with them, so it needs room for C tokens and ``im_end``.
      starts: start states by name: "plan", "inspect", "free", "after_image" (a plan or an inspection).
      switches: whether an image, a text or END may follow a segment of each kind.
      switch_tokens: the tokens that announce them: vision_start, im_start, im_end.
    """

    names: tuple[str, ...]
    table: Int16[np.ndarray, "S V"]
    accepting: Bool[np.ndarray, " S"]
    kind: Int8[np.ndarray, " S"]
    closings: Int32[np.ndarray, "S C"]
    starts: dict[str, int]
    switches: Bool[np.ndarray, "K 3"]
    switch_tokens: Int32[np.ndarray, " 3"]

    def kind_of(self, state: int) -> str:
        """Return the kind of the text that closed in ``state``: a key of ``modes.MODES``, or "free"."""
        return KINDS[self.kind[state]]


def next_kinds(last: str) -> tuple[str, ...]:
    """Return those of SWITCHES that may follow a segment of kind ``last``; after "free", all of them."""
    following = MODES["process"].get(last, SWITCHES)
    allowed = {kind if kind in ("image", END) else "text" for kind in following}
    return tuple(kind for kind in SWITCHES if kind in allowed)


def _utf8_rows(part: str) -> ByteMachine:
    """Return the states inside a character: ``part:+n`` expects n more bytes, the others a restricted second byte."""
    rows = {f"{part}:+{n}": dict.fromkeys(range(0x80, 0xC0), f"{part}:+{n - 1}") for n in (2, 3)}
    rows[f"{part}:+1"] = dict.fromkeys(range(0x80, 0xC0), f"{part}:")
    # Unicode's table 3-7: no overlong forms, no surrogates, nothing beyond U+10FFFF.
    rows[f"{part}:+E0"] = dict.fromkeys(range(0xA0, 0xC0), f"{part}:+1")
    rows[f"{part}:+ED"] = dict.fromkeys(range(0x80, 0xA0), f"{part}:+1")
    rows[f"{part}:+F0"] = dict.fromkeys(range(0x90, 0xC0), f"{part}:+2")
    rows[f"{part}:+F4"] = dict.fromkeys(range(0x80, 0x90), f"{part}:+2")
    return rows


def _lead_bytes(part: str) -> dict[int, str]:
    """Return the transitions of the first bytes of characters beyond ASCII."""
    row = dict.fromkeys(range(0xC2, 0xE0), f"{part}:+1")
    row |= dict.fromkeys(range(0xE1, 0xF0), f"{part}:+2")
    row |= dict.fromkeys(range(0xF1, 0xF4), f"{part}:+3")
    return row | {byte: f"{part}:+{byte:X}" for byte in (0xE0, 0xED, 0xF0, 0xF4)}


def _words(part: str, exits: dict[str, str]) -> ByteMachine:
    """Return the states of ``words``, one for each prefix of a tag; a tag in ``exits`` leads to its state."""
    rows = _utf8_rows(part)
    for prefix in _PREFIXES:
        row = _lead_bytes(part)
        for byte in range(128):
            seen = prefix + chr(byte)
            if seen in exits:
                row[byte] = exits[seen]
            elif seen not in _TAGS:
                # Only "<" begins a tag, and no tag has another one inside, so a mismatch restarts at most at "<".
                prefix_after = seen if seen in _PREFIXES else "<" if chr(byte) == "<" else ""
                row[byte] = f"{part}:{prefix_after}"
        rows[f"{part}:{prefix}"] = row
    return rows


def _literal(part: str, text: str, target: str) -> ByteMachine:
    """Return the states of a fixed ``text``, named by the characters so far."""
    names = [f"{part}:{text[:n]}" for n in range(len(text))] + [target]
    return {name: {ord(char): after} for name, char, after in zip(names, text, names[1:])}


def byte_machine() -> ByteMachine:
    """Build the grammar over bytes: for every state the allowed bytes and the states that they lead to."""
    rows = _literal("plan", "<ins>", "ins:")
    rows |= _words("ins", {"</ins>": "gap:"})
    rows |= _literal("gap", "<des>", "des:")
    rows["gap: "] = {ord("<"): "gap:<"}
    rows["gap:"] |= {ord(" "): "gap: ", ord("\n"): "gap: "}
    rows |= _words("des", {"</des>": "plan_end:"})
    rows |= _words("inspect", {"<refine>": "refine:"})
    rows |= _words("refine", {"</refine>": "refine_end:"})
    rows |= _words("free", {})
    # After an image "<ins>" at the very beginning opens a plan; anything else is an inspection.
    opening = _literal("after_image", "<ins>", "ins:")
    for name, row in opening.items():
        opening[name] = rows["inspect:" + name.removeprefix("after_image:")] | row
    return rows | opening | {"plan_end:": {}, "refine_end:": {}}


def shortest_closings(rows: ByteMachine) -> dict[str, bytes]:
    """Find for every state the shortest bytes that close its text, such as b"</ins> <des></des>" for "ins:".

    Of several shortest ones the smallest is taken. A blank always follows an instruction, as in ``format_plan``.
    """
    closings = {state: b"" for state in rows if _accepts(state)}
    # Breadth first: each round adds the states that are one byte farther from an accepting one.
    rows = rows | {"gap:": {ord(" "): "gap: "}}
    while len(closings) < len(rows):
        closings |= {
            state: min(bytes([byte]) + closings[to] for byte, to in row.items() if to in closings)
            for state, row in rows.items()
            if state not in closings and not closings.keys().isdisjoint(row.values())
        }
    return closings


def _accepts(name: str) -> bool:
    part, _, seen = name.partition(":")
    return part in _ACCEPTING_PARTS and not seen.startswith("+")


def _lift(machine: np.ndarray, pieces: tuple[bytes, ...], vocab_size: int) -> np.ndarray:
    """Return the state [S, V] int16 to which the bytes of each token lead from each state.

    ``machine`` is [S + 1, 256] int16; its last row is the forbidden state, which leads to itself.
    """
    # Longest tokens first, so that the tokens with a byte at position p are a leading slice.
    forbidden = len(machine) - 1
    order = np.argsort([-len(piece) for piece in pieces], kind="stable")
    order = order[: sum(map(bool, pieces))]
    longest = max(map(len, pieces))
    columns = np.array([list(pieces[i].ljust(longest, b"\0")) for i in order], np.uint8).T.copy()
    lengths = np.array([len(pieces[i]) for i in order])
    counts = [int((lengths > position).sum()) for position in range(longest)]
    table = np.full((forbidden, vocab_size), FORBIDDEN, np.int16)
    for state in range(forbidden):
        reached = np.full(len(order), state, np.int16)
        for column, count in zip(columns, counts):
            reached[:count] = machine[reached[:count], column[:count]]
        table[state, order] = np.where(reached == forbidden, FORBIDDEN, reached)
    return table


def build_automaton(tokenizer: Tokenizer, vocab_size: int) -> Automaton:
    """Build the automaton of a tokenizer; this takes seconds for 152,064 ids.

    ``vocab_size`` is that of the model; ids that the tokenizer lacks are never allowed.

    Raises:
      ValueError: the tokenizer has more ids than the model.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{tokenizer.files[0]}: has {tokenizer.vocab_size} ids, the model only "
            f"{vocab_size}; use the tokenizer of the checkpoint"
        )
    rows = byte_machine()
    names = tuple(rows)
    number = {name: n for n, name in enumerate(names)}
    machine = np.full((len(names) + 1, 256), len(names), np.int16)
    for name, row in rows.items():
        machine[number[name], list(row)] = [number[after] for after in row.values()]
    accepting = np.array([_accepts(name) for name in names])
    table = _lift(machine, tokenizer.pieces, vocab_size)
    table[:, tokenizer.im_end] = np.where(accepting, np.arange(len(names)), FORBIDDEN)
    kinds = [_KIND_OF_PART[name.partition(":")[0]] for name in names]
    return Automaton(
        names=names,
        table=table,
        accepting=accepting,
        kind=np.array([KINDS.index(kind) for kind in kinds], np.int8),
        closings=_closing_tokens(rows, tokenizer),
        starts={start: number[f"{start}:"] for start in ("plan", "inspect", "free", "after_image")},
        switches=np.array([[s in next_kinds(kind) for s in SWITCHES] for kind in KINDS]),
        switch_tokens=np.array([tokenizer.vision_start, tokenizer.im_start, tokenizer.im_end], np.int32),
    )


def _closing_tokens(rows: ByteMachine, tokenizer: Tokenizer) -> np.ndarray:
    """Return the closings as tokens [S, C] int32; bytes that complete a character become one token each."""
    token_of_byte = {piece: i for i, piece in enumerate(tokenizer.pieces) if len(piece) == 1}
    closings = shortest_closings(rows)
    tokens = []
    for name in rows:
        words = closings[name].lstrip(bytes(range(0x80, 0xC0)))
        finish = closings[name][: len(closings[name]) - len(words)]
        tokens.append([token_of_byte[bytes([byte])] for byte in finish] + tokenizer.encode(words.decode()))
    width = max(map(len, tokens))
    return np.array([row + [-1] * (width - len(row)) for row in tokens], np.int32)

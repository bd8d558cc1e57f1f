"""The decoding grammar: an automaton over bytes, lifted to a table state x token.

A byte machine spells out the texts of a trajectory (UTF-8, tags in their places, nothing that
``trajectory.parse_plan`` or ``parse_refine`` would refuse):

    plan      = "<ins>" words "</ins>" (" " | newline)? "<des>" words "</des>"
    inspect   = words ("<refine>" words "</refine>")?
    free      = words
    words     = any UTF-8 in which no tag, with either slash, stands

``build_automaton`` runs every token's bytes through it from every state. A tag is then enforced and
``<refine>`` recognised however the tokenizer cuts it, and the sampler's control flow is one table lookup
per token. A state is a place in a text, e.g. "ins:</i" (in the instruction, after "</i"); it is kept when
the text closes, so that it still tells the text's kind.
"""

import dataclasses

import numpy as np

from pdgen.sequence.modes import END, MODES
from pdgen.sequence.tokenizer import Tokenizer

FORBIDDEN = -1
KINDS = ("plan", "inspect", "inspect+refine", "free", "image")
SWITCHES = ("image", "text", END)
# The state in which a text starts, by the kind of segment before it.
START_AFTER = {"prompt": "plan", "image": "after_image", "inspect": "plan", "inspect+refine": "plan"}

_TAGS = tuple(f"<{slash}{name}>" for name in ("ins", "des", "refine") for slash in ("", "/", "\\"))
_PREFIXES = sorted({tag[:n] for tag in _TAGS for n in range(len(tag))})
# Kind of a text by the part its state stands in (the name before ":").
_KIND_OF_PART = {
    "plan": "plan",
    "ins": "plan",
    "gap": "plan",
    "des": "plan",
    "plan_end": "plan",
    "after_image": "inspect",
    "inspect": "inspect",
    "refine": "inspect+refine",
    "refine_end": "inspect+refine",
    "free": "free",
}
_ACCEPTING_PARTS = ("plan_end", "after_image", "inspect", "refine_end", "free")

Rows = dict[str, dict[int, str]]  # state -> byte -> next state


@dataclasses.dataclass(frozen=True)
class Automaton:
    """The grammar for one tokenizer. S states, V ids of the model, K kinds.

    Attributes:
      names: the states' names, in order.
      table: [S, V] int16, the state after a token, FORBIDDEN (-1) where it may not stand. ``im_end`` is
        allowed in accepting states and keeps the state; other special tokens are forbidden.
      accepting: [S] bool, the text may close here.
      kind: [S] int8 into KINDS, what the text is, as far as it is known ("inspect" until a tag decides).
      closings: [S, C] int32, tokens that lead to an accepting state by the shortest way (a tag open at a
        limit is closed), padded with -1. A text that must close needs room for C tokens and ``im_end``.
      starts: start states by situation: "plan", "inspect", "free", "after_image" (a plan or an inspection).
      switches: [K, 3] bool, what may follow a segment of this kind: image, text, END.
      switch_tokens: [3] int32, the tokens that say so: vision_start, im_start, im_end.
    """

    names: tuple[str, ...]
    table: np.ndarray
    accepting: np.ndarray
    kind: np.ndarray
    closings: np.ndarray
    starts: dict[str, int]
    switches: np.ndarray
    switch_tokens: np.ndarray

    def kind_of(self, state: int) -> str:
        """The kind of the text that closed in ``state``: a key of ``modes.MODES``, or "free"."""
        return KINDS[self.kind[state]]

    def run(self, start: str, tokens: list[int]) -> int:
        """The state after ``tokens`` from the start state named ``start``; FORBIDDEN if one may not stand."""
        state = self.starts[start]
        for token in tokens:
            state = int(self.table[state, token])
            if state == FORBIDDEN:
                break
        return state


def next_kinds(last: str) -> tuple[str, ...]:
    """Of SWITCHES, what may follow a segment of kind ``last`` ("free": what follows is the caller's to say).

    An image is decided by ``<|vision_start|>``, a text by ``<|im_start|>``, END by ``<|im_end|>``.
    """
    following = MODES["process"].get(last, SWITCHES)
    allowed = {kind if kind in ("image", END) else "text" for kind in following}
    return tuple(kind for kind in SWITCHES if kind in allowed)


def _utf8_rows(part: str) -> Rows:
    """States inside a character; ``part:+n`` expects n more bytes, the others an unusual second byte."""
    rows = {f"{part}:+{n}": dict.fromkeys(range(0x80, 0xC0), f"{part}:+{n - 1}") for n in (2, 3)}
    rows[f"{part}:+1"] = dict.fromkeys(range(0x80, 0xC0), f"{part}:")
    # Unicode's table 3-7: no overlong forms, no surrogates, nothing beyond U+10FFFF.
    rows[f"{part}:+E0"] = dict.fromkeys(range(0xA0, 0xC0), f"{part}:+1")
    rows[f"{part}:+ED"] = dict.fromkeys(range(0x80, 0xA0), f"{part}:+1")
    rows[f"{part}:+F0"] = dict.fromkeys(range(0x90, 0xC0), f"{part}:+2")
    rows[f"{part}:+F4"] = dict.fromkeys(range(0x80, 0x90), f"{part}:+2")
    return rows


def _lead_bytes(part: str) -> dict[int, str]:
    row = dict.fromkeys(range(0xC2, 0xE0), f"{part}:+1")
    row |= dict.fromkeys(range(0xE1, 0xF0), f"{part}:+2")
    row |= dict.fromkeys(range(0xF1, 0xF4), f"{part}:+3")
    return row | {byte: f"{part}:+{byte:X}" for byte in (0xE0, 0xED, 0xF0, 0xF4)}


def _words(part: str, exits: dict[str, str]) -> Rows:
    """The states of ``words``, one per beginning of a tag; tags in ``exits`` lead on, others must not."""
    rows = _utf8_rows(part)
    for prefix in _PREFIXES:
        row = _lead_bytes(part)
        for byte in range(128):
            seen = prefix + chr(byte)
            if seen in exits:
                row[byte] = exits[seen]
            elif seen not in _TAGS:
                kept = seen if seen in _PREFIXES else "<" if chr(byte) == "<" else ""
                row[byte] = f"{part}:{kept}"
        rows[f"{part}:{prefix}"] = row
    return rows


def _literal(part: str, text: str, target: str) -> Rows:
    """The states of a fixed ``text``, named by how much of it stands already."""
    names = [f"{part}:{text[:n]}" for n in range(len(text))] + [target]
    return {name: {ord(char): after} for name, char, after in zip(names, text, names[1:])}


def byte_machine() -> Rows:
    """The grammar over bytes: for every state the bytes that may follow and where they lead."""
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


def shortest_closings(rows: Rows) -> dict[str, bytes]:
    """For every state the shortest bytes that close its text, e.g. "ins:" -> b"</ins> <des></des>".

    Of several, the smallest bytes; a closed instruction goes on as plans are written, with a blank.
    """
    closings = {state: b"" for state in rows if _accepts(state)}
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
    """[S, V] int16: where each token's bytes lead from each state.

    Tokens are ordered by length, so that the tokens that have a byte at position p are a leading slice.

    Args:
      machine: [S + 1, 256] int16, the byte machine; its last row is the forbidden state, which stays.
    """
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
    """The automaton of a tokenizer; seconds for 152,064 ids.

    Args:
      tokenizer: gives the bytes of every token.
      vocab_size: ids the model scores; those the tokenizer does not know are never allowed.

    Raises:
      ValueError: the tokenizer knows ids that the model does not score.
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


def _closing_tokens(rows: Rows, tokenizer: Tokenizer) -> np.ndarray:
    """[S, C] int32: the closings as tokens; bytes that finish a character go one by one."""
    token_of_byte = {piece: i for i, piece in enumerate(tokenizer.pieces) if len(piece) == 1}
    closings = shortest_closings(rows)
    tokens = []
    for name in rows:
        words = closings[name].lstrip(bytes(range(0x80, 0xC0)))
        finish = closings[name][: len(closings[name]) - len(words)]
        tokens.append([token_of_byte[bytes([byte])] for byte in finish] + tokenizer.encode(words.decode()))
    width = max(map(len, tokens))
    return np.array([row + [-1] * (width - len(row)) for row in tokens], np.int32)

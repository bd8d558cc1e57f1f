"""A pack in readable form: the token of every slot, what it sees, and its target.

Everything is read from the finished ``Pack``, as the model receives it. The image tokens of one copy differ only in
their position in the image, so they make one ``TokenRun``.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8, Int32

from pdgen.sequence.layout import STREAMS, TEXT, VAE, VIT, Budgets, Pack
from pdgen.sequence.tokenizer import PAD, SPECIALS, Tokenizer


@dataclasses.dataclass(frozen=True)
class TokenRun:
    """Slots [start, end) of the pack: one text token, or all image tokens of one copy of an image.

    Attributes:
      start, end: the slots.
      split: number of its split in the document.
      stage: "prompt", "plan", "sketch", ...
      stream: "text", "vit" or "vae".
      noised: whether it is a noised image.
      token: the text token as readable text; "" for image tokens.
      rotary: rotary position.
      sees: interval of slots whose keys its query may see, if their ``seen_by`` allows it.
      seen_by: interval of slots whose queries may see its key, if their ``sees`` allows it.
      target: its target as readable text; "velocity" for noised image tokens, "" for none.
      weight: weight of its loss, 0 without a target.
    """

    start: int
    end: int
    split: int
    stage: str
    stream: str
    noised: bool
    token: str
    rotary: int
    sees: tuple[int, int]
    seen_by: tuple[int, int]
    target: str
    weight: float

    @property
    def expert(self) -> str:
        """The expert that processes the tokens."""
        return "gen" if self.stream == "vae" else "und"

    @property
    def kind(self) -> str:
        """The kind of its tokens, as readable text."""
        return {"text": "text", "vit": "ViT", "vae": "noised VAE" if self.noised else "clean VAE"}[self.stream]

    @property
    def text(self) -> str:
        """The token, or the number of image tokens."""
        return self.token or f"{self.end - self.start} {self.kind} tokens"


@dataclasses.dataclass(frozen=True)
class ExplainedDocument:
    """One document of a pack.

    Attributes:
      record: the record's id.
      name: file and position of the record.
      epoch: epoch of its subset.
      turns: which turns of the record are its targets, as readable text.
      dropped: units that condition dropout removed, as readable text.
      runs: all its slots in order.
    """

    record: str
    name: str
    epoch: int
    turns: str
    dropped: tuple[str, ...]
    runs: tuple[TokenRun, ...]

    @property
    def start(self) -> int:
        """Its first slot."""
        return self.runs[0].start

    @property
    def end(self) -> int:
        """The slot after its last."""
        return self.runs[-1].end


@dataclasses.dataclass(frozen=True)
class ExplainedPack:
    """A pack in readable form.

    Attributes:
      number: number of the pack in the run.
      budgets, documents: its size, and its documents in order.
      streams: stream of each slot.
      intervals: k_start, k_end, q_start, q_end of each slot.
    """

    number: int
    budgets: Budgets
    documents: tuple[ExplainedDocument, ...]
    streams: Int8[np.ndarray, " S"]
    intervals: Int32[np.ndarray, "4 S"]

    @property
    def used(self) -> int:
        """Number of slots with tokens; the slots after them are padding."""
        return self.documents[-1].end if self.documents else 0


def stream_of_slots(pack: Pack) -> Int8[np.ndarray, " S"]:
    """Return the stream of each slot of a pack, in sequence order."""
    sizes = [len(pack.text_ids), len(pack.vit_positions), len(pack.vae_positions)]
    return np.repeat(np.array([TEXT, VIT, VAE], np.int8), sizes)[pack.to_sequence]


def readable(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as text without invisible characters."""
    ids = (tokenizer.im_start, tokenizer.im_end, tokenizer.vision_start, tokenizer.vision_end, tokenizer.pad)
    names = dict(zip(ids, (*SPECIALS, PAD)))
    if token in names:
        return names[token]
    data = tokenizer.token_bytes(token)
    text = data.decode(errors="replace").replace(" ", "\u2423").replace("\n", "\u23ce").replace("\t", "\u21e5")
    if "\ufffd" in text or not text.isprintable():  # a part of a character, or a control character
        return "".join(f"<{byte:02X}>" for byte in data)
    return text or f"<{token}>"


def document_runs(
    pack: Pack, tokenizer: Tokenizer, start: int, splits: Int32[np.ndarray, " n"], stages: Sequence[str]
) -> tuple[TokenRun, ...]:
    """Return the runs of the document that begins at slot ``start``.

    ``splits`` has the number of each slot's split, as in ``Layout``, and ``stages`` the stage of each split.
    """
    streams = stream_of_slots(pack)
    runs, slot, end = [], start, start + len(splits)
    while slot < end:
        last = slot + 1
        while streams[slot] != TEXT and streams[last] == streams[slot]:  # up to the closing switch token
            last += 1
        split = int(splits[slot - start])
        runs.append(_read_run(pack, tokenizer, int(streams[slot]), (slot, last), split, stages[split]))
        slot = last
    return tuple(runs)


def _read_run(
    pack: Pack, tokenizer: Tokenizer, stream: int, slots: tuple[int, int], split: int, stage: str
) -> TokenRun:
    slot = slots[0]
    index = int(pack.to_sequence[slot])
    token = target = ""
    weight, noised = 0.0, False
    if stream == TEXT:
        token, weight = readable(tokenizer, int(pack.text_ids[index])), float(pack.text_weights[index])
        target = readable(tokenizer, int(pack.text_targets[index])) if weight else ""
    elif stream == VAE:
        place = index - len(pack.text_ids) - len(pack.vit_positions)
        weight, noised = float(pack.vae_weights[place]), bool(pack.vae_image[place] >= 0)
        target = "velocity" if weight else ""
    return TokenRun(
        *slots,
        split=split,
        stage=stage,
        stream=STREAMS[stream],
        noised=noised,
        token=token,
        rotary=int(pack.rotary[index]),
        sees=(int(pack.k_start[slot]), int(pack.k_end[slot])),
        seen_by=(int(pack.q_start[slot]), int(pack.q_end[slot])),
        target=target,
        weight=weight,
    )

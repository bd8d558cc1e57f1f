"""Texts between their first and last token: written in parts, read in between, dropped or finished."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from pdgen.sample import kernels
from pdgen.sample.compiled import Stopwatch
from pdgen.sample.kernels import RowGroup, State
from pdgen.sample.model import Model
from pdgen.sample.text import TO_THE_END, TextSettings, WrittenTexts


class TextGroup(NamedTuple):
    """Texts that are written by one call, in ``slots`` of the batch.

    Attributes:
      rows: the slots, padded.
      starts: the grammar's state in which each text begins.
      written: what the steps so far gave.
      seconds: that they took.
    """

    settings: TextSettings
    slots: list[int]
    rows: RowGroup
    starts: Int32[np.ndarray, " G"]
    written: WrittenTexts | None = None
    seconds: float = 0.0


class Writing:
    """The next text of some rows of a batch, which must not change otherwise until the texts are finished.

    Args:
      call: calls a compiled function with its static arguments and its arrays.
      groups: the texts before their first token.

    Attributes:
      groups: the texts so far.
      steps: of the loop over tokens so far.
    """

    def __init__(self, model: Model, call: Callable[..., Any], groups: Sequence[TextGroup]) -> None:
        self._model, self._call, self.groups = model, call, list(groups)
        self.steps = 0

    @property
    def slots(self) -> list[int]:
        """Slots whose texts were begun and not dropped."""
        return [slot for group in self.groups for slot in group.slots]

    @property
    def is_done(self) -> bool:
        """Whether every text has closed."""
        return all(not group.slots or (group.written is not None and _has_closed(group)) for group in self.groups)

    def advance(self, state: State, to: int = TO_THE_END) -> State:
        """Write until every text has closed, at most up to step ``to``; return the state with the texts in it."""
        model = self._model
        for number, group in enumerate(self.groups):
            if not group.slots or (group.written is not None and _has_closed(group)):
                continue
            watch, grammar = Stopwatch(model.compiler), (model.grammar, group.starts)
            static = (model.static, group.settings, model.text_switches)
            state, written = self._call(
                kernels.write_text, static, model.params, state, group.rows, grammar, group.written, np.int32(to)
            )
            np.asarray(written.count)  # waits for the device
            self.groups[number] = group._replace(written=written, seconds=group.seconds + watch.seconds)
        self.steps = to
        return state

    def read(self) -> dict[int, list[int]]:
        """Return, by slot, the tokens so far."""
        return {
            slot: np.asarray(group.written.tokens)[n, : np.asarray(group.written.count)[n]].tolist()
            for group in self.groups
            if group.written is not None
            for n, slot in enumerate(group.rows.index.tolist())
            if slot in group.slots
        }

    def keep(self, slots: Collection[int]) -> None:
        """Drop all texts but those of ``slots``; the rows of the others hold parts of texts and must be released."""
        for number, group in enumerate(self.groups):
            dropped = np.isin(group.rows.index, [slot for slot in group.slots if slot not in slots])
            index = np.where(dropped, TO_THE_END, group.rows.index).astype(np.int32)  # as padding
            kept = [slot for slot in group.slots if slot in slots]
            self.groups[number] = group._replace(slots=kept, rows=group.rows._replace(index=index))


def _has_closed(group: TextGroup) -> bool:
    assert group.written is not None
    is_open = ~np.asarray(group.written.done) & np.isin(group.rows.index, group.slots)
    return not is_open.any()

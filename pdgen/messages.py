"""Parts of messages: lists of names and of faults that stay short however long the list is."""

import collections
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MAX_NAMES = 3
_MAX_LENGTH = 330  # of all names or clauses in a message


class Fault(NamedTuple):
    """One fault of many.

    Attributes:
      kind: What the faults of this kind have in common, to follow a number, such as "missing".
      name: What is faulty, such as a tensor's name.
      text: The fault as a clause.
    """

    kind: str
    name: str
    text: str


def name_some(names: Iterable[Any], separator: str = ", ") -> str:
    """Return the first ``MAX_NAMES`` names as text and the number of the others; shorten long names in the middle."""
    names = [str(name) for name in names]
    shown, more = names[:MAX_NAMES], f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return separator.join(shorten(name, _MAX_LENGTH // len(shown)) for name in shown) + more


def describe_faults(faults: Sequence[Fault]) -> str:
    """Return the clauses of up to ``MAX_NAMES`` faults, or the number of each kind and some names, of every kind."""
    if len(faults) <= MAX_NAMES:
        return name_some((fault.text for fault in faults), "; ")
    kinds: collections.Counter[str] = collections.Counter()
    ranks = []
    for fault in faults:
        kinds[fault.kind] += 1
        ranks.append(kinds[fault.kind])
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    names = [faults[n].name for n in sorted(range(len(faults)), key=ranks.__getitem__)]  # the first of every kind
    return f"{len(faults):,} faults, {counts}: {name_some(names)}"


def shorten(text: str, length: int) -> str:
    """Return ``text``, without its middle if it has more than ``length`` characters; its end often has the remedy."""
    half = length // 2 - 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"

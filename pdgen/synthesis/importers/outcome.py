"""What becomes of a sample of another data set: a record, or a reason why not."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pdgen.sequence.trajectory import Record, TrajectoryError, check_grammar

UNGRAMMATICAL = "breaks the sequence grammar"
NAMED = 20  # samples named per reason
CHUNK_SIZE = 32  # samples in memory at a time


class ImporterError(ValueError):
    """A whole file or folder is not of the format; one line names it and what was expected."""


class RefusedSample(ValueError):
    """A sample cannot become a record. ``reason`` is one of few, for counting; the text tells the details."""

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(details)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class SkippedSample:
    """A sample that was left out: ``where`` names file and row, ``reason`` is for counting."""

    where: str
    reason: str
    details: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.details}"


Outcome = Record | SkippedSample


@dataclasses.dataclass(frozen=True)
class SourceSample:
    """One sample as it was stored: ``where`` for messages, ``id`` for its record."""

    where: str
    id: str
    content: Any


def convert(samples: Iterable[SourceSample], make: Callable[[str, Any], Record]) -> Iterator[Outcome]:
    """``make(id, content)`` of every sample, or why there is none.

    ``make`` raises Refused, or TrajectoryError for texts that hold tags; what it returns is checked against
    the sequence grammar. Outcomes keep the samples' order; threads share the work, which is pictures mostly.
    """

    def outcome(sample: SourceSample) -> Outcome:
        try:
            record = make(sample.id, sample.content)
            check_grammar(record)
        except RefusedSample as fault:
            return SkippedSample(sample.where, fault.reason, str(fault))
        except TrajectoryError as fault:
            return SkippedSample(sample.where, UNGRAMMATICAL, str(fault))
        return record

    remaining = iter(samples)
    with ThreadPoolExecutor() as threads:
        while together := list(itertools.islice(remaining, CHUNK_SIZE)):
            yield from threads.map(outcome, together)


class Tally:
    """Counts what passes: ``records`` and, by reason, what was skipped, the first ``NAMED`` by name."""

    def __init__(self) -> None:
        self.records = 0
        self._skipped: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def filter_records(self, outcomes: Iterable[Outcome]) -> Iterator[Record]:
        """The records among ``outcomes``."""
        for outcome in outcomes:
            if isinstance(outcome, SkippedSample):
                self._counts[outcome.reason] = self._counts.get(outcome.reason, 0) + 1
                named = self._skipped.setdefault(outcome.reason, [])
                if len(named) < NAMED:
                    named.append(str(outcome))
            else:
                self.records += 1
                yield outcome

    @property
    def skipped(self) -> dict[str, int]:
        """How many samples were skipped, by reason."""
        return dict(self._counts)

    def to_dict(self) -> dict[str, Any]:
        """For ``dataset.json``: counts, and the names of the first skipped samples of each reason."""
        skipped = {r: {"samples": n, "first": self._skipped[r]} for r, n in sorted(self._counts.items())}
        return {"imported": self.records, "skipped": skipped}

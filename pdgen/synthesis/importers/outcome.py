"""Outcomes of the import of a sample: a record, or the reason why it was skipped."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pdgen.sequence.trajectory import Record, TrajectoryError, check_grammar

UNGRAMMATICAL = "breaks the sequence grammar"
NAMED = 20  # skipped samples listed per reason
CHUNK_SIZE = 32  # samples in memory at a time


class ImporterError(ValueError):
    """A file or folder that does not have the format. The message is one line with its name and the expected format."""


class RefusedSample(ValueError):
    """A sample that cannot become a record. ``reason`` is one of a few texts, for counting; the message has details."""

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(details)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class SkippedSample:
    """A sample that was skipped. ``where`` names file and row; ``reason`` is for counting."""

    where: str
    reason: str
    details: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.details}"


Outcome = Record | SkippedSample


@dataclasses.dataclass(frozen=True)
class SourceSample:
    """One sample as stored: ``where`` is for messages, ``id`` for its record."""

    where: str
    id: str
    content: Any


def convert(samples: Iterable[SourceSample], make: Callable[[str, Any], Record]) -> Iterator[Outcome]:
    """Convert samples to records by ``make(id, content)``, in order.

    A sample is skipped if ``make`` raises RefusedSample, or TrajectoryError for texts with tags, or if the record
    breaks the sequence grammar. Threads share the work, which is mostly decoding of pictures.
    """

    def convert_one(sample: SourceSample) -> Outcome:
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
        while chunk := list(itertools.islice(remaining, CHUNK_SIZE)):
            yield from threads.map(convert_one, chunk)


class Tally:
    """Counts of ``records`` and of samples ``skipped`` by reason, with the first ``NAMED`` of each reason."""

    def __init__(self) -> None:
        self.records = 0
        self.skipped: collections.Counter[str] = collections.Counter()
        self._first: dict[str, list[str]] = {}

    def filter_records(self, outcomes: Iterable[Outcome]) -> Iterator[Record]:
        """Yield the records among ``outcomes``, and count all."""
        for outcome in outcomes:
            if isinstance(outcome, SkippedSample):
                self.skipped[outcome.reason] += 1
                if self.skipped[outcome.reason] <= NAMED:
                    self._first.setdefault(outcome.reason, []).append(str(outcome))
            else:
                self.records += 1
                yield outcome

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for ``dataset.json``: counts, and the first skipped samples of each reason."""
        skipped = {r: {"samples": n, "first": self._first[r]} for r, n in sorted(self.skipped.items())}
        return {"imported": self.records, "skipped": skipped}

"""The log of what happened, from which every connected page is served.

Events are numbered. An event says how things are now, not how they changed, so of a text that grows and of a picture
that clears only the latest event is kept: the log stays small, and who missed an earlier one missed nothing.
"""

import asyncio
import collections
import secrets
import threading
from typing import Any, NamedTuple

import msgspec

from pdgen.studio.errors import StudioError

KEPT = 10_000  # events; who was away for more reads everything anew


class StudioEvent(NamedTuple):
    """One event: its number, its kind, and its content as JSON."""

    number: int
    kind: str
    data: str


class EventLog:
    """Events of all trajectories, in order. Any thread may add events; coroutines wait for them.

    Attributes:
      epoch: distinguishes the numbers of this process from those of an earlier one.
    """

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._events: collections.OrderedDict[int, StudioEvent] = collections.OrderedDict()
        self._passing: dict[str, int] = {}  # by subject, the number of its latest event that passes
        self._last, self._dropped = 0, 0
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def cursor(self) -> str:
        """The place after the last event."""
        with self._lock:
            return f"{self.epoch}-{self._last}"

    def add(self, kind: str, content: Any, passing: str = "", ends: str = "") -> None:
        """Add an event.

        Args:
          kind: such as "stage".
          content: what msgspec can write as JSON.
          passing: the event replaces the last one with the same word.
          ends: the last event with this word says nothing any more.
        """
        data = msgspec.json.encode(content).decode()
        with self._lock:
            self._last += 1
            for word in filter(None, (passing, ends)):
                self._events.pop(self._passing.pop(word, 0), None)
            if passing:
                self._passing[passing] = self._last
            self._events[self._last] = StudioEvent(self._last, kind, data)
            if len(self._events) > KEPT:
                self._dropped = self._events.popitem(last=False)[0]
            waiting = list(self._waiting)
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def parse_cursor(self, cursor: str) -> int | None:
        """Return the number in a cursor; None where the events after it are no longer known.

        Raises:
          StudioError: it is no cursor at all.
        """
        epoch, dash, number = cursor.partition("-")
        if not dash or not (number.isascii() and number.isdigit() and len(number) < 18):
            raise StudioError(f"cursor {cursor[:40]!r}: give the cursor of GET /api/trajectories or the id of an event")
        with self._lock:
            known = epoch == self.epoch and self._dropped <= int(number) <= self._last
        return int(number) if known else None

    def read(self, after: int) -> list[StudioEvent] | None:
        """Return the events after number ``after``; None where some of them are no longer known."""
        with self._lock:
            if after < self._dropped:
                return None
            newer = []
            for number in reversed(self._events):
                if number <= after:
                    break
                newer.append(self._events[number])
            return newer[::-1]

    async def wait(self, after: int, seconds: float) -> None:
        """Wait until there is an event after number ``after``, at most for some seconds."""
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        with self._lock:
            if self._last > after:
                return
            self._waiting.add(waiter)
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting.discard(waiter)

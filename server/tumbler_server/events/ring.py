"""The newest events in memory, for streams that are nearly up to date."""

import itertools
import threading
from collections import deque
from collections.abc import Sequence

from tumbler_server import limits
from tumbler_server.events import log
from tumbler_server.events.log import Event

SIZE = limits.RING_EVENTS.most


class Ring:
    """The log's last events up to ``position``, without a gap. Safe for use by many threads.

    It holds at most ``size`` events and about ``most_memory`` bytes.
    """

    def __init__(self, position: int, size: int = SIZE, most_memory: int = limits.RING_BYTES.most) -> None:
        self._events: deque[Event] = deque()
        self._size = size
        self._most_memory = most_memory
        self._memory = 0
        self._lock = threading.Lock()
        self._position = position

    @property
    def memory(self) -> int:
        """About how many bytes the events take in memory."""
        return self._memory

    def extend(self, events: Sequence[Event]) -> None:
        """Append the next events, of which there must be at least one."""
        memory = sum(map(log.memory, events))
        with self._lock:
            self._events.extend(events)
            self._memory += memory
            while len(self._events) > self._size or self._memory > self._most_memory:
                self._memory -= log.memory(self._events.popleft())
            self._position = events[-1].revision

    def restart(self, position: int) -> None:
        """Drop all events and continue after ``position``."""
        with self._lock:
            self._events.clear()
            self._memory = 0
            self._position = position

    def after(self, revision: int, limit: int) -> list[Event] | None:
        """Return the first ``limit`` events after a revision, or None if the ring does not hold them all."""
        with self._lock:
            missed = self._position - revision
            if not 0 <= missed <= len(self._events):
                return None
            if missed <= limit:  # the usual case: read from the end, without walking over all older events
                return list(itertools.islice(reversed(self._events), missed))[::-1]
            start = len(self._events) - missed
            return list(itertools.islice(self._events, start, start + limit))

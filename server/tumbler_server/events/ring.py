"""The newest events, in memory, for whoever is nearly up to date."""

import itertools
import threading
from collections import deque
from collections.abc import Sequence

from tumbler_server.events.log import Event

SIZE = 10_000
"""How many events are kept: some 10 MB."""


class Ring:
    """The log's last events, without a gap up to ``position``. Safe for use by many threads."""

    def __init__(self, position: int, size: int = SIZE) -> None:
        self._events: deque[Event] = deque(maxlen=size)
        self._lock = threading.Lock()
        self._position = position

    def extend(self, events: Sequence[Event]) -> None:
        """Add the events that follow."""
        with self._lock:
            self._events.extend(events)
            self._position = events[-1].revision

    def restart(self, position: int) -> None:
        """Forget all events: those after ``position`` come next."""
        with self._lock:
            self._events.clear()
            self._position = position

    def after(self, revision: int, limit: int) -> list[Event] | None:
        """Return the first ``limit`` events after a revision; None where they are not all here any more."""
        with self._lock:
            missed = self._position - revision
            if not 0 <= missed <= len(self._events):
                return None
            if missed <= limit:  # the usual way: without a walk along all that went before
                return list(itertools.islice(reversed(self._events), missed))[::-1]
            start = len(self._events) - missed
            return list(itertools.islice(self._events, start, start + limit))

"""What a stream is to be told next: from memory where that reaches back far enough, else from the log's pages."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from tumbler_server import limits
from tumbler_server.events import log
from tumbler_server.events.log import Event
from tumbler_server.events.ring import SIZE
from tumbler_server.events.tail import Tail
from tumbler_server.store.database import Store

MOST_EVENTS = limits.NOTICE_EVENTS.most
"""Events in one notice at the most: it is made on the loop, which serves nobody else meanwhile (some 1 ms)."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What comes next for a stream: all events that concern it, in order, up to and with the revision ``cursor``.

    ``reset``: what came between is not known any more, and what the listener made of earlier notices is void.
    """

    events: tuple[Event, ...]
    cursor: int
    reset: bool = False
    rendered: bytes | None = field(default=None, init=False, repr=False, compare=False)
    """What the layer above makes of it, once for all streams that are told the same."""


class Feed:
    """Says what comes after a revision, in one project or in all (``""``). Safe for use by many threads."""

    def __init__(self, store: Store, tail: Tail) -> None:
        self._store = store
        self._tail = tail
        # Streams that are up to date are all told the same; the key says what the answer depends on.
        self._shared = functools.lru_cache(maxsize=limits.SHARED_NOTICES.most)(self._remembered)
        self.nothing = functools.lru_cache(maxsize=limits.SHARED_NOTICES.most)(functools.partial(Notice, ()))
        """Returns the word that there was nothing else up to a revision, one for all streams."""

    def recent(self, project_id: str, revision: int) -> Notice | None:
        """Return what comes next, if memory has it all, up to the tail's position; None where it has not."""
        return self._shared(project_id, revision, self._tail.position, self._tail.resets)

    def kept(self, project_id: str, revision: int) -> Notice:
        """Return what comes next, a page of the log; a reset where it was removed, or is none of this log.

        Raises ``StoreUnavailable``.
        """
        reached = self._tail.position
        if revision > reached:
            return Notice((), reached, reset=True)
        page = log.events_after(self._store, revision, MOST_EVENTS, project_id)
        if log.anchor(self._store) > revision:  # asked afterwards, since events may have been removed meanwhile
            return Notice((), reached, reset=True)
        if len(page) == MOST_EVENTS:
            reached = min(reached, page[-1].revision)
        return _notice([event for event in page if event.revision <= reached], reached)

    def _remembered(self, project_id: str, revision: int, _position: int, _resets: int) -> Notice | None:
        events = self._tail.ring.after(revision, SIZE if project_id else MOST_EVENTS)
        if events is None:
            return None
        reached = events[-1].revision if events else revision
        if project_id:
            events = [event for event in events if event.project_id == project_id]
        if len(events) > MOST_EVENTS:
            events = events[:MOST_EVENTS]
            reached = events[-1].revision
        return _notice(events, reached)


def _notice(events: Sequence[Event], reached: int) -> Notice:
    """Return a notice of as many of the first events as have room in it."""
    sizes = itertools.accumulate(map(log.sent, events))
    room = max(1, sum(1 for size in sizes if size <= limits.NOTICE_BYTES.most))
    if room < len(events):
        events = events[:room]
        reached = events[-1].revision
    return Notice(tuple(events), reached)

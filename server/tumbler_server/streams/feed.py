"""The next notice for a stream, from memory if that reaches back far enough, otherwise from the log page by page."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from tumbler_server import limits
from tumbler_server.events import log
from tumbler_server.events.log import Event
from tumbler_server.events.ring import SIZE
from tumbler_server.freshness.tail import Tail
from tumbler_server.store.database import Store

MOST_EVENTS = limits.NOTICE_EVENTS.most
"""Most events in a notice. It is built on the event loop, which it blocks for about 1 ms."""


@dataclass(frozen=True, slots=True)
class Notice:
    """The next part of a stream: all of its events, in order, up to and including the revision ``cursor``.

    ``reset`` means that events were missed and can no longer be read. State built from earlier notices is void.
    """

    events: tuple[Event, ...]
    cursor: int
    reset: bool = False
    rendered: bytes | None = field(default=None, init=False, repr=False, compare=False)
    """The serialized notice, set by the layer above once for all streams that share it."""


class Feed:
    """Returns what follows a revision, in one project or in all (``""``). Safe for use by many threads."""

    def __init__(self, store: Store, tail: Tail) -> None:
        self._store = store
        self._tail = tail
        # All streams that are up to date share a notice. The cache key holds all that the notice depends on.
        self._shared = functools.lru_cache(maxsize=limits.SHARED_NOTICES.most)(self._remembered)
        self.nothing = functools.lru_cache(maxsize=limits.SHARED_NOTICES.most)(functools.partial(Notice, ()))
        """Returns the notice that there are no more events up to a revision, shared by all streams."""

    def recent(self, project_id: str, revision: int) -> Notice | None:
        """Return the next notice up to the tail's position from memory, or None if memory lacks some of the events."""
        return self._shared(project_id, revision, self._tail.position, self._tail.resets)

    def kept(self, project_id: str, revision: int) -> Notice:
        """Return the next notice from a page of the log.

        Return a reset if the events were removed, or if the revision is not in this log. Raises ``StoreUnavailable``.
        """
        reached = self._tail.position
        if revision > reached:
            return Notice((), reached, reset=True)
        page = log.events_after(self._store, revision, MOST_EVENTS, project_id)
        if log.anchor(self._store) > revision:  # check last: events may have been removed meanwhile
            return Notice((), reached, reset=True)
        if len(page) == MOST_EVENTS:
            reached = min(reached, page[-1].revision)
        notice = _notice([event for event in page if event.revision <= reached], reached)
        # So that the loop, which renders it, finds its cursor's mark in memory: the tail's, or the last event's.
        self._tail.lineage.note_older((event.revision, event.hash) for event in notice.events[-1:])
        return notice

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
    """Return a notice of as many of the first events as fit in it."""
    sizes = itertools.accumulate(map(log.sent, events))
    room = max(1, sum(1 for size in sizes if size <= limits.NOTICE_BYTES.most))
    if room < len(events):
        events = events[:room]
        reached = events[-1].revision
    return Notice(tuple(events), reached)

"""Reads of the audit trail in pages, oldest first."""

from collections.abc import Iterator
from dataclasses import dataclass

from tumbler_server.clock import MINUTE
from tumbler_server.events import log
from tumbler_server.events.log import Event
from tumbler_server.store.database import Store

CLOCKS_DIFFER = 10 * MINUTE
"""The clock skew between an installation's servers up to which ``since`` misses no event."""


@dataclass(frozen=True)
class EventFilter:
    """Which events to read: those that match all fields. ``since`` is a time; None means from the oldest kept event."""

    project_id: str = ""
    key_id: str = ""
    types: tuple[int, ...] = ()
    since: int | None = None


_AT_ONCE = 200
"""Events per query. An event takes at most about 30 kB, and all events of a query are in memory at once."""


def read(store: Store, wanted: EventFilter, after: int | None, limit: int) -> Iterator[Event]:
    """Yield the first ``limit`` matching events in commit order, from the oldest or after a revision.

    Events are read as the iterator advances.
    """
    if after is None:
        after = 0 if wanted.since is None else first_since(store, wanted.since) - 1
    conditions = ["revision > ?"]
    parameters: list[object] = []
    equal = {"project_id": wanted.project_id, "key_id": wanted.key_id}
    for column, value in equal.items():
        if value:
            conditions.append(f"{column} = ?")
            parameters.append(value)
    if wanted.types:
        conditions.append(f"type IN ({', '.join('?' * len(wanted.types))})")
        parameters += wanted.types
    if wanted.since is not None:
        conditions.append("time >= ?")
        parameters.append(wanted.since)
    condition = " AND ".join(conditions)
    while limit > 0:
        page = log.select(store, condition, (after, *parameters), min(limit, _AT_ONCE))
        yield from page
        if len(page) < _AT_ONCE:
            return
        after, limit = page[-1].revision, limit - len(page)


def first_since(store: Store, instant: int) -> int:
    """Return a revision before which every event is older than ``instant``.

    A binary search takes about 20 lookups, however long the log. There is no index on times and none is needed:
    revisions have no gaps, and times increase with them up to the clock skew between servers. The search finds an event
    that is not older than ``instant`` less ``CLOCKS_DIFFER`` and whose predecessor is. With that margin, all events
    before it are older than ``instant``. The reader compares the times of the others exactly.
    """
    low, high = log.anchor(store) + 1, log.head(store).revision + 1
    while low < high:
        middle = (low + high) // 2
        rows = store.read("SELECT time FROM event WHERE revision = ?", (middle,))
        if rows and rows[0][0] >= instant - CLOCKS_DIFFER:
            high = middle
        else:  # older, or removed meanwhile by retention
            low = middle + 1
    return low

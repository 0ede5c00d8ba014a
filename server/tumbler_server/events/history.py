"""Reading the audit trail in pages, oldest first."""

from collections.abc import Iterator
from dataclasses import dataclass

from tumbler_server.clock import MINUTE
from tumbler_server.events import log
from tumbler_server.events.log import Event
from tumbler_server.store.database import Store

CLOCKS_DIFFER = 10 * MINUTE
"""How far apart the clocks of an installation's servers may be without ``since`` missing an event."""


@dataclass(frozen=True)
class Filter:
    """Which events: all that fit everything said here. ``since`` is an instant; None: from the oldest kept."""

    project_id: str = ""
    key_id: str = ""
    types: tuple[int, ...] = ()
    since: int | None = None


_AT_ONCE = 200
"""Events in one query: some 30 kB each at the most, and all of them are in memory together."""


def read(store: Store, wanted: Filter, after: int | None, limit: int) -> Iterator[Event]:
    """Return the first ``limit`` events that fit, in commit order: from the oldest, or after a revision.

    They are read as they are taken.
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
    """Return a revision before which no event was made at or after ``instant``: some 20 look-ups, however long the log.

    There is no index on times, and none is needed: revisions have no gaps, and times go up with them but for how far
    the servers' clocks are apart. So the first event that is not older than ``instant``, less that much, is found by
    halving; all before the one that precedes it are older than ``instant``, and so is that one. What comes
    after it is compared exactly by whoever reads it.
    """
    low, high = log.anchor(store) + 1, log.head(store).revision + 1
    while low < high:
        middle = (low + high) // 2
        rows = store.read("SELECT time FROM event WHERE revision = ?", (middle,))
        if rows and rows[0][0] >= instant - CLOCKS_DIFFER:
            high = middle
        else:  # older, or removed meanwhile
            low = middle + 1
    return low

"""Reading the audit trail from an instant on."""

from typing import Any, cast

import pytest

from tests.harness import FrozenClock
from tests.unit.test_log import append, change, remove
from tumbler_server.clock import MINUTE, SECOND
from tumbler_server.events import history
from tumbler_server.events.history import EventFilter
from tumbler_server.store.database import Store


def timed(store: Store, clock: FrozenClock, *seconds: int) -> None:
    """Append events made this many seconds from now."""
    append(store, *(change(number, time=clock.now + second * SECOND) for number, second in enumerate(seconds)))


def since(store: Store, clock: FrozenClock, second: int) -> list[int]:
    """Return the revisions of the events since this many seconds from now."""
    return [
        event.revision for event in history.read(store, EventFilter(since=clock.now + second * SECOND), None, 1_000)
    ]


class TestSince:
    """The events at or after an instant."""

    @pytest.mark.parametrize("second", range(-1, 7))
    def test_every_instant(self, store: Store, clock: FrozenClock, second: int) -> None:
        """For an instant before, in or after the log, exactly the events at or after it are read."""
        seconds = [0, 1, 1, 2, 4, 5]
        timed(store, clock, *seconds)
        expected = [place + 1 for place, made in enumerate(seconds) if made >= second]
        assert since(store, clock, second) == expected

    def test_empty(self, store: Store, clock: FrozenClock) -> None:
        """An empty log has none."""
        assert since(store, clock, 0) == []

    @pytest.mark.parametrize("second", [-100_000, 0, 600, 1_800, 3_600, 4_000, 100_000])
    @pytest.mark.parametrize("apart", [1, 599])
    def test_clocks_that_differ(self, store: Store, clock: FrozenClock, apart: int, second: int) -> None:
        """If two servers' clocks differ by less than ten minutes, no event is missed and none is too old."""
        seconds = [place * 60 - apart * (place % 3 == 1) for place in range(70)]
        timed(store, clock, *seconds)
        assert since(store, clock, second) == [place + 1 for place, made in enumerate(seconds) if made >= second]

    @pytest.mark.parametrize("removed", [1, 3, 5])
    def test_removed(self, store: Store, clock: FrozenClock, removed: int) -> None:
        """If the log's oldest events have been removed, the others are found in the same way."""
        timed(store, clock, *range(6))
        remove(store, removed)
        assert since(store, clock, -1_000) == list(range(removed + 1, 7))
        assert since(store, clock, 5) == [6]

    def test_few_reads(self, store: Store, clock: FrozenClock) -> None:
        """The position is found by a few reads of single events, and no event before it is listed."""
        timed(store, clock, *(place * 3_600 for place in range(1_000)))
        asked: list[tuple[str, Any]] = []

        class Watched:
            def read(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
                asked.append((sql, parameters))
                return store.read(sql, parameters)

        instant = clock.now + 900 * 3_600 * SECOND
        found = list(history.read(cast("Store", Watched()), EventFilter(since=instant), None, 10))
        assert [event.revision for event in found] == list(range(901, 911))
        assert len(asked) <= 2 + 10 + 1
        *look_ups, (sql, parameters) = asked
        assert all("WHERE revision = ?" in sql or "log_head" in sql for sql, _ in look_ups)
        assert "revision > ?" in sql
        assert parameters[0] == 900

    def test_no_search_on_later_pages(self, store: Store, clock: FrozenClock) -> None:
        """A page that continues another does not search."""
        timed(store, clock, *range(5))
        assert [event.revision for event in history.read(store, EventFilter(since=clock.now), 3, 10)] == [4, 5]


def test_long_pages(store: Store) -> None:
    """A page of more events than one query returns is complete, in order and not too long."""
    append(store, *(change(number) for number in range(450)))
    read = [event.revision for event in history.read(store, EventFilter(), 3, 420)]
    assert read == list(range(4, 424))
    assert [event.revision for event in history.read(store, EventFilter(project_id="acme"), None, 1_000)][-1] == 450


def test_read_as_taken(store: Store) -> None:
    """Events are read only as they are consumed, because a few large ones fill an answer."""
    append(store, *(change(number) for number in range(450)))
    asked: list[str] = []

    class Watched:
        def read(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
            asked.append(sql)
            return store.read(sql, parameters)

    events = history.read(cast("Store", Watched()), EventFilter(), None, 1_000)
    for _ in range(150):
        next(events)
    assert len(asked) == 1


def test_removed_while_searching(store: Store, clock: FrozenClock) -> None:
    """Events removed during the search count as older than all that remain."""
    timed(store, clock, *(place * 3_600 for place in range(8)))

    class Shrinking:
        def read(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
            if sql.startswith("SELECT time") and not store.read("SELECT anchor_revision FROM log_head")[0][0]:
                remove(store, 6)
            return store.read(sql, parameters)

    assert history.first_since(cast("Store", Shrinking()), clock.now - 11 * MINUTE) == 7
    assert since(store, clock, -11 * 60) == [7, 8]

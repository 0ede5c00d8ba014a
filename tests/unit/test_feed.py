"""The next notice of a stream, from memory and from the log."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.domain import Domain
from tests.harness import FrozenClock
from tumbler_server import limits
from tumbler_server.clock import DAY
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.events.retention import Retention
from tumbler_server.events.ring import Ring
from tumbler_server.store.database import Store, Transaction, open_store
from tumbler_server.streams.feed import Feed, Notice


@pytest.fixture
def feed(domain: Domain) -> Feed:
    """Return a feed of an empty log."""
    return Feed(domain.store, domain.tail)


@pytest.fixture
def other(store: Store, database_url: str) -> Iterator[Store]:
    """Yield a store that acts as another server on the same database."""
    other = open_store(database_url)
    yield other
    other.close()


def record(domain: Domain, count: int, project_id: str = "acme", **detail: str) -> None:
    """Append events without keys, in one transaction."""

    def work(transaction: Transaction) -> None:
        for _ in range(count):
            change = Change(EventType.UPDATED, "0" * 16, project_id, "", domain.clock(), Actor("", "the tests"), detail)
            log.append(transaction, change)

    domain.store.write_serialized(work)
    domain.tail.catch_up()


def forget(domain: Domain) -> None:
    """Empty the memory, as in a process that has just started."""
    domain.tail.ring = Ring(domain.tail.position)


def told(notice: Notice | None) -> tuple[list[int], int, bool] | None:
    """Return a notice as revisions, cursor and reset."""
    return notice and ([event.revision for event in notice.events], notice.cursor, notice.reset)


Source = Callable[[str, int], Notice | None]


@pytest.fixture(params=["recent", "kept"])
def source(feed: Feed, request: pytest.FixtureRequest) -> Source:
    """Return each of the two sources, which agree on what both hold."""
    return getattr(feed, request.param)  # type: ignore[no-any-return]


class TestBoth:
    """What memory and the log have in common."""

    def test_nothing(self, domain: Domain, source: Source) -> None:
        """After the newest revision there are no events, and the cursor stays."""
        assert told(source("", 0)) == ([], 0, False)
        record(domain, 3)
        assert told(source("", 3)) == ([], 3, False)

    def test_all(self, domain: Domain, source: Source) -> None:
        """A notice has all events after a revision, unchanged, and the last one's revision as its cursor."""
        record(domain, 5, "acme", fields="name")
        notice = source("", 2)
        assert told(notice) == ([3, 4, 5], 5, False)
        assert notice is not None
        assert list(notice.events) == log.events_after(domain.store, 2, 10)

    def test_one_project(self, domain: Domain, source: Source) -> None:
        """For one project a notice has only its events, and the cursor passes the others'."""
        for project in ("acme", "globex", "acme", "globex"):
            record(domain, 1, project)
        assert told(source("acme", 0)) == ([1, 3], 4, False)
        assert told(source("acme", 3)) == ([], 4, False)
        assert told(source("nobody", 0)) == ([], 4, False)

    def test_not_too_many(self, domain: Domain, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        """More events than fit in a notice come in several, without a gap, each with its own cursor."""
        monkeypatch.setattr("tumbler_server.streams.feed.MOST_EVENTS", 5)
        record(domain, 5, "globex")
        record(domain, 11, "acme")
        record(domain, 1, "globex")
        for project, first, last in (("", 1, 17), ("acme", 6, 16)):
            cursor, heard = 0, []
            while cursor < 17:
                notice = source(project, cursor)
                assert notice is not None
                assert 0 < len(notice.events) <= 5
                assert notice.cursor >= notice.events[-1].revision > cursor
                heard += [event.revision for event in notice.events]
                cursor = notice.cursor
            assert heard == list(range(first, last + 1))

    def test_not_too_large(self, domain: Domain, source: Source) -> None:
        """Large events come a few at a time to fit in a message, and a single one always fits."""
        record(domain, 12, scopes_added="s" * (limits.NOTICE_BYTES.most * 2 // 5))
        cursor, sizes = 0, []
        while cursor < 12:
            notice = source("", cursor)
            assert notice is not None
            sizes.append(len(notice.events))
            cursor = notice.cursor
        assert sizes == [2] * 6
        record(domain, 1, scopes_added="s" * 1_000_000)
        record(domain, 1)
        assert told(source("", 12)) == ([13], 13, False)


class TestRecent:
    """What only memory does."""

    def test_forgotten(self, domain: Domain, feed: Feed) -> None:
        """If memory lacks any of the events, it returns None."""
        record(domain, 3)
        forget(domain)
        record(domain, 2)
        assert feed.recent("", 2) is None
        assert told(feed.recent("", 3)) == ([4, 5], 5, False)
        assert feed.recent("", 6) is None

    def test_shared(self, domain: Domain, feed: Feed) -> None:
        """Equal requests share one notice until something changes."""
        record(domain, 2)
        notice = feed.recent("", 1)
        assert feed.recent("", 1) is notice
        record(domain, 1)
        assert told(feed.recent("", 1)) == ([2, 3], 3, False)


class TestKept:
    """What the log returns if memory does not reach back far enough."""

    def test_whatever_memory_holds(self, domain: Domain, feed: Feed) -> None:
        """A process that has just started returns earlier events."""
        record(domain, 5)
        forget(domain)
        assert told(feed.kept("", 1)) == ([2, 3, 4, 5], 5, False)

    def test_no_further_than_memory(self, domain: Domain, feed: Feed, other: Store) -> None:
        """A page ends at this process's position, because memory has the events after it."""
        record(domain, 2)
        theirs = Domain(other, FrozenClock())
        record(theirs, 2)
        assert told(feed.kept("", 0)) == ([1, 2], 2, False)
        theirs.close()

    def test_removed(self, domain: Domain, feed: Feed) -> None:
        """If the next event has been removed, the notice is a reset, and continues from the present."""
        record(domain, 4)
        domain.clock.advance(2 * DAY)
        record(domain, 2)
        Retention(domain.store, domain.clock, DAY).remove()
        assert log.anchor(domain.store) == 4
        assert told(feed.kept("", 3)) == ([], 6, True)
        assert told(feed.kept("nobody", 3)) == ([], 6, True)
        assert told(feed.kept("", 4)) == ([5, 6], 6, False)

    def test_removed_meanwhile(self, domain: Domain, feed: Feed, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Events removed while a page is read cause a reset."""
        record(domain, 4)
        domain.clock.advance(2 * DAY)
        record(domain, 2)
        read = Store.read

        def remove_first(store: Store, sql: str, parameters: Any = ()) -> Any:
            if "FROM event" in sql:
                monkeypatch.undo()
                Retention(other, domain.clock, DAY).remove()
            return read(store, sql, parameters)

        monkeypatch.setattr(Store, "read", remove_first)
        assert told(feed.kept("", 1)) == ([], 6, True)

    def test_beyond_the_end(self, domain: Domain, feed: Feed) -> None:
        """A revision beyond the log's end, from before a backup was restored, causes a reset."""
        record(domain, 2)
        assert told(feed.kept("", 3)) == ([], 2, True)
        assert told(feed.kept("acme", 3)) == ([], 2, True)

"""Whether a point in the log is in this history of it, or in one that the restore of a backup has ended."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.domain import Domain, new_store
from tests.harness import FrozenClock
from tests.unit.test_tail import restore
from tumbler_server import limits
from tumbler_server.clock import DAY
from tumbler_server.errors import StoreUnavailable
from tumbler_server.events import lineage as lineages
from tumbler_server.events import log
from tumbler_server.events.lineage import Lineage
from tumbler_server.events.retention import Retention
from tumbler_server.secrets.opaque_tokens import START, Point
from tumbler_server.store.database import Store


def points(lineage: Lineage, *revisions: int) -> list[Point]:
    """Return the points of a history at these revisions."""
    return [Point(revision, lineage.mark(revision)) for revision in revisions]


@pytest.fixture
def reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the statements that read the store are added."""
    read, seen = store.read, list[str]()

    def noted(sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        seen.append(sql)
        return read(sql, parameters)

    monkeypatch.setattr(store, "read", noted)
    return seen


def test_two_histories(domain: Domain) -> None:
    """After a restore, the points up to the backup are in the new history, and the lost ones never are."""
    for _ in range(4):
        domain.create()
    before = points(domain.tail.lineage, 0, 1, 2, 3, 4)
    restore(domain.store, 2)
    assert Lineage(domain.store).holds(before) == [True, True, True, False, False]
    after = Domain(domain.store, domain.clock)
    for _ in range(4):
        after.create()
    for lineage in (after.tail.lineage, Lineage(domain.store)):
        assert lineage.holds(before) == [True, True, True, False, False]
        assert lineage.holds(points(after.tail.lineage, *range(7))) == [True] * 7
    after.close()


def test_what_is_no_longer_kept(domain: Domain, clock: FrozenClock) -> None:
    """A point whose event was removed cannot be compared and counts; the last removed one still can be."""
    issued = [domain.create() for _ in range(3)]
    for each in issued:
        domain.revoke(each.key.id)
    asked = points(domain.tail.lineage, *range(7))
    clock.advance(2 * DAY)
    domain.create()
    Retention(domain.store, clock, DAY).remove()
    assert log.anchor(domain.store) == 6
    cold = Lineage(domain.store)
    assert cold.holds(asked) == [True] * 7
    assert cold.mark(1) == ""
    assert cold.holds([point._replace(mark="x" * 12) for point in asked])[6] is False
    assert cold.mark(6) == asked[6].mark


def test_without_a_mark(domain: Domain, reads: list[str]) -> None:
    """A point without a mark is in every history, and nothing is read for it."""
    assert domain.tail.lineage.holds([START, Point(7), Point(2**62)]) == [True] * 3
    assert domain.tail.lineage.known(Point(7)) is True
    assert reads == []


def test_new_events_are_known(domain: Domain, reads: list[str]) -> None:
    """Marks of events that this process has appended or followed need no read."""
    domain.create()
    domain.revoke(domain.create().key.id)
    reads.clear()
    asked = points(domain.tail.lineage, 1, 2, 3)
    assert domain.tail.lineage.holds(asked) == [True] * 3
    assert [domain.tail.lineage.known(point) for point in asked] == [True] * 3
    assert domain.tail.lineage.known(Point(2, asked[0].mark)) is False
    assert reads == []


def test_older_events_are_read_once(domain: Domain, reads: list[str]) -> None:
    """Marks of older events are read together, and then remembered."""
    for _ in range(5):
        domain.create()
    asked = points(domain.tail.lineage, 1, 2, 3)
    cold = Lineage(domain.store)
    assert cold.known(asked[0]) is None
    reads.clear()
    assert cold.holds(asked) == [True] * 3
    assert len(reads) == 2  # the events, and where retention stands
    assert cold.holds(asked) == [True] * 3
    assert cold.known(asked[0]) is True
    assert len(reads) == 2


def test_beyond_the_end(domain: Domain) -> None:
    """A revision that the log does not have yet has no mark, and the answer about it is not remembered."""
    ahead = Point(1, "x" * 12)
    cold = Lineage(domain.store)
    assert cold.holds([ahead]) == [False]
    assert cold.mark(1) == ""
    domain.create()
    assert cold.holds(points(domain.tail.lineage, 1)) == [True]


def test_a_change_has_its_mark_though_the_database_is_away(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the database goes away right after a commit, the change's mark is known, so its caller gets an answer."""
    tail = domain.tail

    def away(*_: Any) -> Any:
        raise StoreUnavailable

    monkeypatch.setattr(tail, "catch_up", away)
    issued = domain.create()
    monkeypatch.setattr(domain.store, "read", away)
    assert tail.lineage.mark(issued.revision)
    with pytest.raises(StoreUnavailable):
        tail.lineage.mark(issued.revision + 1)


def test_bounds(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many hashes are remembered as the limits say; older events that are named evict none of the newest."""
    monkeypatch.setattr(limits, "NEWEST_HASHES", limits.Limit("", 3, "", ""))
    monkeypatch.setattr(limits, "OLDER_HASHES", limits.Limit("", 2, "", ""))
    lineage = Lineage(domain.store)
    for _ in range(8):
        domain.create()
    lineage.note((event.revision, event.hash) for event in log.events_after(domain.store, 0, 8))
    assert lineage.holds(points(domain.tail.lineage, 1, 2, 3, 4, 5)) == [True] * 5
    assert sorted(lineage.recall(range(9))) == [4, 5, 6, 7, 8]


def test_reads_have_a_bound(domain: Domain, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many points are asked for, a statement reads at most so many events."""
    monkeypatch.setattr(lineages, "_AT_ONCE", 2)
    for _ in range(5):
        domain.create()
    asked = points(domain.tail.lineage, 1, 2, 3, 4, 5)
    cold = Lineage(domain.store)
    reads.clear()
    assert cold.holds(asked) == [True] * 5
    assert max(sql.count("?") for sql in reads) == 2


def test_marks_do_not_show_hashes(domain: Domain, dialect: str, new_database: Callable[[str], str]) -> None:
    """A mark depends on the installation's secret, so an event cannot be guessed from it."""
    other = new_store(new_database(dialect))
    assert domain.tail.lineage.mark_of(bytes(32)) != Lineage(other).mark_of(bytes(32))
    other.close()

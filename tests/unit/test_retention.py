"""How long events are kept."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog

from tests.domain import OPERATOR, Domain
from tests.harness import FrozenClock
from tests.unit.test_log import append, chain_problems, change, run
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR
from tumbler_server.errors import StoreUnavailable
from tumbler_server.events import log, retention
from tumbler_server.events.retention import Retention
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.store.database import Store, open_store
from tumbler_server.store.models import ApiKeyRow, EventRow, LogHeadRow

KEEP = 10 * DAY

PATIENCE = 30.0


def aged(store: Store, clock: FrozenClock, *ages: float) -> None:
    """Append events with these ages in days."""
    append(store, *(change(number, time=clock.now - int(age * DAY)) for number, age in enumerate(ages)))


def revisions(store: Store) -> list[int]:
    """Return the revisions of all remaining events."""
    return [event.revision for event in log.events_after(store, 0, 1_000)]


@pytest.fixture
def keeping(store: Store, clock: FrozenClock) -> Retention:
    """Return a retention of ten days on each kind of database. It removes events when a test calls it."""
    return Retention(store, clock, KEEP)


class TestRemove:
    """Which events are removed."""

    @pytest.mark.parametrize(
        ("ages", "removed"),
        [
            ([], 0),
            ([1], 0),
            ([20], 0),
            ([20, 1], 1),
            ([20, 19, 5, 1], 2),
            ([20, 5, 19, 1], 1),
            ([5, 20, 19, 1], 0),
            ([20, 19, 18], 2),
            ([10, 1], 0),
            ([10 + 1 / 86_400, 1], 1),
            ([-1, 20, 1], 0),
        ],
        ids=[
            "an empty log",
            "one new event",
            "the newest is kept, however old",
            "one old event",
            "some old events",
            "an old event after a new one",
            "a new event first",
            "only old events",
            "exactly as old as may be",
            "a second older than may be",
            "an event of tomorrow",
        ],
    )
    def test_table(self, store: Store, clock: FrozenClock, keeping: Retention, ages: list[float], removed: int) -> None:
        """The log's leading events that are too old are removed, but never the newest event."""
        aged(store, clock, *ages)
        assert keeping.remove() == removed
        assert revisions(store) == list(range(removed + 1, len(ages) + 1))
        assert log.anchor(store) == removed
        assert chain_problems(store) == []
        assert keeping.remove() == 0

    def test_the_rest_is_untouched(self, store: Store, clock: FrozenClock, keeping: Retention) -> None:
        """Remaining events are unchanged, and the log continues."""
        aged(store, clock, 20, 19, 5, 1)
        before = log.events_after(store, 2, 10)
        keeping.remove()
        assert log.events_after(store, 0, 10) == before
        assert append(store, change()) == [5]
        assert chain_problems(store) == []

    def test_as_time_goes_by(self, store: Store, clock: FrozenClock, keeping: Retention, domain: Domain) -> None:
        """Events are removed as they age; keys outlive their events, and the audit finds no problem at any step."""
        for _ in range(4):
            domain.create()
            clock.advance(4 * DAY)
        removed = []
        for _ in range(4):
            removed.append(keeping.remove())
            clock.advance(4 * DAY)
            found = audit.run(store)
            assert found.problems == ()
            assert found.events + found.removed == 4
        assert removed == [2, 1, 0, 0]
        assert store.read("SELECT COUNT(*) FROM api_key") == [(4,)]

    def test_a_change_by_hand_is_never_forgotten(
        self, store: Store, clock: FrozenClock, keeping: Retention, domain: Domain
    ) -> None:
        """An event that records a change by hand outlives its age, and the later events of its key."""
        key_id = domain.create().key.id
        store.write_serialized(lambda transaction: transaction.run(ApiKeyRow.update(owner_id="mallory")))
        told = f"key {key_id} was changed without an event before event 2: owner_id"
        for number in range(3):
            domain.lifecycle.update(OPERATOR, Edit(key_id, Draft("", name=f"name {number}"), ("name",)))
            clock.advance(20 * DAY)
            domain.create()
            keeping.remove()
            assert audit.run(store).problems == (told,)
            assert {2, log.head(store).revision} <= {
                revision for (revision,) in store.read("SELECT revision FROM event")
            }
        assert revisions(store) == [7]
        assert store.read("SELECT revision FROM event WHERE key_id = ? ORDER BY revision", (key_id,)) == [(2,), (6,)]
        store.write_serialized(lambda transaction: transaction.run(EventRow.delete().where(EventRow.revision == 2)))
        assert audit.run(store).problems == ("a kept event up to 6 was changed or removed",)

    def test_in_small_transactions(
        self, store: Store, clock: FrozenClock, keeping: Retention, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many events are removed in several small transactions, and each leaves a valid log."""
        monkeypatch.setattr(retention, "BATCH", 4)
        aged(store, clock, *[20] * 10, 1)
        anchors = []
        write = store.write_serialized

        def watched(work: Callable[[Any], Any]) -> Any:
            result = write(work)
            anchors.append(log.anchor(store))
            assert chain_problems(store) == []
            return result

        monkeypatch.setattr(store, "write_serialized", watched)
        assert keeping.remove() == 10
        assert anchors == [4, 8, 10]


class TestTampering:
    """A changed event is not removed, because the change could then never be found."""

    @pytest.mark.parametrize(
        "tampering",
        [
            EventRow.update(actor_name="somebody else").where(EventRow.revision == 3),
            EventRow.update(time=1).where(EventRow.revision == 3),
            EventRow.delete().where(EventRow.revision == 3),
        ],
        ids=["another actor", "made older", "deleted"],
    )
    def test_stops(self, store: Store, clock: FrozenClock, keeping: Retention, tampering: Any) -> None:
        """Removal stops before an altered event; an error is logged, and an audit finds the event."""
        aged(store, clock, 20, 20, 20, 20, 20, 1)
        run(store, tampering)
        with structlog.testing.capture_logs() as logged:
            assert keeping.remove() == 2
            assert keeping.remove() == 0
        assert [entry["log_level"] for entry in logged] == ["error", "error"]
        assert "audit verify" in logged[0]["event"]
        assert log.anchor(store) == 2
        assert chain_problems(store) != []

    def test_changed_before_the_anchor_moves(
        self, store: Store, clock: FrozenClock, keeping: Retention, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If the database changes between the check and the removal, nothing is removed."""
        aged(store, clock, 20, 20, 1)
        write = store.write_serialized

        def put_back(work: Callable[[Any], Any]) -> Any:
            monkeypatch.setattr(store, "write_serialized", write)
            run(store, EventRow.update(hash=b"x" * 32).where(EventRow.revision == 2))
            return write(work)

        monkeypatch.setattr(store, "write_serialized", put_back)
        assert keeping.remove() == 0
        assert revisions(store) == [1, 2, 3]

    def test_the_head_went_back(
        self, store: Store, clock: FrozenClock, keeping: Retention, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If the log has become shorter meanwhile, its newest event is still kept."""
        aged(store, clock, 20, 20, 20)
        write = store.write_serialized

        def put_back(work: Callable[[Any], Any]) -> Any:
            monkeypatch.setattr(store, "write_serialized", write)
            ((second,),) = store.read("SELECT hash FROM event WHERE revision = 2")
            run(
                store,
                EventRow.delete().where(EventRow.revision == 3),
                LogHeadRow.update(revision=2, hash=bytes(second)),
            )
            return write(work)

        monkeypatch.setattr(store, "write_serialized", put_back)
        assert keeping.remove() == 0
        assert revisions(store) == [1, 2]


def test_several_servers(store: Store, clock: FrozenClock, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that remove concurrently, during changes, remove each event once, and the log stays valid."""
    monkeypatch.setattr(retention, "BATCH", 3)
    aged(store, clock, *[20] * 50)
    others = [open_store(database_url) for _ in range(2)]
    begin = threading.Barrier(4)

    def remove(place: int) -> int:
        begin.wait(PATIENCE)
        return Retention([store, *others][place], clock, KEEP).remove()

    def go_on() -> None:
        begin.wait(PATIENCE)
        for _ in range(10):
            append(store, change(time=clock.now))

    with ThreadPoolExecutor(4) as executor:
        going_on = executor.submit(go_on)
        removed = sum(executor.map(remove, range(3)))
        going_on.result(PATIENCE)
    # If no change was made before they looked, the fiftieth event was the newest and is kept.
    assert removed == log.anchor(store)
    assert removed in (49, 50)
    assert revisions(store) == list(range(removed + 1, 61))
    assert chain_problems(store) == []
    for other in others:
        other.close()


class TestLife:
    """When events are removed."""

    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retention, "FIRST", 0.0)
        monkeypatch.setattr(retention, "INTERVAL", 0.01)

    def _until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def test_again_and_again(self, store: Store, clock: FrozenClock, keeping: Retention) -> None:
        """Once started, it removes old events at intervals, and logs how many."""
        aged(store, clock, 20, 9, 1)
        with structlog.testing.capture_logs() as logged:
            keeping.start()
            self._until(lambda: log.anchor(store) == 1)
            clock.advance(2 * DAY)
            self._until(lambda: log.anchor(store) == 2)
            keeping.close()
        assert [(entry["log_level"], entry["events"]) for entry in logged] == [("info", 1), ("info", 1)]

    def test_failures(
        self, store: Store, clock: FrozenClock, keeping: Retention, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A failure is logged by its type and retried; the exception's text is not logged."""
        aged(store, clock, 20, 1)
        write = store.write_serialized
        failures = iter([StoreUnavailable(), KeyError("confidential")])

        def fails(work: Callable[[Any], Any]) -> Any:
            for failure in failures:
                raise failure
            return write(work)

        monkeypatch.setattr(store, "write_serialized", fails)
        with structlog.testing.capture_logs() as logged:
            keeping.start()
            self._until(lambda: log.anchor(store) == 1)
            keeping.close()
        assert [entry["error"] for entry in logged if entry["log_level"] == "warning"] == [
            "StoreUnavailable",
            "KeyError",
        ]
        assert "confidential" not in str(logged)

    def test_close(self, store: Store, clock: FrozenClock, keeping: Retention, monkeypatch: pytest.MonkeyPatch) -> None:
        """Closing waits only for the current transaction; if never started, close returns at once."""
        monkeypatch.setattr(retention, "BATCH", 1)
        aged(store, clock, *[20] * 200, 1)
        Retention(store, clock, KEEP).close()
        keeping.start()
        self._until(lambda: log.anchor(store) > 0)
        keeping.close()
        assert log.anchor(store) < 200
        assert chain_problems(store) == []


@pytest.mark.parametrize("keep", [HOUR, 400 * DAY, 10**20])
def test_spans(store: Store, clock: FrozenClock, keep: int) -> None:
    """A retention period may be longer than the clock's whole time; then everything is kept."""
    aged(store, clock, 20, 1)
    assert Retention(store, clock, keep).remove() == (keep == HOUR)

"""The event log: appending, and the audit that finds later tampering."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import peewee
import pytest

from tests.domain import OPERATOR, Domain, new_store
from tests.harness import FrozenClock
from tumbler_server import calls
from tumbler_server.audit import audit
from tumbler_server.calls import Call
from tumbler_server.clock import DAY, NEVER
from tumbler_server.events import kept, log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.store.database import Store, Transaction, open_store
from tumbler_server.store.models import ApiKeyRow, EventRow, LogHeadRow

KEY_ID = "0123456789abcdef"


def change(number: int = 0, **fields: Any) -> Change:
    """Return a change to append."""
    values: dict[str, Any] = {
        "type": EventType.CREATED,
        "key_id": f"{number:016}",
        "project_id": "acme",
        "environment_id": "live",
        "time": 1_893_456_000_000_000 + number,
        "actor": Actor(KEY_ID, "an operator"),
    }
    return Change(**{**values, **fields})


def append(store: Store, *changes: Change) -> list[int]:
    """Append events in one transaction, and return their revisions."""
    return store.write_serialized(lambda transaction: [log.append(transaction, one) for one in changes])


def run(store: Store, *queries: peewee.BaseQuery) -> None:
    """Change the database without the server's code."""

    def work(transaction: Transaction) -> None:
        for query in queries:
            transaction.run(query)

    store.write_serialized(work)


def chain_problems(store: Store) -> list[str]:
    """Return the audit's problems in the log itself: these tests append events of keys that have no row."""
    return [problem for problem in audit.run(store).problems if not problem.endswith("has events but is gone")]


class TestAppend:
    """Appending."""

    def test_revisions(self, store: Store) -> None:
        """Revisions are 1, 2, 3 …, within a transaction and across transactions."""
        assert append(store, change(), change()) == [1, 2]
        assert append(store, change()) == [3]
        assert log.head(store).revision == 3

    def test_rolled_back(self, store: Store) -> None:
        """An append that was rolled back leaves no gap."""
        append(store, change())

        def work(transaction: Transaction) -> None:
            log.append(transaction, change())
            raise KeyError

        with pytest.raises(KeyError):
            store.write_serialized(work)
        assert append(store, change()) == [2]
        assert chain_problems(store) == []

    def test_stored(self, store: Store) -> None:
        """An event is stored as it was appended, with its detail as a JSON object."""
        append(store, change(7, type=EventType.REVOKED, detail={"reason": "other", "comment": "ключ"}))
        (row,) = store.select(EventRow.select())
        assert (row.revision, row.type, row.key_id, row.project_id) == (1, 5, f"{7:016}", "acme")
        assert (row.environment_id, row.time) == ("live", 1_893_456_000_000_007)
        assert (row.actor_key_id, row.actor_name) == (KEY_ID, "an operator")
        assert json.loads(row.detail) == {"reason": "other", "comment": "ключ"}

    def test_concurrent(self, database_url: str) -> None:
        """Concurrent writers in two servers get consecutive revisions without duplicates, and one chain."""
        stores = [new_store(database_url), open_store(database_url)]

        def work(number: int) -> list[int]:
            return [append(stores[number % 2], change(number * 100 + count))[0] for count in range(15)]

        with ThreadPoolExecutor(4) as executor:
            revisions = [revision for part in executor.map(work, range(4)) for revision in part]
        assert sorted(revisions) == list(range(1, 61))
        assert chain_problems(stores[0]) == []
        for store in stores:
            store.close()


class TestChain:
    """The forms of the chain, which no release may change: existing logs would no longer verify."""

    def test_form(self, store: Store) -> None:
        """An event's hash is SHA-256 over the previous hash (at first zeros) and the event's fields as a JSON list."""
        call = Call(peer=lambda: "192.0.2.1", request_id="a-request")
        with calls.serving(call):
            append(store, change(1, record=b"\x01\x02"), change(2, detail={"b": "ключ", "a": "1"}))
        append(store, change(3))
        check(
            store,
            '[1,1,"0000000000000001","acme","live",1893456000000001,"0123456789abcdef","an operator","{}",'
            '"192.0.2.1","a-request","0102"]',
            '[2,1,"0000000000000002","acme","live",1893456000000002,"0123456789abcdef","an operator",'
            '"{\\"a\\": \\"1\\", \\"b\\": \\"\\\\u043a\\\\u043b\\\\u044e\\\\u0447\\"}","192.0.2.1","a-request",""]',
            '[3,1,"0000000000000003","acme","live",1893456000000003,"0123456789abcdef","an operator","{}","","",""]',
        )

    def test_first_form(self, store: Store) -> None:
        """Before schema 7 an event's list had nine fields, and such events still verify."""
        append(store, change(1))
        text = '[1,1,"0000000000000001","acme","live",1893456000000001,"0123456789abcdef","an operator","{}"]'
        digest = hashlib.sha256(bytes(32) + text.encode()).digest()
        older = {"address": None, "request_id": None, "record": None, "hash": digest}
        run(store, EventRow.update(**older), LogHeadRow.update(hash=digest))
        append(store, change(2))
        assert chain_problems(store) == []
        check(store, text)


def check(store: Store, *texts: str) -> None:
    """Assert that the first events' hashes are those of these texts."""
    before = bytes(32)
    for row, text in zip(store.select(EventRow.select().order_by(EventRow.revision)), texts, strict=False):
        before = hashlib.sha256(before + text.encode()).digest()
        assert bytes(row.hash) == before


class TestEventsAfter:
    """Reading the log."""

    def test_event(self, store: Store) -> None:
        """An event is read as it was appended, with its revision and its hash."""
        append(store, change(7, type=EventType.REVOKED, detail={"reason": "other", "comment": "ключ"}))
        (event,) = log.events_after(store, 0, 10)
        ((stored,),) = store.read("SELECT hash FROM event")
        assert event == log.Event(
            revision=1,
            type=EventType.REVOKED,
            key_id=f"{7:016}",
            project_id="acme",
            environment_id="live",
            time=1_893_456_000_000_007,
            actor_key_id=KEY_ID,
            actor_name="an operator",
            detail_json=event.detail_json,
            address="",
            request_id="",
            record=b"",
            hash=bytes(stored),
        )
        assert event.actor == Actor(KEY_ID, "an operator")
        assert event.detail == {"reason": "other", "comment": "ключ"}

    @pytest.mark.parametrize(
        ("after", "limit", "project_id", "expected"),
        [
            (0, 10, "", [1, 2, 3, 4]),
            (2, 10, "", [3, 4]),
            (0, 2, "", [1, 2]),
            (4, 10, "", []),
            (0, 10, "acme", [1, 3]),
            (1, 10, "acme", [3]),
            (0, 1, "beta", [2]),
            (0, 10, "nobody", []),
        ],
    )
    def test_table(self, store: Store, after: int, limit: int, project_id: str, expected: list[int]) -> None:
        """The first events after a revision come in order, for one project or for all."""
        append(store, *(change(number, project_id=("acme", "beta")[number % 2]) for number in range(4)))
        assert [event.revision for event in log.events_after(store, after, limit, project_id)] == expected

    def test_follows(self, store: Store) -> None:
        """An event follows the one whose hash is in its own hash, and only with unchanged fields."""
        append(store, change(1), change(2, detail={"b": "ключ", "a": "1"}), change(3))
        one, two, three = log.events_after(store, 0, 3)
        assert log.follows(log.GENESIS, one)
        assert log.follows(one.hash, two)
        assert not log.follows(one.hash, three)
        assert not log.follows(one.hash, two._replace(detail_json='{"a": "2"}'))
        assert not log.follows(one.hash, two._replace(actor_name="somebody else"))


def remove(store: Store, up_to: int) -> None:
    """Remove the oldest events, as retention does."""

    def work(transaction: Transaction) -> None:
        (head,) = transaction.select(LogHeadRow.select())
        (last,) = transaction.select(EventRow.select(EventRow.hash).where(EventRow.revision == up_to))
        total = kept.leave(transaction, head.anchor_revision, up_to, bytes(head.kept))
        transaction.run(LogHeadRow.update(anchor_revision=up_to, anchor_hash=bytes(last.hash), kept=total))

    store.write_serialized(work)


@pytest.fixture
def history(domain: Domain) -> tuple[str, str, str]:
    """Return three keys with six events: the first was updated, the second revoked, the third deactivated."""
    one, two, three = (domain.create(name=name).key.id for name in ("one", "two", "three"))
    domain.lifecycle.update(OPERATOR, Edit(one, Draft("", scopes=("orders:read",)), ("scopes",)))
    domain.lifecycle.revoke(OPERATOR, two, 1, "")
    domain.lifecycle.set_active(OPERATOR, three, active=False)
    return one, two, three


CHANGED = {
    "type": 3,
    "key_id": "another",
    "project_id": "another",
    "environment_id": "another",
    "time": 1,
    "actor_key_id": "another",
    "actor_name": "another",
    "detail": '{"a": "b"}',
    "address": "another",
    "request_id": "another",
    "record": b"another",
    "hash": bytes(32),
}


class TestAudit:
    """What the audit finds."""

    def test_nothing(self, store: Store) -> None:
        """An empty log has no problems."""
        assert audit.run(store) == audit.Audit(0, ())

    @pytest.mark.usefixtures("history")
    def test_all_well(self, store: Store) -> None:
        """An unchanged log has no problems, and the audit's result is true."""
        found = audit.run(store)
        assert found
        assert (found.events, found.removed, found.problems) == (6, 0, ())

    @pytest.mark.usefixtures("history")
    @pytest.mark.parametrize(
        ("column", "revision"),
        [*((column, 3) for column in CHANGED), ("detail", 1), ("detail", 6), ("hash", 1), ("hash", 6)],
    )
    def test_changed(self, store: Store, column: str, revision: int) -> None:
        """The audit finds an event with a changed column: the first, the last or one in between."""
        run(store, EventRow.update(**{column: CHANGED[column]}).where(EventRow.revision == revision))
        found = audit.run(store)
        assert not found
        assert found.problems[0].startswith(f"event {revision} was changed")

    @pytest.mark.usefixtures("history")
    @pytest.mark.parametrize(
        ("condition", "problem"),
        [
            (EventRow.revision == 1, "events 1 to 1 are missing"),
            (EventRow.revision << [3, 4], "events 3 to 4 are missing"),
            (EventRow.revision == 6, "events 6 to 6 are missing"),
            (EventRow.revision > 0, "events 1 to 6 are missing"),
        ],
        ids=["first", "middle", "last", "all"],
    )
    def test_deleted(self, store: Store, condition: peewee.Expression, problem: str) -> None:
        """The audit finds deleted events and names them."""
        run(store, EventRow.delete().where(condition))
        assert problem in audit.run(store).problems

    @pytest.mark.usefixtures("history")
    @pytest.mark.parametrize("revision", [0, -3, 7, 100])
    def test_slipped_in(self, store: Store, revision: int) -> None:
        """The audit finds an event inserted before the first or after the head."""
        ((key_id, project_id),) = store.read("SELECT key_id, project_id FROM event WHERE revision = 1")
        row = {"key_id": key_id, "project_id": project_id, "environment_id": "", "actor_key_id": "", "actor_name": ""}
        run(store, EventRow.insert(revision=revision, type=1, time=1, detail="{}", hash=bytes(32), **row))
        assert audit.run(store).problems[0].startswith("1 events are outside the log")

    @pytest.mark.usefixtures("history")
    def test_renumbered(self, store: Store) -> None:
        """The audit finds two events that were swapped."""
        run(
            store,
            EventRow.update(revision=100).where(EventRow.revision == 2),
            EventRow.update(revision=2).where(EventRow.revision == 3),
            EventRow.update(revision=3).where(EventRow.revision == 100),
        )
        assert not audit.run(store)

    @pytest.mark.usefixtures("history")
    @pytest.mark.parametrize(
        ("head", "problem"),
        [
            ({"hash": bytes(32)}, "the head's hash is not that of event 6"),
            ({"revision": 7}, "events 7 to 7 are missing"),
            ({"revision": 5}, "the head's hash is not that of event 5"),
        ],
        ids=["hash", "ahead", "behind"],
    )
    def test_head(self, store: Store, head: dict[str, Any], problem: str) -> None:
        """The audit finds a changed head."""
        run(store, LogHeadRow.update(**head))
        assert problem in audit.run(store).problems

    def test_cut_off(self, store: Store, history: tuple[str, str, str]) -> None:
        """If the log's end and its head were cut off, the audit finds the key that was changed there."""
        ((fifth,),) = store.read("SELECT hash FROM event WHERE revision = 5")
        run(
            store,
            EventRow.delete().where(EventRow.revision == 6),
            LogHeadRow.update(revision=5, hash=bytes(fifth)),
        )
        assert audit.run(store).problems == (f"key {history[2]} was changed without an event",)

    def test_row_without_events(self, store: Store, history: tuple[str, str, str]) -> None:
        """The audit finds a key that was inserted into the table without an event."""
        (row,) = store.select(ApiKeyRow.select().where(ApiKeyRow.id == history[0]).dicts())
        run(store, ApiKeyRow.insert(**{**row, "id": KEY_ID}))
        assert f"key {KEY_ID} was changed without an event" in audit.run(store).problems

    def test_row_of_an_older_state(self, store: Store, history: tuple[str, str, str], domain: Domain) -> None:
        """The audit finds a row that was restored to its state before a change."""
        (row,) = store.select(ApiKeyRow.select().where(ApiKeyRow.id == history[0]).dicts())
        domain.lifecycle.set_active(OPERATOR, history[0], active=False)
        run(store, ApiKeyRow.update(**row).where(ApiKeyRow.id == history[0]))
        assert audit.run(store).problems == (f"key {history[0]} was changed without an event",)

    def test_row_gone(self, store: Store, history: tuple[str, str, str]) -> None:
        """The audit finds a key whose row was deleted."""
        run(store, ApiKeyRow.delete().where(ApiKeyRow.id == history[1]))
        assert f"key {history[1]} has events but is gone" in audit.run(store).problems

    def test_revocation_undone(self, store: Store, history: tuple[str, str, str]) -> None:
        """The audit finds a revocation that was undone in the key's row."""
        run(store, ApiKeyRow.update(revoke_time=NEVER).where(ApiKeyRow.id == history[1]))
        assert audit.run(store).problems == (f"key {history[1]} was changed without an event: revoke_time",)

    def test_not_all_are_told(self, store: Store) -> None:
        """The audit lists at most 20 problems of each kind."""
        append(store, *(change(number) for number in range(30)))
        run(store, EventRow.update(hash=bytes(32)))
        problems = audit.run(store).problems
        assert sum(problem.startswith("event ") for problem in problems) == 20
        assert sum(problem.endswith("is gone") for problem in problems) == 20

    def test_while_changes_go_on(self, store: Store, domain: Domain) -> None:
        """Changes during the audit are not problems."""
        domain.create()

        class Busy:
            """A store that creates a key before each read."""

            dialect = store.dialect

            def snapshot(self, work: Any) -> Any:
                return work(self.read)

            def read(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
                domain.create()
                return store.read(sql, parameters)

        found = audit.run(cast("Store", Busy()))
        assert found.problems == ()
        assert log.head(store).revision > found.events


def hash_of(revision: int) -> peewee.Expression:
    """Return the SQL expression for an event's hash."""
    return EventRow.select(EventRow.hash).where(EventRow.revision == revision)


class TestAnchor:
    """What the audit finds in a log whose oldest events have been removed."""

    @pytest.mark.usefixtures("history")
    @pytest.mark.parametrize("removed", [1, 2, 3, 4, 5])
    def test_all_well(self, store: Store, clock: FrozenClock, removed: int) -> None:
        """Wherever the log begins now, it is checked from there, and every key by its last event."""
        remove(store, removed)
        assert log.anchor(store) == removed
        assert audit.run(store) == audit.Audit(6 - removed, (), removed=removed, since=clock.now, keys=3)

    @pytest.mark.usefixtures("history")
    def test_since(self, store: Store, domain: Domain, clock: FrozenClock) -> None:
        """The audit reports when the oldest remaining event was made."""
        clock.advance(DAY)
        domain.create()
        remove(store, 6)
        assert audit.run(store) == audit.Audit(1, (), removed=6, since=clock.now, keys=4)

    @pytest.mark.usefixtures("history")
    @pytest.mark.parametrize(
        ("column", "revision"), [*((column, 3) for column in CHANGED), ("detail", 4), ("detail", 6), ("hash", 6)]
    )
    def test_changed(self, store: Store, column: str, revision: int) -> None:
        """The audit finds a changed column in an event that was kept."""
        remove(store, 2)
        run(store, EventRow.update(**{column: CHANGED[column]}).where(EventRow.revision == revision))
        assert audit.run(store).problems[0].startswith(f"event {revision} was changed")

    @pytest.mark.usefixtures("history")
    @pytest.mark.parametrize(
        ("tampering", "problem"),
        [
            ([EventRow.delete().where(EventRow.revision == 3)], "events 3 to 3 are missing"),
            ([EventRow.delete().where(EventRow.revision == 6)], "events 6 to 6 are missing"),
            ([EventRow.delete()], "events 3 to 6 are missing"),
            (
                [LogHeadRow.update(anchor_hash=bytes(32))],
                "event 3 was changed, or the one before it was",
            ),
            ([LogHeadRow.update(anchor_revision=1)], "events 2 to 2 are missing"),
            ([LogHeadRow.update(anchor_revision=0, anchor_hash=bytes(32))], "events 1 to 2 are missing"),
            ([LogHeadRow.update(anchor_revision=0)], "no event is marked as removed, but the chain does not start at"),
            ([LogHeadRow.update(anchor_revision=-2)], "events up to -2 of 6 are marked as removed"),
            ([LogHeadRow.update(anchor_revision=3, anchor_hash=hash_of(3))], "event 3 is outside the log"),
            (
                [LogHeadRow.update(anchor_revision=6, anchor_hash=hash_of(6))],
                "events up to 6 of 6 are marked as removed",
            ),
            (
                [LogHeadRow.update(anchor_revision=6, anchor_hash=hash_of(6)), EventRow.delete()],
                "events up to 6 of 6 are marked as removed: the newest is never removed",
            ),
            ([LogHeadRow.update(anchor_revision=9)], "events up to 9 of 6 are marked as removed"),
            ([EventRow.update(revision=2).where(EventRow.revision == 3)], "event 2 is outside the log"),
            ([EventRow.update(revision=-1).where(EventRow.revision == 3)], "1 events are outside the log"),
            (
                [EventRow.delete(), LogHeadRow.update(revision=2, hash=LogHeadRow.anchor_hash)],
                "events up to 2 of 2 are marked as removed: the newest is never removed",
            ),
            ([EventRow.delete(), LogHeadRow.update(revision=1)], "events up to 2 of 1 are marked as removed"),
            (
                [EventRow.delete(), LogHeadRow.update(revision=0, hash=bytes(32))],
                "events up to 2 of 0 are marked as removed",
            ),
        ],
        ids=[
            "the first that is kept deleted",
            "the last deleted",
            "all deleted",
            "another hash",
            "moved back",
            "moved back to the beginning",
            "none, but for its hash",
            "before the beginning",
            "moved on, the event left behind",
            "moved to the head, the events left behind",
            "moved to the head, and all deleted",
            "beyond the head",
            "an event put before it",
            "an event put before the beginning",
            "the head put back to it",
            "the head put back before it",
            "the head put back to the beginning",
        ],
    )
    def test_tampering(self, store: Store, tampering: list[peewee.BaseQuery], problem: str) -> None:
        """The audit finds an anchor, a head and events that do not match, whichever of them was changed."""
        remove(store, 2)
        run(store, *tampering)
        assert any(found.startswith(problem) for found in audit.run(store).problems)

    def test_an_empty_log_with_an_anchor(self, store: Store) -> None:
        """A log without events cannot have been cut, so the audit reports an anchor in it."""
        run(store, LogHeadRow.update(anchor_hash=b"x" * 32))
        assert audit.run(store).problems[0].startswith("no event is marked as removed, but the chain does not start")
        run(store, LogHeadRow.update(anchor_revision=1))
        assert audit.run(store).problems == ("events up to 1 of 0 are marked as removed: the newest is never removed",)

    def test_row_of_an_older_state(self, store: Store, history: tuple[str, str, str], domain: Domain) -> None:
        """The audit finds a row restored to its state before the anchor while an event of a later change is kept."""
        (row,) = store.select(ApiKeyRow.select().where(ApiKeyRow.id == history[0]).dicts())
        domain.lifecycle.set_active(OPERATOR, history[0], active=False)
        remove(store, 5)
        run(store, ApiKeyRow.update(**row).where(ApiKeyRow.id == history[0]))
        assert audit.run(store).problems == (f"key {history[0]} was changed without an event",)

    @pytest.mark.parametrize("revision", [6, 0, -1])
    def test_row_without_events(self, store: Store, history: tuple[str, str, str], revision: int) -> None:
        """The audit finds a key whose revision cannot be its own, even if the log's beginning has been removed."""
        remove(store, 5)
        (row,) = store.select(ApiKeyRow.select().where(ApiKeyRow.id == history[0]).dicts())
        run(store, ApiKeyRow.insert(**{**row, "id": KEY_ID, "revision": revision}))
        assert f"key {KEY_ID} was changed without an event" in audit.run(store).problems

    def test_row_gone(self, store: Store, history: tuple[str, str, str]) -> None:
        """The audit finds a key that has an event but no row."""
        remove(store, 4)
        run(store, ApiKeyRow.delete().where(ApiKeyRow.id == history[1]))
        assert f"key {history[1]} has events but is gone" in audit.run(store).problems


def test_a_long_log(new_database: Callable[[str], str]) -> None:
    """A log with more events than one read returns is audited to its end."""
    store = new_store(new_database("sqlite"))
    append(store, *(change(number % 7, key_id=f"{number % 7:016}") for number in range(5_003)))
    ((last,),) = store.read("SELECT hash FROM event WHERE revision = 5003")
    run(store, EventRow.update(detail="{ }").where(EventRow.revision == 5_001))
    found = audit.run(store)
    assert found.events == 5_003
    assert found.problems[0].startswith("event 5001 ")
    run(store, EventRow.update(detail="{}").where(EventRow.revision == 5_001), LogHeadRow.update(hash=bytes(last)))
    assert chain_problems(store) == []

    class Shrinking:
        """A store that loses events between two pages."""

        dialect = store.dialect

        def snapshot(self, work: Any) -> Any:
            return work(self.read)

        def read(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
            if parameters[:1] == (5_000,):
                remove(store, 5_001)
            return store.read(sql, parameters)

    assert chain_problems(cast("Store", Shrinking())) == []
    assert log.anchor(store) == 5_001
    store.close()

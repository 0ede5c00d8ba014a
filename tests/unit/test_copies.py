"""Copies of the log kept elsewhere."""

import json

import pytest

from tests.domain import Domain
from tests.harness import FrozenClock
from tumbler_server.audit import audit, copies
from tumbler_server.audit.audit import Audit
from tumbler_server.audit.copies import Comparison
from tumbler_server.clock import DAY, rfc3339
from tumbler_server.events import kept, log
from tumbler_server.events.retention import Retention
from tumbler_server.keys import evidence
from tumbler_server.scheduler import timekeeping
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import ApiKeyRow, EventRow, LogHeadRow, ProjectRow


@pytest.fixture(autouse=True)
def grown(domain: Domain) -> None:
    """Create five keys."""
    for _ in range(5):
        domain.create(owner_id="alice")


def test_an_export_has_every_event(store: Store, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export has all events after a revision in order, whatever the page size, each with all its fields."""
    monkeypatch.setattr(copies, "_PAGE", 2)
    told = [json.loads(line) for line in copies.lines(store)]
    assert [event["revision"] for event in told] == [1, 2, 3, 4, 5]
    (first, *_) = log.events_after(store, 0, 1)
    assert first.record is not None
    assert told[0] == {
        "revision": 1,
        "type": "CREATED",
        "key_id": first.key_id,
        "project_id": "acme",
        "environment_id": "",
        "time": "2030-01-01T00:00:00Z",
        "actor": {"key_id": first.actor_key_id, "name": first.actor_name},
        "detail": {"new.name": "default", "new.owner_id": "alice"},
        "client_address": "",
        "request_id": "",
        "record": first.record.hex(),
        "hash": first.hash.hex(),
    }
    assert [json.loads(line)["revision"] for line in copies.lines(store, after=3)] == [4, 5]
    assert clock.now == first.time


def test_a_copy_of_a_log_that_grew_and_was_cut_agrees(store: Store, domain: Domain, clock: FrozenClock) -> None:
    """A copy agrees with a log that has grown since, or from which old events were removed."""
    copy = [*copies.lines(store), "", copies.head(store)]
    assert copies.against(store, copy) == Comparison(6, 0, ())
    clock.advance(500 * DAY)
    domain.create()
    Retention(store, clock, 400 * DAY).remove()
    assert copies.against(store, copy) == Comparison(6, 0, ())  # the last of each key, and the head's again
    domain.revoke(json.loads(copy[0])["key_id"])
    assert copies.against(store, copy) == Comparison(5, 1, ())


@pytest.mark.parametrize("deleted", [False, True])
def test_what_outlives_the_log_is_compared_word_by_word(
    store: Store, domain: Domain, clock: FrozenClock, deleted: bool
) -> None:
    """The chain does not cover a kept last event; a copy shows that it was rewritten or deleted."""
    copy = list(copies.lines(store))
    clock.advance(500 * DAY)
    domain.create()
    Retention(store, clock, 400 * DAY).remove()
    ((event, key_id),) = store.read("SELECT revision, key_id FROM event WHERE revision = 3")

    def rewrite(transaction: Transaction) -> None:
        one = EventRow.revision == event
        if deleted:
            transaction.run(EventRow.delete().where(one))
            transaction.run(ApiKeyRow.delete().where(ApiKeyRow.id == key_id))
            transaction.run(ProjectRow.update(keys=ProjectRow.keys - 1))
        else:
            transaction.run(ApiKeyRow.update(owner_id="mallory").where(ApiKeyRow.id == key_id))
            ((row, _),) = evidence.stored(transaction.read, [key_id]).values()
            transaction.run(EventRow.update(record=evidence.digest(row)).where(one))
        total = kept.add(kept.NONE, [row for _, row in kept.page(transaction.read, 5, 0, 10)])
        transaction.run(LogHeadRow.update(kept=total))

    store.write_serialized(rewrite)
    assert audit.run(store, clock).problems == ()
    told = f"key {key_id} has event 3 in the copy, but the log has neither it nor a later one"
    assert copies.against(store, copy).problems == ((told,) if deleted else ("event 3 differs from the copy",))


def cut(store: Store, to: int) -> None:
    """Remove the beginning of the log by hand, exactly as retention does it."""

    def work(transaction: Transaction) -> None:
        ((chained,),) = transaction.read("SELECT hash FROM event WHERE revision = ?", (to,))
        total = kept.leave(transaction, 0, to, kept.NONE)
        transaction.run(LogHeadRow.update(anchor_revision=to, anchor_hash=bytes(chained), kept=total))

    store.write_serialized(work)


def test_a_log_that_was_cut_too_early_is_found(store: Store, domain: Domain, clock: FrozenClock) -> None:
    """An anchor that was moved past young events is found by the retention: by a copy, and by what the keys say."""
    everything, noted = list(copies.lines(store)), copies.head(store)
    created = clock.now
    clock.advance(10 * DAY)
    domain.revoke(json.loads(everything[4])["key_id"])
    cut(store, 5)
    key_ids = [json.loads(line)["key_id"] for line in everything]

    def found(keep: int | None) -> Audit:
        return audit.run(store, clock, retention=keep)

    assert found(None).problems == found(11 * DAY - 1).problems == ()
    told = rfc3339(created)
    assert found(11 * DAY).problems == (
        *(
            f"event {number} of key {key_ids[number - 1]} is of {told}, but the log begins after it"
            for number in range(1, 5)
        ),
        f"key {key_ids[4]} was created at {told}, but no event says so",
    )
    timekeeping.trust(store, clock.now + 800 * DAY)  # a row that the attacker can set too
    assert len(found(11 * DAY).problems) == 5
    fifth = f"event 5 is of {told}, but the log begins after it"
    for copy in (everything, [noted]):
        early = audit.removable(clock, 11 * DAY)
        assert copies.against(store, copy, early).problems == (fifth,)
        assert copies.against(store, copy, audit.removable(clock, 11 * DAY - 1))
        assert copies.against(store, copy, audit.removable(clock, None))


def test_a_head_noted_by_an_earlier_version_is_compared(store: Store) -> None:
    """The line of `audit head` may end after the hash: the time came later."""
    noted, _, when = copies.head(store).partition(" at ")
    assert when == "2030-01-01T00:00:00Z"
    assert copies.against(store, [noted]) == Comparison(1, 0, ())


def test_a_chain_that_was_made_anew_is_found(store: Store, domain: Domain) -> None:
    """A chain rewritten from its beginning, with all hashes and the head, does not match the copy."""
    head = copies.head(store)
    store.write_serialized(lambda transaction: transaction.run(EventRow.delete()))
    store.write_serialized(lambda transaction: transaction.run(LogHeadRow.update(revision=0, hash=bytes(32))))
    for _ in range(5):
        domain.create()
    assert copies.against(store, [head]).problems == ("event 5 differs from the copy",)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "the copy holds no events"),
        (["ok"], "line 1 of the copy is not from `audit export` or `audit head`"),
        (["\n", "[]"], "line 2 of the copy is not from `audit export` or `audit head`"),
        (['{"revision": 1}'], "line 1 of the copy is not from `audit export` or `audit head`"),
        (
            ['{"revision": {}, "hash": "", "key_id": ""}'],
            "line 1 of the copy is not from `audit export` or `audit head`",
        ),
        (["x" * (1 << 21)], "line 1 of the copy is not from `audit export` or `audit head`"),
        ([f"event 9 sha256:{'0' * 64}"], "the copy has event 9; the log ends with event 5"),
        ([f"event 2 sha256:{'0' * 64}"], "event 2 differs from the copy"),
        (['{"revision": 1e400, "hash": "", "key_id": ""}'], "line 1 of the copy is not from"),
        (['{"revision": 9999999999999999999, "hash": "", "key_id": ""}'], "line 1 of the copy is not from"),
        ([f"event 9999999999999999999 sha256:{'0' * 64}"], "line 1 of the copy is not from"),
        (['{"revision": 1, "hash": "", "key_id": "\\ud800"}'], "line 1 of the copy is not from"),
        (["[" * 100_000], "line 1 of the copy is not from"),
        ([f"event 99999999999999999999 sha256:{'0' * 64}"], "line 1 of the copy is not from"),
    ],
)
def test_what_is_wrong_is_named(store: Store, lines: list[str], problem: str) -> None:
    """A copy that is not one, or that contradicts the log, is reported."""
    found = copies.against(store, lines)
    assert not found
    assert found.problems[0].startswith(problem)


def test_a_missing_event_is_named(store: Store) -> None:
    """An event in the copy that is missing in the log is reported."""
    copy = list(copies.lines(store))
    store.write_serialized(lambda transaction: transaction.run(EventRow.delete().where(EventRow.revision == 3)))
    assert copies.against(store, copy) == Comparison(4, 0, ("event 3 is missing",))


def test_not_all_are_told(store: Store) -> None:
    """At most 20 problems are reported."""
    assert len(copies.against(store, ["?"] * 1_000).problems) == 20

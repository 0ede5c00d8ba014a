"""The audit finds every manual change, except those that leave no evidence."""

import contextlib
import hashlib
import itertools
import json
import random
import sqlite3
from typing import Any

import peewee
import pytest

from tests.domain import OPERATOR, Domain
from tests.harness import FrozenClock
from tests.tampering import UNSEEN, Place, live, places, tamper
from tumbler_server.audit import audit, recording
from tumbler_server.clock import DAY, NEVER
from tumbler_server.events import kept, log
from tumbler_server.events.retention import Retention
from tumbler_server.keys import evidence
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.store.database import SQLITE, Store, Transaction, open_store, sqlite_path
from tumbler_server.store.models import MODELS, ApiKeyRow, EventRow, LogHeadRow


@pytest.fixture
def lived(domain: Domain, store: Store, clock: FrozenClock) -> Store:
    """Return a database with rows in every table and a log whose oldest events have been removed."""
    live(domain, clock)
    assert Retention(store, clock, 400 * DAY).remove() > 0
    assert audit.run(store, clock).problems == ()
    return store


def test_every_column_is_told_or_is_known_not_to_be() -> None:
    """Each column of a key is covered by the digest or listed as uncovered, so a new column needs a decision."""
    columns = {column.column_name for column in ApiKeyRow._meta.sorted_fields}
    assert {*evidence.COLUMNS, *evidence.LATER, *evidence.UNCOVERED} == columns


@pytest.mark.parametrize("place", places(), ids=str)
def test_what_was_changed_by_hand_is_found(lived: Store, clock: FrozenClock, place: Place) -> None:
    """A manual change of any column, in a random row, is found, unless docs/security.md lists it."""
    undo = tamper(lived, place, random.Random(str(place)))  # noqa: S311 - not security related
    found = audit.run(lived, clock)
    assert bool(found) is (place in UNSEEN)
    undo()
    assert audit.run(lived, clock)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("scopes", '["tumbler:*"]'),
        ("allowed_cidrs", "[]"),
        ("owner_id", "mallory"),
        ("expire_time", NEVER),
        ("project_id", "globex"),
        ("active", True),
        ("secret_hash", "$2b$04$" + "x" * 53),
    ],
)
def test_the_key_and_the_field_are_named(
    domain: Domain, store: Store, clock: FrozenClock, column: str, value: Any
) -> None:
    """The problem names the key and each changed field."""
    key = domain.create(scopes=("a:b",), allowed_cidrs=("192.0.2.0/24",), ttl=DAY).key
    domain.lifecycle.set_active(OPERATOR, key.id, active=False)
    query = ApiKeyRow.update(**{column: value, "name": "mallory's"}).where(ApiKeyRow.id == key.id)
    store.write_serialized(lambda transaction: transaction.run(query))
    names = [name for name in evidence.COLUMNS if name in (column, "name")]
    assert f"key {key.id} was changed without an event: {', '.join(names)}" in audit.run(store, clock).problems


def test_a_later_change_does_not_cover_it_up(domain: Domain, store: Store, clock: FrozenClock) -> None:
    """If a key was changed manually, its next event records that, so every later audit reports it."""
    key = domain.create(scopes=("a:b",)).key
    query = ApiKeyRow.update(scopes='["tumbler:*"]', owner_id="mallory").where(ApiKeyRow.id == key.id)
    store.write_serialized(lambda transaction: transaction.run(query))
    domain.lifecycle.update(OPERATOR, Edit(key.id, Draft("", name="another"), ("name",)))
    domain.lifecycle.set_active(OPERATOR, key.id, active=False)
    assert audit.run(store, clock).problems == (
        f"key {key.id} was changed without an event before event 2: owner_id,scopes",
    )


def test_a_changed_digest_of_an_event_is_found(domain: Domain, store: Store, clock: FrozenClock) -> None:
    """A change of both a row and the digest in its event breaks the chain."""
    key = domain.create(scopes=("a:b",)).key
    store.write_serialized(lambda transaction: transaction.run(ApiKeyRow.update(owner_id="mallory")))
    ((row, _),) = evidence.stored(store.read, [key.id]).values()
    store.write_serialized(lambda transaction: transaction.run(EventRow.update(record=evidence.digest(row))))
    assert audit.run(store, clock).problems[0].startswith("event 1 was changed")


def test_last_events_are_kept_and_released(domain: Domain, store: Store, clock: FrozenClock) -> None:
    """A key's last event is kept until the key changes, however old, and the audit finds no problem."""
    keys = [domain.create(name=f"key {number}").key for number in range(5)]
    clock.advance(500 * DAY)
    domain.create()
    retention = Retention(store, clock, 400 * DAY)
    assert retention.remove() == 5
    assert store.read("SELECT COUNT(*) FROM event") == [(6,)]
    assert audit.run(store, clock) == audit.Audit(1, (), removed=5, since=clock.now, keys=6)
    domain.revoke(keys[2].id)
    assert store.read("SELECT revision FROM event ORDER BY revision") == [(1,), (2,), (4,), (5,), (6,), (7,)]
    assert audit.run(store, clock)
    delete: peewee.BaseQuery = EventRow.delete().where(EventRow.revision == 4)
    store.write_serialized(lambda transaction: transaction.run(delete))
    problems = audit.run(store, clock).problems
    assert f"key {keys[3].id} was changed without an event" in problems
    assert "a kept event up to 5 was changed or removed" in problems


def test_changes_meanwhile_hide_no_kept_event(
    domain: Domain, store: Store, clock: FrozenClock, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept event that was changed by hand is found, however often keys of that age change during the audit."""
    keys = [domain.create(name=f"key {number}").key for number in range(5)]
    clock.advance(500 * DAY)
    domain.create()
    assert Retention(store, clock, 400 * DAY).remove() == 5
    other = Domain(open_store(database_url), clock)
    names = itertools.count()
    page = kept.page

    def changing(*arguments: Any) -> Any:
        # The head has been read, and what it gives the sum of has not.
        edit = Edit(keys[next(names) % 3].id, Draft("", name=f"name {next(names)}"), ("name",))
        other.lifecycle.update(OPERATOR, edit)
        return page(*arguments)

    monkeypatch.setattr(kept, "page", changing)
    assert audit.run(store, clock)
    store.write_serialized(
        lambda transaction: transaction.run(EventRow.update(actor_name="x").where(EventRow.revision == 4))
    )
    assert "a kept event up to 5 was changed or removed" in audit.run(store, clock).problems
    assert next(names) > 1
    other.close()
    other.store.close()


def test_what_an_older_server_changed_is_named_and_recorded(domain: Domain, store: Store, clock: FrozenClock) -> None:
    """The audit reports a key whose last event, from an older server, has no digest, until it is recorded."""
    one, other = (domain.create(name=f"key {number}").key for number in range(2))

    def older(transaction: Transaction) -> None:
        ((revision, before),) = transaction.read("SELECT revision + 1, hash FROM log_head")
        content = [revision, 2, one.id, "acme", "", clock.now, "", "the past", "{}"]
        digest = hashlib.sha256(bytes(before) + json.dumps(content, separators=(",", ":")).encode()).digest()
        event = dict(zip(log.FIRST_COLUMNS, content, strict=True))
        transaction.run(EventRow.insert(**event, hash=digest))
        transaction.run(LogHeadRow.update(revision=revision, hash=digest))
        transaction.run(ApiKeyRow.update(revision=revision, owner_id="bob").where(ApiKeyRow.id == one.id))

    store.write_serialized(older)
    told = f"key {one.id} was changed by an older server: stop all of those, and run `tumbler-server migrate`"
    assert audit.run(store, clock).problems == (told,)
    last = EventRow.revision == 3
    for column in (EventRow.address, EventRow.request_id, EventRow.record):  # which such an event does not have
        value = b"x" if column is EventRow.record else "x"
        store.write_serialized(
            lambda transaction, new={column: value}: transaction.run(EventRow.update(new).where(last))
        )
        assert "event 3 was changed, or the one before it was" in audit.run(store, clock).problems
        store.write_serialized(
            lambda transaction, new={column: None}: transaction.run(EventRow.update(new).where(last))
        )
    assert recording.record(store, clock) == 1
    assert audit.run(store, clock) == audit.Audit(4, (), since=clock.now, keys=2)
    assert recording.record(store, clock) == 0
    domain.revoke(one.id)
    domain.revoke(other.id)
    assert audit.run(store, clock)


@pytest.mark.parametrize("value", ["yes", 2])
def test_sqlite_s_other_truths_are_found(domain: Domain, clock: FrozenClock, value: object) -> None:
    """In SQLite a boolean column can hold any value, and the audit finds one that is not a boolean."""
    if domain.store.dialect != SQLITE:
        pytest.skip("on SQLite alone")
    key = domain.create().key
    domain.store.write_unserialized(lambda db: db.execute_sql("UPDATE api_key SET active = ?", (value,)))
    assert f"key {key.id} was changed without an event: active" in audit.run(domain.store, clock).problems


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE api_key SET revision = revision || char(0)", "was changed without an event"),
        ("UPDATE project SET keys = keys || char(0)", "has a different number of keys than its count says"),
    ],
)
def test_a_text_is_no_number(domain: Domain, clock: FrozenClock, database_url: str, change: str, told: str) -> None:
    """In SQLite a column of numbers can hold a text, which compares as equal; the audit names it."""
    if domain.store.dialect != SQLITE:
        pytest.skip("on SQLite alone")
    domain.create()
    with contextlib.closing(sqlite3.connect(sqlite_path(database_url))) as older:  # ours would store the number
        older.execute(change)
        older.commit()
        kinds = older.execute("SELECT typeof(revision) FROM api_key UNION SELECT typeof(keys) FROM project").fetchall()
    if ("text",) not in kinds:
        pytest.skip("this machine's SQLite stores the number, too")
    assert any(told in problem for problem in audit.run(domain.store, clock).problems)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE event SET hash = 'x' WHERE revision = 1", "event 1 was changed"),
        ("UPDATE event SET detail = 'altered' WHERE revision = 1", "event 1 was changed"),
        ("UPDATE event SET record = 'x' WHERE revision = 1", "was changed without an event"),
        ("UPDATE log_head SET hash = 'x'", "the head's hash is not that of event 3"),
        ("UPDATE log_head SET anchor_hash = 'x'", "no event is marked as removed, but the chain"),
        ("UPDATE log_head SET anchor_revision = 'x'", "the log: a value that this program never writes"),
        ("UPDATE log_head SET kept = 'x'", "was changed or removed"),
        ("UPDATE api_key SET digest = 'x' WHERE name = 'key 0'", "was changed without an event: digest"),
        ("UPDATE api_key SET metadata = '{' WHERE name = 'key 0'", "was changed without an event: metadata"),
        ("UPDATE api_key SET alarm_time = 'x' WHERE name = 'key 0'", "was changed without an event: alarm_time"),
    ],
)
def test_values_of_another_kind_hide_nothing(domain: Domain, clock: FrozenClock, change: str, told: str) -> None:
    """In SQLite a column can hold text instead of bytes or numbers; the audit reports it and all other problems."""
    if domain.store.dialect != SQLITE:
        pytest.skip("on SQLite alone")
    keys = [domain.create(name=f"key {number}").key for number in range(3)]
    domain.store.write_unserialized(lambda db: db.execute_sql(change))
    domain.store.write_unserialized(lambda db: db.execute_sql("UPDATE api_key SET owner_id = 'm' WHERE name = 'key 2'"))
    problems = audit.run(domain.store, clock).problems
    assert any(told in problem for problem in problems), problems
    assert f"key {keys[2].id} was changed without an event: owner_id" in problems


def test_a_broken_row_is_a_problem_and_no_exception(domain: Domain, store: Store, clock: FrozenClock) -> None:
    """Invalid JSON in a row is reported like any other change."""
    domain.create(scopes=("a:b",))
    for column in ("metadata", "allowed_cidrs"):
        store.write_serialized(lambda transaction, column=column: transaction.run(ApiKeyRow.update(**{column: "{"})))
    assert any("metadata, allowed_cidrs" in problem for problem in audit.run(store, clock).problems)


def test_progress_is_told(domain: Domain, store: Store, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is reported as events and keys are read."""
    monkeypatch.setattr(audit, "_PAGE", 2)
    for _ in range(4):
        domain.create()
    told: list[tuple[str, int, int]] = []
    audit.run(store, clock, lambda *args: told.append(args))
    assert told == [("events", 2, 4), ("events", 4, 4), ("keys", 2, 4), ("keys", 4, 4)]


def test_all_tables_are_tampered_with() -> None:
    """The tampered places are all columns of all models."""
    expected = {
        (model._meta.table_name, column.column_name) for model in MODELS for column in model._meta.sorted_fields
    }
    assert {(place.table, place.column) for place in places()} == expected


def test_all_that_is_wrong_is_counted(domain: Domain, store: Store, clock: FrozenClock) -> None:
    """Twenty problems of a kind are named, and the others counted."""
    for number in range(25):
        domain.create(name=f"key {number}")
    store.write_serialized(lambda transaction: transaction.run(ApiKeyRow.update(owner_id="mallory")))
    problems = audit.run(store, clock).problems
    assert len(problems) == 21
    assert problems[-1] == "the keys: 5 more"


def test_what_is_no_plain_table_is_named(store: Store, clock: FrozenClock) -> None:
    """A view in a table's place shows what it likes, and a trigger writes it: the audit names both."""
    sqlite = store.dialect == SQLITE

    def run(*statements: str) -> None:
        for statement in statements:
            store.write_unserialized(lambda db, sql=statement: db.execute_sql(sql))

    if sqlite:
        run("CREATE TRIGGER mine AFTER UPDATE ON request BEGIN SELECT 1; END")
    else:
        run(
            "CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER mine AFTER UPDATE ON request EXECUTE FUNCTION mine()",
        )
    assert audit.run(store, clock).problems == ("mine is a trigger or view that `migrate` does not make",)
    run("DROP TRIGGER mine" if sqlite else "DROP TRIGGER mine ON request")
    assert audit.run(store, clock)
    run("ALTER TABLE request RENAME TO hidden", "CREATE VIEW request AS SELECT * FROM hidden")
    assert "request is not a plain table as `migrate` makes it" in audit.run(store, clock).problems

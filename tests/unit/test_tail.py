"""A process's place in the log."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest

from tests.domain import Domain
from tests.harness import FrozenClock
from tumbler_server.events import log
from tumbler_server.events.tail import Tail
from tumbler_server.store.database import Store, Transaction, open_store
from tumbler_server.store.models import EventRow, LogHeadRow


class Notes:
    """A follower that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[str], int]] = []

    def forget(self, key_ids: Iterable[str], position: int) -> None:
        self.told.append(("some", list(key_ids), position))

    def forget_all(self, position: int) -> None:
        self.told.append(("all", [], position))


@pytest.fixture
def other(store: Store, database_url: str, clock: FrozenClock) -> Iterator[Domain]:
    """Give what another server does on the same database."""
    theirs = open_store(database_url)
    domain = Domain(theirs, clock)
    yield domain
    domain.close()
    theirs.close()


@pytest.fixture
def notes() -> Notes:
    """Give a follower that was told nothing yet."""
    return Notes()


def restore(store: Store, revision: int) -> None:
    """Set the log back, as a restored backup does."""

    def work(transaction: Transaction) -> None:
        transaction.run(EventRow.delete().where(EventRow.revision > revision))
        transaction.run(LogHeadRow.update(revision=revision))

    store.write(work)


def test_begins_now(store: Store, other: Domain, notes: Notes) -> None:
    """A tail begins at the present end of the log, and tells its follower so."""
    issued = other.create()
    assert Tail(store, notes).position == issued.revision
    assert notes.told == [("all", [], issued.revision)]


def test_nothing_new(store: Store, other: Domain, notes: Notes) -> None:
    """Where nothing has changed, nobody is told anything."""
    issued = other.create()
    tail = Tail(store, notes)
    assert tail.catch_up() == issued.revision
    assert notes.told[1:] == []


def test_changes_of_another_server(store: Store, other: Domain, notes: Notes) -> None:
    """Every change that another server has committed before the call is told, in the order of the log."""
    tail = Tail(store, notes)
    one, two = other.create(), other.create()
    assert tail.catch_up() == tail.position == two.revision
    other.revoke(one.key.id)
    assert tail.catch_up() == two.revision + 1
    assert notes.told[1:] == [("some", [one.key.id, two.key.id], 2), ("some", [one.key.id], 3)]


def test_once_each(store: Store, other: Domain, notes: Notes) -> None:
    """No change is told twice."""
    tail = Tail(store, notes)
    other.create()
    tail.catch_up()
    tail.catch_up()
    assert len(notes.told) == 2


def test_uncommitted(store: Store, other: Domain, notes: Notes) -> None:
    """A change that was rolled back is told to nobody, and leaves no gap."""
    tail = Tail(store, notes)

    def work(transaction: Transaction) -> None:
        transaction.run(LogHeadRow.update(revision=LogHeadRow.revision + 1))
        raise KeyError

    with pytest.raises(KeyError):
        other.store.write(work)
    assert tail.catch_up() == 0
    assert other.create().revision == tail.catch_up() == 1


def test_restored(store: Store, other: Domain, notes: Notes) -> None:
    """Where the head went back, the database was restored: everything is forgotten, and followed from there."""
    for _ in range(3):
        other.create()
    tail = Tail(store, notes)
    restore(store, 1)
    assert tail.catch_up() == tail.position == 1
    issued = other.create()
    assert tail.catch_up() == 2
    assert notes.told[1:] == [("all", [], 1), ("some", [issued.key.id], 2)]


@pytest.mark.parametrize(("changes", "kind"), [(10_000, "some"), (10_001, "all")])
def test_far_behind(store: Store, notes: Notes, changes: int, kind: str) -> None:
    """Behind by more than 10,000 changes, everything is forgotten at once."""
    tail = Tail(store, notes)
    row = dict.fromkeys(("key_id", "project_id", "environment_id", "actor_key_id", "actor_name", "detail"), "")
    rows = [{**row, "revision": number, "type": 1, "time": 0, "hash": b""} for number in range(1, changes + 1)]

    def work(transaction: Transaction) -> None:
        for begin in range(0, len(rows), 2_000):
            transaction.run(EventRow.insert_many(rows[begin : begin + 2_000]))
        transaction.run(LogHeadRow.update(revision=changes))

    store.write(work)
    assert tail.catch_up() == tail.position == changes
    ((told, _, position),) = notes.told[1:]
    assert (told, position) == (kind, changes)


def test_overtaken(store: Store, other: Domain, notes: Notes) -> None:
    """Where another thread got further while this one was reading, the place does not go back."""
    tail: Tail | None = None

    class Interrupted:
        """A store at which another thread catches up, once, after this one has read what was changed."""

        waiting = True

        def read(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
            rows = store.read(sql, parameters)
            if tail and self.waiting and "event" in sql:
                self.waiting = False
                other.create()
                tail.catch_up()
            return rows

    tail = Tail(cast("Store", Interrupted()), notes)
    other.create()
    assert tail.catch_up() == 1
    assert tail.position == 2
    assert [position for _, _, position in notes.told] == [0, 2]


def test_head_of_an_empty_log(store: Store) -> None:
    """An empty log is at revision 0."""
    assert log.head(store) == 0

"""A process's position in the log."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest

from tests.domain import Domain
from tests.harness import FrozenClock
from tumbler_server.clock import HOUR, SECOND
from tumbler_server.errors import Cause, StoreUnavailable
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.freshness.board import Board
from tumbler_server.freshness.tail import Tail
from tumbler_server.store.database import Store, Transaction, open_store
from tumbler_server.store.models import EventRow, LogHeadRow


class Notes:
    """A cache that records what it is told to forget."""

    def __init__(self) -> None:
        self.told: list[set[str] | None] = []

    def forget(self, key_ids: Iterable[str]) -> None:
        self.told.append(set(key_ids))

    def forget_all(self) -> None:
        self.told.append(None)


class Flaky:
    """A store that can be away, counts its reads, and calls ``then`` once after events were read.

    ``blind``: it does not show other connections' commits, as PostgreSQL does not.
    """

    def __init__(self, store: Store) -> None:
        self.away = False
        self.blind = False
        self.reads = 0
        self.then: Callable[[], object] | None = None
        self.lost = ""
        self._store = store

    def version(self) -> tuple[int, int, int] | None:
        return None if self.blind else self._store.version()

    def read(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        self.reads += 1
        if self.away:
            raise StoreUnavailable
        rows = self._store.read(sql, parameters)
        if self.then and "FROM event" in sql:
            then, self.then = self.then, None
            then()
        return rows


@pytest.fixture
def other(store: Store, database_url: str, clock: FrozenClock) -> Iterator[Domain]:
    """Yield a domain that acts as another server on the same database."""
    theirs = open_store(database_url)
    domain = Domain(theirs, clock)
    yield domain
    domain.close()
    theirs.close()


@pytest.fixture
def notes() -> Notes:
    """Return a cache that has recorded nothing."""
    return Notes()


@pytest.fixture
def flaky(store: Store) -> Flaky:
    """Return a store that can be away."""
    return Flaky(store)


@pytest.fixture
def monotonic() -> FrozenClock:
    """Return the clock by which positions age."""
    return FrozenClock(0)


def follow(store: Flaky, notes: Notes, monotonic: FrozenClock, board: Board | None = None) -> Tail:
    """Return a tail on a store that can be away."""
    return Tail(cast("Store", store), notes, 2 * SECOND, board, monotonic)


def restore(store: Store, revision: int) -> None:
    """Set the log back, as restoring a backup does."""

    def work(transaction: Transaction) -> None:
        (event,) = transaction.select(EventRow.select().where(EventRow.revision == revision))
        transaction.run(EventRow.delete().where(EventRow.revision > revision))
        transaction.run(LogHeadRow.update(revision=revision, hash=event.hash))

    store.write_serialized(work)


def test_begins_now(store: Store, other: Domain, notes: Notes) -> None:
    """A tail begins at the current end of the log, and makes its cache forget everything."""
    issued = other.create()
    assert Tail(store, notes).position == issued.revision
    assert notes.told == [None]


def test_nothing_new(store: Store, other: Domain, notes: Notes) -> None:
    """If nothing has changed, the cache is not called."""
    issued = other.create()
    tail = Tail(store, notes)
    assert tail.catch_up() == issued.revision
    assert notes.told[1:] == []


def test_changes_of_another_server(store: Store, other: Domain, notes: Notes) -> None:
    """Every change that another server committed before the call reaches the cache, in the order of the log."""
    tail = Tail(store, notes)
    one, two = other.create(), other.create()
    assert tail.catch_up() == tail.position == two.revision
    other.revoke(one.key.id)
    assert tail.catch_up() == two.revision + 1
    assert notes.told[1:] == [{one.key.id, two.key.id}, {one.key.id}]


def test_once_each(store: Store, other: Domain, notes: Notes) -> None:
    """No change reaches the cache twice."""
    tail = Tail(store, notes)
    other.create()
    tail.catch_up()
    tail.catch_up()
    assert len(notes.told) == 2


def test_uncommitted(store: Store, other: Domain, notes: Notes) -> None:
    """A change that was rolled back does not reach the cache, and leaves no gap."""
    tail = Tail(store, notes)

    def work(transaction: Transaction) -> None:
        transaction.run(LogHeadRow.update(revision=LogHeadRow.revision + 1))
        raise KeyError

    with pytest.raises(KeyError):
        other.store.write_serialized(work)
    assert tail.catch_up() == 0
    assert other.create().revision == tail.catch_up() == 1


def is_lost(store: Store, tail: Tail, why: str) -> None:
    """Check that the process no longer answers, reported the loss once, and names the reason."""
    told: list[str] = []
    store.on_loss = told.append
    for call in (tail.catch_up, tail.look, tail.confirm, lambda: store.read("SELECT 1"), lambda: count_up(store)):
        with pytest.raises(StoreUnavailable) as failed:
            call()
        assert failed.value.cause is Cause.REPLACED
    assert tail.last_resort(HOUR) is None
    assert told == [store.lost]
    assert why in store.lost


def count_up(store: Store) -> None:
    """Write something."""
    store.write_serialized(lambda transaction: transaction.run(LogHeadRow.update(revision=LogHeadRow.revision + 1)))


@pytest.mark.parametrize("changes", range(5))
def test_restored(
    store: Store, other: Domain, database_url: str, clock: FrozenClock, notes: Notes, changes: int
) -> None:
    """A log that went back, or that has another history of any length, belongs to another database."""
    for _ in range(3):
        other.create()
    tail = Tail(store, notes)
    restore(store, 1)
    later = Domain(open_store(database_url), clock)
    for _ in range(changes):
        later.create()
    later.close()
    later.store.close()
    is_lost(store, tail, f"its log is at event {1 + changes}, which does not follow event 3")
    assert (tail.resets, notes.told[1:]) == (0, [])


def test_emptied(store: Store, other: Domain, notes: Notes) -> None:
    """A log without a head, as while a backup is being restored, belongs to another database."""
    tail = Tail(store, notes)
    other.store.write_serialized(lambda transaction: transaction.run(LogHeadRow.delete()))
    is_lost(store, tail, "its log has no head")


def test_dropped(store: Store, other: Domain, notes: Notes) -> None:
    """A database without its tables is another database."""
    tail = Tail(store, notes)
    other.store.write_unserialized(lambda db: db.execute_sql("DROP TABLE log_head"))
    is_lost(store, tail, "tables of the database are gone")


@pytest.mark.parametrize("table", ["api_key", "event", "lease", "webhook_endpoint"])
@pytest.mark.parametrize("writing", [False, True])
def test_one_table_dropped(store: Store, other: Domain, table: str, writing: bool) -> None:
    """Whichever statement finds a table missing, as while a backup is being restored, gives up the database."""
    told: list[str] = []
    store.on_loss = told.append
    store.read("SELECT 1")
    other.store.write_unserialized(lambda db: db.execute_sql(f"DROP TABLE {table}"))
    sql = f"SELECT 1 FROM {table}"  # noqa: S608 - a name of ours
    use = (
        (lambda: store.write_serialized(lambda transaction: transaction.read(sql)))
        if writing
        else (lambda: store.read(sql))
    )
    with pytest.raises(StoreUnavailable) as failed:
        use()
    assert failed.value.cause is Cause.REPLACED
    assert failed.value.detail.get("changed") == ("no" if writing else None)
    assert told == [store.lost]
    assert "tables of the database are gone" in store.lost


@pytest.mark.parametrize("behind", [10_000, 10_001])
def test_far_behind(store: Store, notes: Notes, behind: int) -> None:
    """A tail that is more than 10,000 changes behind forgets everything at once."""
    tail = Tail(store, notes)
    change = Change(EventType.UPDATED, "k", "acme", "", 0, Actor("", ""))

    def work(transaction: Transaction) -> None:
        log.append(transaction, change)
        (first,) = transaction.select(EventRow.select().dicts())
        # The first proves that the history continues; the others can be followed without a hash of their own.
        rows = [{**first, "revision": number} for number in range(2, behind + 1)]
        for begin in range(0, len(rows), 2_000):
            transaction.run(EventRow.insert_many(rows[begin : begin + 2_000]))
        transaction.run(LogHeadRow.update(revision=behind))

    store.write_serialized(work)
    assert tail.catch_up() == tail.position == behind
    assert notes.told[1:] == [{"k"} if behind == 10_000 else None]


def test_overtaken(flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock) -> None:
    """If another thread has overtaken this one's read, the position does not go back, and no change is lost."""
    flaky.blind = True  # where commits show, one thread reads for all, and none is overtaken
    tail = follow(flaky, notes, monotonic)
    one = other.create().key.id
    ids = [one]

    def overtake() -> None:
        ids.append(other.create().key.id)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(tail.catch_up).result()

    flaky.then = overtake
    assert tail.catch_up() == tail.position == 2
    assert notes.told[1:] == [set(ids)]
    events = tail.ring.after(0, 10)
    assert events is not None
    assert [event.key_id for event in events] == ids


class TestLook:
    """The position that an answer may rely on."""

    @pytest.fixture(autouse=True)
    def blind(self, flaky: Flaky) -> None:
        """Show other connections' commits only in the log, on every kind of database."""
        flaky.blind = True

    @pytest.mark.parametrize("age", [0, SECOND, 2 * SECOND])
    def test_within_the_bound(
        self, flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock, age: int
    ) -> None:
        """The database is not read while the position was confirmed within the last 2 s."""
        tail = follow(flaky, notes, monotonic)
        monotonic.advance(age)
        other.create()
        before = flaky.reads
        assert tail.look() == 0
        assert flaky.reads == before

    def test_where_commits_show(self, flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock) -> None:
        """If commits show, every commit that returned before the call counts; without one, nothing is read."""
        flaky.blind = False
        tail = follow(flaky, notes, monotonic)
        if flaky.version() is None:
            pytest.skip("on SQLite alone")
        tail.look()
        before = flaky.reads
        assert tail.look() == 0
        assert flaky.reads == before
        issued = other.create()
        assert tail.look() == issued.revision
        with ThreadPoolExecutor(1) as pool:  # each thread sees commits for itself
            assert pool.submit(tail.look).result() == issued.revision

    def test_one_reads_for_all(self, flaky: Flaky, other: Domain, notes: Notes) -> None:
        """Threads that see a commit while another thread reads its events do not read them again."""
        flaky.blind = False
        tail = Tail(cast("Store", flaky), notes)
        if flaky.version() is None:
            pytest.skip("on SQLite alone")
        issued = other.create()
        with ThreadPoolExecutor(8) as pool:
            looks: list[Future[int]] = []

            def join_in() -> None:
                looks.extend(pool.submit(tail.look) for _ in range(8))
                time.sleep(0.2)

            flaky.then = join_in
            before = flaky.reads
            assert tail.look() == issued.revision
            assert {look.result() for look in looks} == {issued.revision}
        # The head and the events once; then the head, by the first of the others or, if they were late, by each.
        assert flaky.reads - before <= 2 + 8

    def test_who_reads_does_not_read_for_later_commits(self, flaky: Flaky, other: Domain, notes: Notes) -> None:
        """A commit made after another thread began to read is read by the thread that sees it."""
        flaky.blind = False
        tail = Tail(cast("Store", flaky), notes)
        if flaky.version() is None:
            pytest.skip("on SQLite alone")
        other.create()
        with ThreadPoolExecutor(1) as pool:
            later: list[tuple[int, Future[int]]] = []

            def commit_more() -> None:
                later.append((other.create().revision, pool.submit(tail.look)))
                time.sleep(0.2)

            flaky.then = commit_more
            tail.look()
            ((revision, look),) = later
            assert look.result() == revision

    def test_past_the_bound(self, flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock) -> None:
        """A microsecond past the bound the database is read, and the position is good for another 2 s."""
        tail = follow(flaky, notes, monotonic)
        issued = other.create()
        monotonic.advance(2 * SECOND + 1)
        assert tail.look() == issued.revision
        assert notes.told[-1] == {issued.key.id}
        assert tail.age == 0

    @pytest.mark.parametrize("asked", [{"fully_consistent": True}, {"at_least": 1}], ids=str)
    def test_on_demand(
        self, flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock, asked: dict[str, Any]
    ) -> None:
        """A call that asks for the newest position, or for a revision not yet applied, reads the database."""
        tail = follow(flaky, notes, monotonic)
        other.create()
        assert tail.look(**asked) == 1

    def test_what_another_worker_committed(
        self, flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock
    ) -> None:
        """A commit that another worker of this server has posted on the board is never missed."""
        board = Board()
        tail = follow(flaky, notes, monotonic, board)
        board.post(other.create().revision)
        assert tail.look() == 1

    def test_what_another_worker_committed_and_has_read_already(
        self, flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock
    ) -> None:
        """A worker posts its own change on the board even if its tail has already read it."""
        board = Board()
        maker, tail = follow(flaky, Notes(), monotonic, board), follow(flaky, notes, monotonic, board)
        issued = other.create()
        maker.catch_up()
        maker.committed(issued.revision)
        assert tail.look() == issued.revision

    def test_away(self, flaky: Flaky, notes: Notes, monotonic: FrozenClock) -> None:
        """Without the database a position is good for 2 s, and not a microsecond longer."""
        tail = follow(flaky, notes, monotonic)
        flaky.away = True
        monotonic.advance(2 * SECOND)
        assert tail.look() == 0
        monotonic.advance(1)
        with pytest.raises(StoreUnavailable):
            tail.look()

    def test_a_change_of_ones_own_that_cannot_be_read(
        self, flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock
    ) -> None:
        """If the database goes away right after a commit, no answer without that change is given."""
        tail = follow(flaky, notes, monotonic)
        issued = other.create()
        flaky.away = True
        tail.committed(issued.revision)
        with pytest.raises(StoreUnavailable):
            tail.look()
        assert tail.last_resort(HOUR) is None

    def test_only_reading_confirms(self, flaky: Flaky, notes: Notes, monotonic: FrozenClock) -> None:
        """A failed look does not make the position younger."""
        tail = follow(flaky, notes, monotonic)
        flaky.away = True
        for _ in range(3):
            monotonic.advance(SECOND)
            with contextlib.suppress(StoreUnavailable):
                tail.catch_up()
        assert tail.age == 3 * SECOND

    def test_confirmed_before_the_question(
        self, flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock
    ) -> None:
        """A position's age counts from the question to the database, however long the answer took."""
        tail = follow(flaky, notes, monotonic)
        other.create()
        monotonic.advance(SECOND)
        flaky.then = lambda: monotonic.advance(5 * SECOND)
        tail.catch_up()
        assert tail.age == 5 * SECOND

    def test_one_asks_for_all(self, flaky: Flaky, other: Domain, notes: Notes, monotonic: FrozenClock) -> None:
        """While the database is away, one call per half second tests it; the others fail at once."""
        tail = follow(flaky, notes, monotonic)
        other.create()
        flaky.away = True
        monotonic.advance(2 * SECOND + 1)
        before = flaky.reads
        for _ in range(10):
            with pytest.raises(StoreUnavailable):
                tail.look()
        assert flaky.reads == before + 1
        monotonic.advance(SECOND // 2)
        flaky.away = False
        assert tail.look() == 1


class TestLastResort:
    """Continuing while the database is away, if the operator has allowed it."""

    @pytest.mark.parametrize(
        ("age", "allowed", "good"),
        [
            (2 * SECOND + 1, 0, False),
            (2 * SECOND + 1, SECOND, True),
            (3 * SECOND, SECOND, True),
            (3 * SECOND + 1, SECOND, False),
        ],
    )
    def test_bound(
        self, flaky: Flaky, notes: Notes, monotonic: FrozenClock, age: int, allowed: int, good: bool
    ) -> None:
        """A position is good for exactly the extra time that is allowed, to the microsecond."""
        tail = follow(flaky, notes, monotonic)
        monotonic.advance(age)
        assert tail.last_resort(allowed) == (0 if good else None)


def test_head_of_an_empty_log(store: Store) -> None:
    """An empty log is at revision 0."""
    assert log.head(store).revision == 0

"""Failures beneath a transaction: races are retried, lost connections replaced, and nothing is done twice."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apsw
import peewee
import psycopg
import pytest
from playhouse.cockroachdb import CockroachDatabase

from tests.domain import OPERATOR, Domain, answers, new_store
from tests.harness import FrozenClock
from tumbler.decide import Code
from tumbler_server.audit import audit
from tumbler_server.clock import HOUR, SECOND
from tumbler_server.errors import KeyIsSuperseded, StoreUnavailable
from tumbler_server.events import log
from tumbler_server.keys.idempotency import RequestId
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.keys.listing import Query
from tumbler_server.store import migrations, postgresql
from tumbler_server.store.database import ATTEMPTS, COCKROACHDB, POSTGRESQL, Store, Transaction, open_store
from tumbler_server.store.models import LogHeadRow
from tumbler_server.store.postgresql import CockroachDatabaseLent, Postgresql, PostgresqlDatabase
from tumbler_server.verify.verifier import Question

SERIALIZATION = psycopg.errors.SerializationFailure
DEADLOCK = psycopg.errors.DeadlockDetected
DISK_FULL = psycopg.errors.DiskFull


def failure(kind: type[psycopg.Error]) -> peewee.OperationalError:
    """Return a driver's error as peewee wraps it."""
    return peewee.OperationalError(kind("injected"))


class Faulty:
    """A mix-in for a database. ``at_commit`` lists the faults at its next commits, in order."""

    at_commit: Sequence[Exception | Callable[[], None]] = ()

    def commit(self) -> Any:
        fault, *self.at_commit = self.at_commit or [lambda: None]
        if isinstance(fault, Exception):
            raise fault
        fault()
        return super().commit()  # type: ignore[misc]


class FaultyPostgresql(Faulty, PostgresqlDatabase):
    """PostgreSQL with commits that can be made to fail."""


class FaultyCockroach(Faulty, CockroachDatabaseLent):
    """CockroachDB's dialect with commits that can be made to fail."""


FaultyDatabase = FaultyPostgresql | FaultyCockroach


@pytest.fixture
def url(new_database: Callable[[str], str]) -> str:
    """Return the URL of a PostgreSQL database with its tables."""
    url = new_database("postgresql")
    new_store(url).close()
    return url


@pytest.fixture(params=[POSTGRESQL, COCKROACHDB])
def faulty(request: pytest.FixtureRequest, url: str) -> Iterator[tuple[Store, FaultyDatabase]]:
    """Yield a store whose commits can be made to fail, in both dialects that use PostgreSQL's protocol."""
    kind = FaultyPostgresql if request.param == POSTGRESQL else FaultyCockroach
    database = kind(url, autoconnect=False, prefer_psycopg3=True)
    store = Store(Postgresql(database, url, limits=request.param == POSTGRESQL), request.param)
    yield store, database
    store.close()


@pytest.fixture
def store(faulty: tuple[Store, FaultyDatabase]) -> Store:
    """Return only the store."""
    return faulty[0]


@pytest.fixture
def admin(postgresql: str) -> Iterator[Callable[[str], Any]]:
    """Yield a function that runs a statement as the server's administrator."""
    with psycopg.connect(postgresql, autocommit=True) as connection:

        def run(sql: str) -> Any:
            cursor = connection.execute(sql)
            return cursor.fetchone() if cursor.description else None

        yield run


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that records the pauses, which take no time here."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def backend(transaction: Transaction) -> int:
    """Return the pid of the server's process that serves a transaction."""
    ((pid,),) = transaction.select(LogHeadRow.select(peewee.fn.pg_backend_pid()).tuples())
    return int(pid)


def kill(admin: Callable[[str], Any], pid: int) -> None:
    """Terminate a server's process, and wait until it has ended."""
    assert admin(f"SELECT pg_terminate_backend({pid}, 5000)") == (True,)


def count_up(transaction: Transaction) -> int:
    """Add one to the log's head."""
    query = LogHeadRow.update(revision=LogHeadRow.revision + 1).returning(LogHeadRow.revision)
    return int(transaction.select(query)[0].revision)


class Work:
    """A write that counts its attempts, and fails as the test demands after it has written."""

    def __init__(self, *failures: Exception | Callable[[Transaction], None]) -> None:
        self.tries = 0
        self._failures = list(failures)

    def __call__(self, transaction: Transaction) -> int:
        self.tries += 1
        revision = count_up(transaction)
        if self._failures:
            fault = self._failures.pop(0)
            if isinstance(fault, Exception):
                raise fault
            fault(transaction)
        return revision


class TestRaces:
    """Transactions that lost a race."""

    @pytest.mark.usefixtures("pauses")
    @pytest.mark.parametrize("kind", [SERIALIZATION, DEADLOCK])
    @pytest.mark.parametrize("failures", [1, ATTEMPTS - 1])
    def test_repeated(self, store: Store, kind: type[psycopg.Error], failures: int) -> None:
        """A transaction that lost a race is retried until it wins, and failed attempts leave no changes."""
        work = Work(*(failure(kind) for _ in range(failures)))
        assert store.write_serialized(work) == 1
        assert work.tries == failures + 1
        assert log.head(store).revision == 1

    @pytest.mark.usefixtures("pauses")
    @pytest.mark.parametrize("kind", [SERIALIZATION, DEADLOCK])
    def test_bounded(self, store: Store, kind: type[psycopg.Error]) -> None:
        """After ``ATTEMPTS`` failed attempts the database counts as unavailable, and nothing has changed."""
        work = Work(*(failure(kind) for _ in range(100)))
        with pytest.raises(StoreUnavailable):
            store.write_serialized(work)
        assert work.tries == ATTEMPTS
        assert log.head(store).revision == 0

    def test_pauses(self, store: Store, pauses: list[float]) -> None:
        """The pauses between attempts are random, with a bound that doubles, and total less than two seconds."""
        with pytest.raises(StoreUnavailable):
            store.write_serialized(Work(*(failure(SERIALIZATION) for _ in range(100))))
        assert len(pauses) == ATTEMPTS - 1
        bounds = [0.01 * 2**number for number in range(ATTEMPTS - 1)]
        assert all(0 <= pause <= bound for pause, bound in zip(pauses, bounds, strict=True))
        assert sum(bounds) < 2

    @pytest.mark.parametrize(
        ("kind", "cause"),
        [(DISK_FULL, "FULL"), (psycopg.errors.QueryCanceled, "SLOW"), (psycopg.OperationalError, "AWAY")],
    )
    def test_no_race(self, store: Store, pauses: list[float], kind: type[psycopg.Error], cause: str) -> None:
        """A failure that is no race is not retried, and nothing has changed."""
        work = Work(failure(kind))
        with pytest.raises(StoreUnavailable) as failed:
            store.write_serialized(work)
        assert (work.tries, pauses) == (1, [])
        assert failed.value.detail == {"cause": cause, "changed": "no"}

    @pytest.mark.parametrize(
        ("kind", "changed"),
        [(DISK_FULL, "no"), (psycopg.errors.AdminShutdown, "unknown"), (psycopg.OperationalError, "unknown")],
    )
    def test_what_became_of_it(
        self, faulty: tuple[Store, FaultyDatabase], kind: type[psycopg.Error], changed: str
    ) -> None:
        """A commit that the server refused was not made. The outcome of one without an answer is unknown."""
        store, database = faulty
        database.at_commit = [failure(kind)]
        with pytest.raises(StoreUnavailable) as failed:
            store.write_serialized(Work())
        assert failed.value.detail["changed"] == changed

    def test_own_failures(self, store: Store, pauses: list[float]) -> None:
        """A refusal of the domain is raised at once."""
        work = Work(KeyIsSuperseded("a", "b"))
        with pytest.raises(KeyIsSuperseded):
            store.write_serialized(work)
        assert (work.tries, pauses) == (1, [])

    @pytest.mark.usefixtures("pauses")
    @pytest.mark.parametrize("kind", [SERIALIZATION, DEADLOCK])
    def test_at_commit(self, faulty: tuple[Store, FaultyDatabase], kind: type[psycopg.Error]) -> None:
        """A commit that fails because of a race was certainly not made, so the transaction is retried."""
        store, database = faulty
        database.at_commit = [failure(kind), failure(kind)]
        work = Work()
        assert store.write_serialized(work) == 1
        assert work.tries == 3
        assert log.head(store).revision == 1

    @pytest.mark.usefixtures("pauses")
    def test_at_commit_bounded(self, faulty: tuple[Store, FaultyDatabase]) -> None:
        """The retries after races at commit are bounded too."""
        store, database = faulty
        database.at_commit = [failure(SERIALIZATION)] * 100
        work = Work()
        with pytest.raises(StoreUnavailable):
            store.write_serialized(work)
        assert work.tries == ATTEMPTS

    def test_real_ones(self, url: str, admin: Callable[[str], Any]) -> None:
        """At an isolation level where writers lose real races, two servers lose no change, and make none twice."""
        name = url.partition("/test")[2].partition("?")[0]
        admin(f"ALTER DATABASE test{name} SET default_transaction_isolation = 'serializable'")
        stores = [open_store(url), open_store(url)]
        begin = threading.Barrier(2)
        works = [[Work() for _ in range(10)] for _ in stores]

        def run(number: int) -> list[int]:
            begin.wait()
            return [stores[number].write_serialized(work) for work in works[number]]

        with ThreadPoolExecutor(2) as executor:
            revisions = [revision for part in executor.map(run, range(2)) for revision in part]
        assert sorted(revisions) == list(range(1, 21))
        assert log.head(stores[0]).revision == 20
        for store in stores:
            store.close()


class TestLostConnections:
    """Connections that the server closes."""

    def test_between_reads(self, store: Store, admin: Callable[[str], Any]) -> None:
        """A read after the connection was lost succeeds on a new one."""
        ((before,),) = store.read("SELECT pg_backend_pid()")
        kill(admin, before)
        ((after,),) = store.read("SELECT pg_backend_pid()")
        assert after != before

    def test_between_queries(self, store: Store, admin: Callable[[str], Any]) -> None:
        """A query of the ORM after the connection was lost succeeds."""
        ((before,),) = store.read("SELECT pg_backend_pid()")
        kill(admin, before)
        assert [row.revision for row in store.select(LogHeadRow.select())] == [0]

    def test_before_a_write(self, store: Store, admin: Callable[[str], Any]) -> None:
        """A write after the connection was lost is made once, on a new one."""
        ((before,),) = store.read("SELECT pg_backend_pid()")
        kill(admin, before)
        work = Work()
        assert store.write_serialized(work) == 1
        assert work.tries == 1

    def test_inside_a_write(self, store: Store, admin: Callable[[str], Any]) -> None:
        """A transaction whose connection is lost before it commits is retried, and made exactly once."""

        def lose(transaction: Transaction) -> None:
            kill(admin, backend(transaction))
            transaction.select(LogHeadRow.select())

        work = Work(lose)
        assert store.write_serialized(work) == 1
        assert work.tries == 2
        assert log.head(store).revision == 1

    def test_inside_a_write_again_and_again(self, store: Store, admin: Callable[[str], Any]) -> None:
        """If the second connection is lost too, the database counts as unavailable."""

        def lose(transaction: Transaction) -> None:
            kill(admin, backend(transaction))
            transaction.select(LogHeadRow.select())

        work = Work(*[lose] * 10)
        with pytest.raises(StoreUnavailable):
            store.write_serialized(work)
        assert work.tries == 2
        assert log.head(store).revision == 0

    def test_standing_still(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A transaction that is idle too long is cut off, so that others can write, and is retried."""
        monkeypatch.setattr(postgresql, "IDLE_LIMIT", 200)
        one, other = open_store(url), open_store(url)
        written: list[int] = []

        def stand(_: Transaction) -> None:
            with ThreadPoolExecutor(1) as threads:
                written.append(threads.submit(other.write_serialized, count_up).result(30))

        work = Work(stand)
        assert (one.write_serialized(work), written) == (2, [1])
        assert work.tries == 2
        one.close()
        other.close()

    def test_at_commit(self, faulty: tuple[Store, FaultyDatabase], admin: Callable[[str], Any]) -> None:
        """A change whose connection was lost during the commit is not retried: it may have been made."""
        store, database = faulty
        pids: list[int] = []
        database.at_commit = [lambda: kill(admin, pids[0])]
        work = Work(lambda transaction: pids.append(backend(transaction)))
        with pytest.raises(StoreUnavailable):
            store.write_serialized(work)
        assert work.tries == 1

    @pytest.mark.parametrize("kind", [peewee.InterfaceError, peewee.OperationalError])
    def test_after_the_commit(self, faulty: tuple[Store, FaultyDatabase], kind: type[Exception]) -> None:
        """If a commit was made and its answer lost, the change exists once, whatever error the driver raises."""
        store, database = faulty

        def lose() -> None:
            database.connection().commit()
            database.connection().close()
            raise kind("the answer was lost")

        database.at_commit = [lose]
        work = Work()
        with pytest.raises(StoreUnavailable):
            store.write_serialized(work)
        assert work.tries == 1
        assert log.head(store).revision == 1

    def test_afterwards(self, faulty: tuple[Store, FaultyDatabase], admin: Callable[[str], Any]) -> None:
        """After a failed commit, the next change is made on a new connection."""
        store, database = faulty
        pids: list[int] = []
        database.at_commit = [lambda: kill(admin, pids[0])]
        with pytest.raises(StoreUnavailable, match="may or may not"):
            store.write_serialized(Work(lambda transaction: pids.append(backend(transaction))))
        assert store.write_serialized(Work()) == 1


@pytest.fixture
def stop(url: str, admin: Callable[[str], Any]) -> Iterator[Callable[[bool], None]]:
    """Yield a function that stops the database, or continues it."""
    name = "test" + url.partition("/test")[2].partition("?")[0]

    def stopped(yes: bool) -> None:
        admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {not yes}")
        if yes:
            admin(f"SELECT COUNT(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608

    yield stopped
    stopped(False)


def comes_back(store: Store) -> bool:
    """Return whether a database answers within some seconds, since the pool reconnects in the background."""
    pause = threading.Event()
    return any(answers(store) or pause.wait(0.01) for _ in range(500))


class TestStopped:
    """A database that is unreachable or read-only."""

    def test_it_became_read_only(self, store: Store) -> None:
        """After a failover to a replica, changes are refused as unavailable, and reads go on."""
        store.read("SELECT set_config('default_transaction_read_only', 'on', false)")
        work = Work()
        with pytest.raises(StoreUnavailable):
            store.write_serialized(work)
        assert work.tries == 0
        assert answers(store)

    def test_everything_is_refused(self, store: Store, stop: Callable[[bool], None]) -> None:
        """Reads, queries and writes fail as unavailable, and no work begins."""
        work = Work()
        assert answers(store)
        stop(True)
        for call in (
            lambda: store.read("SELECT 1"),
            lambda: store.select(LogHeadRow.select()),
            lambda: store.write_serialized(work),
            lambda: store.write_unserialized(lambda _: None),
        ):
            with pytest.raises(StoreUnavailable):
                call()
        assert not answers(store)
        assert work.tries == 0

    def test_and_back(self, store: Store, stop: Callable[[bool], None]) -> None:
        """When the database is back, everything works as before."""
        assert store.write_serialized(Work()) == 1
        stop(True)
        assert not answers(store)
        stop(False)
        assert comes_back(store)
        assert store.write_serialized(Work()) == 2

    def test_fail_closed(self, store: Store, clock: FrozenClock, stop: Callable[[bool], None]) -> None:
        """No key is accepted from the cache while the database cannot confirm it."""
        domain = Domain(store, clock)
        issued = domain.create()
        assert domain.verifier.verify(Question(issued.text))
        stop(True)
        domain.let_lapse()
        with pytest.raises(StoreUnavailable):
            domain.verifier.verify(Question(issued.text))
        stop(False)
        assert comes_back(store)
        domain.let_lapse()
        assert domain.verifier.verify(Question(issued.text))
        domain.close()

    def test_no_key(self, store: Store, clock: FrozenClock, stop: Callable[[bool], None]) -> None:
        """A malformed key gets its verdict even without the database."""
        domain = Domain(store, clock)
        stop(True)
        assert domain.verifier.verify(Question("no key")).code is Code.MALFORMED
        domain.close()


class TestSqlite:
    """A SQLite file that another process writes to."""

    def test_a_writer_that_does_not_end(self, new_database: Callable[[str], str]) -> None:
        """A writer waits for another process's writer up to the timeout, and readers do not wait at all."""
        url = new_database("sqlite")
        new_store(url).close()
        store = open_store(url, timeout=SECOND // 20)
        other = apsw.Connection(url.removeprefix("sqlite:///"))
        other.execute("BEGIN IMMEDIATE")
        work = Work()
        with pytest.raises(StoreUnavailable):
            store.write_serialized(work)
        assert work.tries == 0
        assert log.head(store).revision == 0
        other.execute("COMMIT")
        assert store.write_serialized(work) == 1
        other.close()
        store.close()


@pytest.fixture
def cockroach(url: str) -> Iterator[Store]:
    """Yield a store of CockroachDB's dialect on a PostgreSQL server. We may send only what both understand."""
    store = open_store(url.replace("postgresql://", "cockroachdb://", 1))
    yield store
    store.close()


class TestCockroach:
    """The dialect of CockroachDB. No CockroachDB runs here, so statements that only it refuses are not found."""

    def test_driver(self, cockroach: Store) -> None:
        """The URL opens peewee's own database for CockroachDB, with the same driver as PostgreSQL."""
        assert cockroach.dialect == COCKROACHDB
        kind, driver = cockroach.write_unserialized(lambda db: (type(db), type(db.connection())))
        assert issubclass(kind, CockroachDatabase)
        assert issubclass(driver, psycopg.Connection)

    def test_schema(self, new_database: Callable[[str], str]) -> None:
        """The same migrations create its tables, once."""
        store = open_store(new_database("postgresql").replace("postgresql://", "cockroachdb://", 1))
        assert migrations.migrate(store) == list(range(1, migrations.NEWEST + 1))
        assert migrations.migrate(store) == []
        migrations.check(store)
        store.close()

    def test_a_life(self, cockroach: Store, clock: FrozenClock) -> None:
        """A key is created, listed, changed, deactivated, rotated, verified and revoked as on any database."""
        domain = Domain(cockroach, clock)
        lifecycle, verify = domain.lifecycle, lambda text: domain.verifier.verify(Question(text)).code
        request_id = RequestId("123e4567-e89b-42d3-a456-426614174000", b"body")
        issued = domain.create(name="first", scopes=("orders:read",), request_id=request_id)
        key_id = issued.key.id
        assert domain.create(name="first", scopes=("orders:read",), request_id=request_id).key.id == key_id
        lifecycle.update(OPERATOR, Edit(key_id, Draft("", scopes=("users:read",)), ("scopes",)))
        assert lifecycle.get(OPERATOR, key_id).key.scopes == ("users:read",)
        lifecycle.set_active(OPERATOR, key_id, active=False)
        assert verify(issued.text) is Code.INACTIVE
        lifecycle.set_active_by_name(OPERATOR, "acme", "", "first", active=True)
        rotated = domain.rotate(key_id, grace=HOUR)
        assert (verify(issued.text), verify(rotated.text)) == (Code.VALID, Code.VALID)
        clock.advance(HOUR)
        assert (verify(issued.text), verify(rotated.text)) == (Code.SUPERSEDED, Code.VALID)
        domain.revoke(rotated.key.id)
        assert verify(rotated.text) is Code.REVOKED
        for order in ("create_time", "name desc", "expire_time asc", "last_used_time desc"):
            query = Query(order_by=order, states=(4, 5), search="FIRST", scope="users:read", show_total_size=True)
            page = domain.listing.page(OPERATOR, query)
            assert {key.id for key in page.keys} == {key_id, rotated.key.id}
            assert page.total_size == 2
        assert audit.run(cockroach)
        domain.close()

    def test_two_servers(self, cockroach: Store, url: str, clock: FrozenClock) -> None:
        """A change by one server is known to the other within the staleness bound."""
        theirs = open_store(url.replace("postgresql://", "cockroachdb://", 1))
        one, other = Domain(cockroach, clock), Domain(theirs, clock)
        issued = one.create()
        assert other.verifier.verify(Question(issued.text))
        one.revoke(issued.key.id)
        other.let_lapse()
        assert other.verifier.verify(Question(issued.text)).code is Code.REVOKED
        one.close()
        other.close()
        theirs.close()


class TestLifecycle:
    """Races beneath the changes of a key, in both dialects."""

    def test_every_change(self, faulty: tuple[Store, FaultyDatabase], clock: FrozenClock, pauses: list[float]) -> None:
        """A change that loses two races at commit is made once, with one event."""
        store, database = faulty
        domain = Domain(store, clock)
        lifecycle = domain.lifecycle

        def raced() -> None:
            database.at_commit = [failure(SERIALIZATION), failure(DEADLOCK)]

        raced()
        issued = domain.create()
        key_id = issued.key.id
        raced()
        lifecycle.update(OPERATOR, Edit(key_id, Draft("", scopes=("users:read",)), ("scopes",)))
        raced()
        lifecycle.set_active(OPERATOR, key_id, active=False)
        raced()
        lifecycle.set_active(OPERATOR, key_id, active=True)
        raced()
        rotated = domain.rotate(key_id)
        raced()
        domain.revoke(rotated.key.id)
        assert len(pauses) == 12
        assert store.read("SELECT type FROM event ORDER BY revision") == [(1,), (2,), (4,), (3,), (1,), (6,), (5,)]
        assert store.read("SELECT COUNT(*) FROM api_key") == [(2,)]
        assert domain.verifier.verify(Question(issued.text))
        assert domain.verifier.verify(Question(rotated.text)).code is Code.REVOKED
        assert audit.run(store)
        domain.close()

    def test_a_request_that_is_safe_to_repeat(self, faulty: tuple[Store, FaultyDatabase], clock: FrozenClock) -> None:
        """If a commit's answer was lost, a retry with the same request id finds the key and creates no second one."""
        store, database = faulty
        domain = Domain(store, clock)
        request_id = RequestId("123e4567-e89b-42d3-a456-426614174000", b"body")

        def lose() -> None:
            database.connection().commit()
            database.connection().close()
            raise peewee.OperationalError("the answer was lost")

        database.at_commit = [lose]
        with pytest.raises(StoreUnavailable):
            domain.create(request_id=request_id)
        again = domain.create(request_id=request_id)
        assert again.repeated
        assert again.text == ""
        assert store.read("SELECT COUNT(*) FROM api_key") == [(1,)]
        domain.close()

"""Opening a database, reading from it and writing to it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import peewee
import psycopg
import pytest
import structlog

from tests.domain import answers, new_store
from tumbler_server import trouble
from tumbler_server.errors import SetupError, StoreUnavailable
from tumbler_server.store.database import (
    COCKROACHDB,
    POSTGRESQL,
    SQLITE,
    SQLITE_FLOOR,
    Store,
    Transaction,
    open_store,
)
from tumbler_server.store.models import InstallationRow, LogHeadRow
from tumbler_server.store.pool import MOST


@pytest.fixture
def sqlite_url(new_database: Callable[[str], str]) -> str:
    """Return the URL of a SQLite file that does not exist yet."""
    return new_database("sqlite")


def file_of(url: str) -> Path:
    """Return the file that an absolute SQLite URL names."""
    return Path(url.removeprefix("sqlite:///"))


def count_up(store: Store) -> int:
    """Increment the log's head in its own transaction, as every change does."""

    def work(transaction: Transaction) -> int:
        query = LogHeadRow.update(revision=LogHeadRow.revision + 1).returning(LogHeadRow.revision)
        return int(transaction.select(query)[0].revision)

    return store.write_serialized(work)


class TestUrls:
    """Which database a URL names."""

    @pytest.mark.parametrize(
        ("url", "dialect"),
        [
            ("postgresql://user@host:5432/name", POSTGRESQL),
            ("postgresql:///name?host=/run/postgresql", POSTGRESQL),
            ("postgres://host/name", POSTGRESQL),
            ("cockroachdb://root@host:26257/name", COCKROACHDB),
        ],
    )
    def test_servers(self, url: str, dialect: str) -> None:
        """A server's URL opens a store of its dialect; the store connects at its first use."""
        store = open_store(url)
        assert store.dialect == dialect
        store.close()

    def test_absolute(self, tmp_path: Path) -> None:
        """Four slashes begin an absolute path."""
        store = open_store(f"sqlite:////{str(tmp_path).lstrip('/')}/a.db", create=True)
        assert store.dialect == SQLITE
        assert answers(store)
        store.close()
        assert (tmp_path / "a.db").exists()

    def test_relative(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Three slashes begin a path relative to the current folder."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder").mkdir()
        store = open_store("sqlite:///folder/a.db", create=True)
        assert answers(store)
        store.close()
        assert (tmp_path / "folder" / "a.db").exists()

    def test_escaped(self, tmp_path: Path) -> None:
        """Characters of a path may be percent-encoded."""
        store = open_store(f"sqlite:////{str(tmp_path).lstrip('/')}/a%20b%25.db", create=True)
        assert answers(store)
        store.close()
        assert (tmp_path / "a b%.db").exists()

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "tumbler.db",
            "/var/lib/tumbler.db",
            "mysql://host/name",
            "postgresql:/host/name",
            "host=localhost dbname=name",
            "sqlite:tumbler.db",
            "SQLITE:///a.db",
        ],
    )
    def test_unknown(self, url: str) -> None:
        """A URL of an unknown form is refused with a message that lists the known forms."""
        with pytest.raises(SetupError, match="must begin with sqlite:///, postgresql:// or cockroachdb://"):
            open_store(url)

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://a.db", "sqlite:///:memory:"])
    def test_no_file(self, url: str) -> None:
        """A SQLite URL without a file is refused: in memory, each thread would have its own database."""
        with pytest.raises(SetupError, match="a SQLite URL names a file"):
            open_store(url, create=True)

    def test_no_password_in_a_refusal(self) -> None:
        """The message for a refused URL does not repeat it, because it may contain a password."""
        password = "hunter" + "2"
        with pytest.raises(SetupError) as refused:
            open_store(f"mysql://user:{password}@host/name")
        assert password not in str(refused.value)

    def test_missing_file(self, sqlite_url: str) -> None:
        """A file that does not exist is refused unless it may be created: a wrong path must not start a new service."""
        with pytest.raises(SetupError, match=f"no database {file_of(sqlite_url)}: run `tumbler-server init`"):
            open_store(sqlite_url)
        assert not file_of(sqlite_url).exists()


class TestSqlite:
    """SQLite's version, settings and files."""

    @pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "3.9.0", "2.99.99"])
    def test_too_old(self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        """A library below the minimum version, which can lose a commit, is refused with an upgrade command."""
        monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
        with pytest.raises(SetupError, match=f"is {version}; at least 3.51.3 .* pip install --upgrade apsw"):
            open_store(sqlite_url, create=True)

    @pytest.mark.parametrize("version", [".".join(map(str, SQLITE_FLOOR)), "3.52.0", "3.100.0", "4.0.0"])
    def test_new_enough(self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        """The minimum version and every newer one is accepted."""
        monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
        open_store(sqlite_url, create=True).close()

    def test_an_acknowledged_write_survives_a_power_cut(self, sqlite_url: str) -> None:
        """The database runs in WAL mode, and each commit waits for the disk."""
        store = open_store(sqlite_url, create=True)
        assert store.read("PRAGMA journal_mode") == [("wal",)]
        assert store.read("PRAGMA synchronous") == [(2,)]  # FULL
        store.close()

    def test_a_new_file_that_many_open_at_once(self, tmp_path: Path) -> None:
        """Many threads can open the same new file at the same moment."""
        begin = threading.Barrier(16)

        def work(url: str) -> list[tuple[int]]:
            store = open_store(url, create=True)
            begin.wait()
            try:
                return store.read("SELECT 1")
            finally:
                store.close()

        with ThreadPoolExecutor(16) as executor:
            for number in range(20):
                url = f"sqlite:///{tmp_path}/{number}.db"
                assert list(executor.map(work, [url] * 16)) == [[(1,)]] * 16

    def test_missing_folder(self, tmp_path: Path) -> None:
        """A file that cannot be opened counts as a database that does not answer."""
        store = open_store(f"sqlite:////{str(tmp_path).lstrip('/')}/missing/a.db", create=True)
        assert not answers(store)
        with pytest.raises(StoreUnavailable):
            store.read("SELECT 1")


class TestKinds:
    """The causes of failures that a store reports."""

    def test_a_database_that_takes_no_more(self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full database changes nothing, still answers reads, and takes changes again once there is room."""
        monkeypatch.setattr(trouble, "QUIET", 0)
        store = new_store(sqlite_url)
        (pages,) = store.read("PRAGMA page_count")[0]

        def work(transaction: Transaction) -> None:
            transaction.read(f"PRAGMA max_page_count = {pages}")
            transaction.run(InstallationRow.update(token_secret=bytes(100_000)))

        with structlog.testing.capture_logs() as logged:
            for _ in range(3):
                with pytest.raises(StoreUnavailable) as failed:
                    store.write_serialized(work)
                assert failed.value.detail == {"cause": "FULL", "changed": "no"}
                assert failed.value.said == "database or disk is full (SQLITE_FULL)"
                assert answers(store)
                assert not store.takes_changes
        assert [(entry["event"], entry["cause"], entry["code"]) for entry in logged] == [
            ("the database takes no changes", "FULL", "SQLITE_FULL")
        ]
        with structlog.testing.capture_logs() as logged:
            store.try_to_change()
        assert [entry["event"] for entry in logged] == ["over: the database takes no changes"]
        assert (store.takes_changes, store.recovers) == (True, False)
        store.close()

    def test_a_change_that_is_made_ends_it_at_once(self, sqlite_url: str) -> None:
        """The first successful change ends a failure, a read does not; the log notes the end after a quiet period."""
        store = new_store(sqlite_url)
        (pages,) = store.read("PRAGMA page_count")[0]

        def work(transaction: Transaction) -> None:
            transaction.read(f"PRAGMA max_page_count = {pages}")
            transaction.run(InstallationRow.update(token_secret=bytes(100_000)))

        with pytest.raises(StoreUnavailable):
            store.write_serialized(work)
        assert answers(store)
        assert (store.takes_changes, store.recovers) == (False, True)
        with structlog.testing.capture_logs() as logged:
            store.try_to_change()
        assert (store.takes_changes, store.recovers, logged) == (True, True, [])
        store.close()

    def test_damaged(self, sqlite_url: str) -> None:
        """An unreadable page is reported as DAMAGED, not as a bug of the server."""
        store = new_store(sqlite_url)
        store.close()
        content = file_of(sqlite_url).read_bytes()
        file_of(sqlite_url).write_bytes(content[:4_096] + b"\xff" * (len(content) - 4_096))
        store = open_store(sqlite_url)
        with pytest.raises(StoreUnavailable) as failed:
            store.read("SELECT * FROM log_head")
        assert failed.value.detail == {"cause": "DAMAGED"}
        store.close()

    @pytest.mark.parametrize(
        ("how", "cause"),
        [
            ("ALTER ROLE {role} SET default_transaction_read_only = on", "READ_ONLY"),
            ("ALTER ROLE {role} CONNECTION LIMIT 0", "CROWDED"),
            ("ALTER ROLE {role} NOLOGIN", "REFUSED"),
            ("REVOKE ALL ON log_head FROM {role}", "REFUSED"),
        ],
    )
    def test_postgresql(self, new_database: Callable[[str], str], how: str, cause: str) -> None:
        """A refusal by PostgreSQL is reported with its cause, and nothing has changed."""
        url = new_database("postgresql")
        admin, role = new_store(url), "limited" + url.partition("/test")[2].partition("?")[0]
        for sql in ("CREATE ROLE {role} LOGIN", "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}", how):
            admin.write_unserialized(lambda db, sql=sql: db.execute_sql(sql.format(role=role)))
        store = open_store(url.replace("postgres:@", f"{role}:@", 1))
        with pytest.raises(StoreUnavailable) as failed:
            count_up(store)
        assert failed.value.detail == {"cause": cause, "changed": "no"}
        assert failed.value.said
        assert "\n" not in failed.value.said
        for each in (store, admin):
            each.close()


class TestRead:
    """Reading."""

    def test_parameters(self, store: Store) -> None:
        """A parameter is written `?` on every kind of database."""
        assert store.read("SELECT id FROM log_head WHERE id = ? AND revision < ?", (1, 5)) == [(1,)]

    def test_percent_sign_in_a_value(self, store: Store) -> None:
        """A value never becomes part of the statement, whatever it contains."""
        value = "100 % ' \" ; %s ?"
        assert store.read("SELECT id FROM api_key WHERE id = ?", (value,)) == []

    def test_a_wrong_statement(self, store: Store) -> None:
        """A wrong statement raises the driver's error, not StoreUnavailable."""
        with pytest.raises(peewee.DatabaseError):
            store.read("SELECT nonsense FROM log_head")
        assert store.read("SELECT id FROM log_head") == [(1,)]

    def test_ping(self, store: Store) -> None:
        """A database that answers passes the ping."""
        assert answers(store)

    def test_nobody_there(self) -> None:
        """If no server listens, the database does not answer, and calls raise StoreUnavailable."""
        store = open_store("postgresql://nobody@127.0.0.1:1/nothing")
        assert not answers(store)
        with pytest.raises(StoreUnavailable):
            store.read("SELECT 1")
        with pytest.raises(StoreUnavailable):
            store.write_serialized(lambda _: None)

    @pytest.mark.parametrize(
        ("text", "found"), [("orders:read", True), ("Orders", False), ("order_", False), ("%", False), ("", True)]
    )
    def test_strpos(self, store: Store, text: str, found: bool) -> None:
        """A search for text in a column is case-sensitive and has no wildcards."""
        column = peewee.Value("orders:read")
        rows = store.select(LogHeadRow.select(LogHeadRow.id).where(store.strpos(column, text)).tuples())
        assert bool(rows) is found


class TestWrite:
    """Writing."""

    def test_result(self, store: Store) -> None:
        """A write returns the result of its work, and its changes are stored."""
        assert count_up(store) == 1
        assert store.read("SELECT revision FROM log_head") == [(1,)]

    @pytest.mark.parametrize("failure", [KeyError, KeyboardInterrupt, SetupError])
    def test_roll_back(self, store: Store, failure: type[BaseException]) -> None:
        """A work's exception propagates, its changes are rolled back, and no transaction stays open."""

        def work(transaction: Transaction) -> None:
            transaction.run(LogHeadRow.update(revision=99))
            raise failure

        with pytest.raises(failure):
            store.write_serialized(work)
        assert store.read("SELECT revision FROM log_head") == [(0,)]
        assert count_up(store) == 1

    def test_own_writes(self, store: Store) -> None:
        """A transaction sees its own writes; others do not see them before the commit."""

        def work(transaction: Transaction) -> tuple[int, int]:
            transaction.run(LogHeadRow.update(revision=5))
            (inside,) = transaction.select(LogHeadRow.select())
            with ThreadPoolExecutor(1) as executor:
                ((outside,),) = executor.submit(store.read, "SELECT revision FROM log_head").result()
            return inside.revision, outside

        assert store.write_serialized(work) == (5, 0)

    def test_a_broken_constraint(self, store: Store) -> None:
        """A duplicate row raises the driver's error, and nothing of the work is kept."""

        def work(transaction: Transaction) -> None:
            transaction.run(LogHeadRow.update(revision=5))
            transaction.run(InstallationRow.insert(id=1, token_secret=b""))

        with pytest.raises(peewee.IntegrityError):
            store.write_serialized(work)
        assert store.read("SELECT revision FROM log_head") == [(0,)]

    def test_no_writer_is_lost(self, store: Store, database_url: str) -> None:
        """Concurrent writers in two servers lose no update, and no two get the same number."""
        stores = [store, open_store(database_url)]
        begin = threading.Barrier(8)

        def work(number: int) -> list[int]:
            begin.wait()
            return [count_up(stores[number % 2]) for _ in range(20)]

        with ThreadPoolExecutor(8) as executor:
            numbers = [number for part in executor.map(work, range(8)) for number in part]
        assert sorted(numbers) == list(range(1, 161))
        stores[1].close()

    def test_alone_among_writers(self, store: Store, database_url: str) -> None:
        """What a transaction has read stays true until it commits, without a lock taken by the caller."""
        stores = [store, open_store(database_url)]
        begin = threading.Barrier(4)

        def add_one(transaction: Transaction) -> None:
            (row,) = transaction.select(LogHeadRow.select())
            transaction.run(LogHeadRow.update(revision=row.revision + 1))

        def work(number: int) -> None:
            begin.wait()
            for _ in range(15):
                stores[number % 2].write_serialized(add_one)

        with ThreadPoolExecutor(4) as executor:
            list(executor.map(work, range(4)))
        assert store.read("SELECT revision FROM log_head") == [(60,)]
        stores[1].close()


@pytest.fixture
def connections(store: Store, database_url: str) -> Iterator[Callable[[], int]]:
    """Yield a function that counts the open connections to the test's database."""
    if store.dialect == SQLITE:
        yield lambda: sum(connection.filename == str(file_of(database_url)) for connection in apsw.connections())
        return
    watcher = open_store(database_url)

    def count() -> int:
        ((number,),) = watcher.read(
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return int(number)

    yield count
    watcher.close()


def comes_to(count: Callable[[], int], expected: int) -> bool:
    """Return whether a count soon reaches a number: a server ends a connection's process with some delay."""
    pause = threading.Event()
    return any(count() == expected or pause.wait(0.01) for _ in range(500))


class TestVersion:
    """A version that a thread sees change with each commit (SQLite)."""

    @pytest.fixture
    def dialect(self) -> str:
        """Return SQLite, the only dialect that has a version."""
        return "sqlite"

    def test_moves(self, store: Store, database_url: str) -> None:
        """The version changes with commits of this thread, other threads and other servers, and with nothing else."""
        other = open_store(database_url)
        values = [store.version()]
        for act in (lambda: count_up(store), lambda: count_up(other), lambda: in_a_thread(lambda: count_up(store))):
            act()
            values.append(store.version())
            store.read("SELECT 1 FROM log_head")
            assert store.version() == values[-1]
        assert len(set(values)) == 4
        other.close()

    def test_beside_a_writer(self, store: Store) -> None:
        """During a write the version does not change until the commit."""
        before = store.version()

        def work(transaction: Transaction) -> tuple[int, int] | None:
            transaction.run(LogHeadRow.update(revision=5))
            return store.version()

        assert store.write_serialized(work) == before != store.version()

    def test_never_waits(self, store: Store, database_url: str) -> None:
        """If a process locks the file exclusively, each call returns another version, without waiting."""
        before = store.version()
        store.close()
        with contextlib.closing(apsw.Connection(str(file_of(database_url)))) as other:
            other.execute("PRAGMA locking_mode = exclusive")
            other.execute("BEGIN EXCLUSIVE")
            other.execute("UPDATE log_head SET revision = 7")
            locked_out = open_store(database_url)
            began = time.monotonic()
            values = {before, *(locked_out.version() for _ in range(10))}
            assert time.monotonic() - began < 0.5
            assert len(values) == 11
            locked_out.close()


def in_a_thread(work: Callable[[], object]) -> None:
    """Run some work in another thread."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(work).result()


class TestConnections:
    """On SQLite a connection belongs to a thread; elsewhere it is lent for one operation."""

    @pytest.fixture
    def database_url(self, dialect: str, new_database: Callable[[str], str]) -> str:
        """Return a database without connections from other tests."""
        return new_database(dialect)

    def test_kept(self, store: Store, connections: Callable[[], int]) -> None:
        """A thread's connection is opened once and kept."""
        for _ in range(3):
            answers(store)
        assert connections() == 1

    @pytest.mark.parametrize("dialect", ["sqlite"])
    def test_one_for_each_thread(self, store: Store, connections: Callable[[], int]) -> None:
        """Threads that run at the same time have a connection each."""
        all_here, counted = threading.Barrier(5), threading.Event()

        def work() -> None:
            answers(store)
            all_here.wait()
            counted.wait()

        with ThreadPoolExecutor(4) as executor:
            for _ in range(4):
                executor.submit(work)
            all_here.wait()
            number = connections()
            counted.set()
        assert number == 5  # including this thread's, which created the tables

    @pytest.mark.parametrize("dialect", ["postgresql"])
    @pytest.mark.parametrize(("default", "used"), [("off", "on"), ("on", "on"), ("local", "local")])
    @pytest.mark.usefixtures("store")
    def test_what_is_acknowledged_is_on_disk(self, database_url: str, default: str, used: str) -> None:
        """Where an administrator's default is that commits do not wait for the disk, the server's own do."""
        with contextlib.closing(psycopg.connect(database_url, autocommit=True)) as admin:
            admin.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {admin.info.dbname} SET synchronous_commit = {default}")
        asked = "SELECT current_setting('synchronous_commit')"
        with contextlib.closing(open_store(database_url)) as opened:
            assert opened.read(asked) == [(default,)]
            assert opened.write_serialized(lambda transaction: transaction.read(asked)) == [(used,)]

    @pytest.mark.parametrize("dialect", ["postgresql"])
    def test_as_many_as_are_in_use(self, store: Store, connections: Callable[[], int]) -> None:
        """If connections are lent, threads that use them at different times share one."""
        with ThreadPoolExecutor(4) as executor:
            begin = threading.Barrier(4)
            for future in [executor.submit(begin.wait) for _ in range(4)]:
                future.result()
            for _ in range(8):
                executor.submit(answers, store).result()
            assert connections() == 1

    @pytest.mark.parametrize("dialect", ["postgresql"])
    def test_kept_warm(self, database_url: str, connections: Callable[[], int]) -> None:
        """The first use opens the requested number of connections in advance and keeps them."""
        warm = open_store(database_url, warm=7)
        before = connections()
        assert answers(warm)
        assert comes_to(connections, before + 7)
        warm.close()

    @pytest.mark.parametrize("dialect", ["postgresql"])
    def test_readers_leave_the_writer_one(self, store: Store) -> None:
        """Long reads leave a connection for a change; one more read waits until a connection is returned."""
        with ThreadPoolExecutor(MOST) as executor:
            reads = [executor.submit(store.read, "SELECT pg_sleep(0.5)") for _ in range(MOST)]
            deadline = threading.Event()
            while sum(future.running() for future in reads) < MOST:
                deadline.wait(0.001)
            assert count_up(store) == 1
            assert answers(store)
            for future in reads:
                future.result()

    def test_closed_with_the_thread(self, store: Store, connections: Callable[[], int]) -> None:
        """A thread's connection is closed when the thread ends."""
        for _ in range(5):
            thread = threading.Thread(target=answers, args=(store,))
            thread.start()
            thread.join()
        assert comes_to(connections, 1)

    def test_close(self, store: Store, connections: Callable[[], int]) -> None:
        """Closing the store closes the connections of all threads."""
        with ThreadPoolExecutor(3) as executor:
            begin = threading.Barrier(3)
            for future in [executor.submit(lambda: (answers(store), begin.wait())) for _ in range(3)]:
                future.result()
            store.close()
            assert comes_to(connections, 0)

"""Opening a database by its URL, and the one way to read from it and to write to it.

Three things are settled here so that nobody else has to think of them:

- *Connections* belong to threads. Each thread's is opened at first use, kept, and closed when the thread ends.
- *Writers go one at a time*, on every database: SQLite by ``BEGIN IMMEDIATE`` (and a lock, so that this process's own
  writers queue instead of polling), the others by locking the log's head row first. Whatever a write transaction reads
  is therefore true until it commits.
- *Failures*: a transaction that lost a race (40001, 40P01) or its connection before it began to commit is repeated, a
  bounded number of times; what still fails because the database is not there is ``StoreUnavailable``.
"""

import contextlib
import itertools
import random
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import apsw
import peewee
import psycopg
import structlog
from playhouse.apsw_ext import APSWDatabase
from playhouse.cockroachdb import CockroachDatabase

from tumbler_server.errors import SetupError, StoreUnavailable

T = TypeVar("T")

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
COCKROACHDB = "cockroachdb"

SQLITE_FLOOR = (3, 51, 3)
"""Older libraries can corrupt a WAL database that has several connections, or lose a commit."""

POSTGRESQL_FLOOR = 140_000

BUSY_TIMEOUT = 15.0
"""Seconds that a SQLite writer waits for another process's."""

_LIBPQ_DEFAULTS: dict[str, Any] = {
    "application_name": "tumbler-server",
    # A peer that vanished without a word must not hold a call for the minutes that TCP would wait.
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "tcp_user_timeout": 10_000,
}

ATTEMPTS = 8
"""How often a transaction is tried before its failure is reported."""

IDLE_LIMIT = 10_000
"""Milliseconds that a PostgreSQL transaction may stand still. A process that was stopped in the middle of one, or whose
network went away, would otherwise hold its locks, and with them all writers of all servers, for ever."""

# In the statement that is sent anyway, and not as an option of the connection: poolers pass few of those on.
_LIMITED = f"SELECT set_config('idle_in_transaction_session_timeout', '{IDLE_LIMIT}', true)"
_LOCKED = " FROM log_head WHERE id = 1 FOR UPDATE"

CHANNEL = "tumbler"
"""Where PostgreSQL servers tell each other that something was committed."""

RETRIED_SQLSTATES = frozenset({"40001", "40P01"})  # serialization failure, deadlock

IDLE_TOO_LONG = "25P03"

UNDONE_SQLSTATES = RETRIED_SQLSTATES | {IDLE_TOO_LONG}
"""Where these come of a commit, it was not made."""

UNAVAILABLE_SQLSTATES = frozenset({"25006", IDLE_TOO_LONG})  # the first: read-only after a failover

_log = structlog.get_logger(__name__)


class Store:
    """A database, opened. Safe for use by many threads."""

    def __init__(self, database: peewee.Database, dialect: str, listen: Callable[[], "Listener"] | None = None) -> None:
        self.dialect = dialect
        self.notifies = False
        """Whether changes wake the other servers' listeners."""
        self._db = database
        self._open_listener = listen
        self._serials = itertools.count()
        self._writing = threading.Lock() if dialect == SQLITE else None
        self._first = _LIMITED if dialect == POSTGRESQL else ""
        self._lock = {SQLITE: "", POSTGRESQL: _LIMITED + _LOCKED, COCKROACHDB: "SELECT id" + _LOCKED}[dialect]
        self._connections: set[Any] = set()
        self._thread = threading.local()

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one reading statement, written with ``?`` for parameters, and return its rows.

        Raises ``StoreUnavailable`` where the database does not answer.
        """
        if self.dialect != SQLITE:
            sql = sql.replace("?", "%s")
        elif (connection := getattr(self._thread, "connection", None)) is not None:
            # The driver itself, on the way of each Verify of a key that is not known: peewee costs several times as
            # much. Where it fails, the statement is run again the usual way, which knows what to make of the failure.
            with contextlib.suppress(apsw.Error):
                return list(connection.execute(sql, parameters))
        return self._attempt(lambda: self._connected().execute_sql(sql, parameters).fetchall())

    def version(self) -> tuple[int, int, int] | None:
        """Return what this thread sees change, at the latest, with each commit by anybody; None where nothing does.

        Only on SQLite, where it costs some microseconds. Values of different threads say nothing about each other.
        Raises ``StoreUnavailable``.
        """
        if self.dialect != SQLITE:
            return None
        thread = self._thread
        try:
            if not hasattr(thread, "connection"):
                self._connected()
            # The PRAGMA, since the driver's own function does not see what other processes commit. It does not count
            # what this very connection commits.
            return thread.serial, thread.connection.execute("PRAGMA data_version").get, thread.commits
        except (apsw.Error, peewee.OperationalError) as failure:
            _log.warning("the database does not answer", error=type(failure).__name__)
            raise StoreUnavailable from failure

    def listen(self) -> "Listener | None":
        """Open a connection of its own that hears what ``Transaction.notify`` says; None where databases cannot.

        Raises ``StoreUnavailable``.
        """
        return self._open_listener() if self._open_listener and self.notifies else None

    def select(self, query: peewee.BaseQuery) -> list[Any]:
        """Run a peewee query that reads, and return its rows."""
        return self._attempt(lambda: list(query.bind(self._connected())))

    def write(self, work: Callable[["Transaction"], T]) -> T:
        """Run ``work`` in a write transaction, alone among all writers, and return what it returned.

        ``work`` may run more than once: it must have no effect but through its transaction. An exception rolls back.
        Raises ``StoreUnavailable`` where the database does not answer; the change may then have been made, if and only
        if the failure came while committing.
        """
        with self._writing or contextlib.nullcontext():
            return self._attempt(
                lambda: self._transact(lambda db: work(Transaction(db, self.notifies)), first=self._lock)
            )

    def alone(self, work: Callable[[peewee.Database], T]) -> T:
        """Run ``work`` in one transaction of its own on the bare database, as migrations need it."""
        with self._writing or contextlib.nullcontext():
            return self._attempt(lambda: self._transact(work, first=self._first))

    def strpos(self, column: peewee.Node, text: str) -> peewee.Expression:
        """Return the condition that ``column`` contains ``text``, case counting."""
        position = peewee.fn.instr if self.dialect == SQLITE else peewee.fn.strpos
        return position(column, text) > 0

    def close(self) -> None:
        """Close every thread's connection; no call may be under way."""
        while self._connections:
            _close(self._connections, next(iter(self._connections)))

    def _connected(self) -> peewee.Database:
        if self._db.is_closed():
            self._db.connect()
            connection = self._db.connection()
            self._connections.add(connection)
            self._thread.connection = connection
            self._thread.serial = next(self._serials)
            self._thread.commits = 0
            self._thread.leash = _Leash()  # goes with the thread
            weakref.finalize(self._thread.leash, _close, self._connections, connection)
        return self._db

    def _transact(self, work: Callable[[peewee.Database], T], first: str) -> T:
        db = self._connected()
        if self.dialect == SQLITE:
            db.begin("IMMEDIATE")  # type: ignore[call-arg]  # SQLite's own
        else:
            db.begin()
        try:
            if first:
                db.execute_sql(first)
            result = work(db)
        except BaseException:
            self._roll_back()
            raise
        try:
            db.commit()
        except (peewee.DatabaseError, peewee.InterfaceError) as failure:
            self._roll_back()
            if sqlstate(failure) in UNDONE_SQLSTATES:
                raise
            raise _CommitFailed from failure
        finally:
            self._thread.commits += 1
        return result

    def _roll_back(self) -> None:
        try:
            self._db.rollback()
        except (peewee.DatabaseError, peewee.InterfaceError):
            _log.debug("rolling back failed: the connection is gone, and the transaction with it")

    def _attempt(self, action: Callable[[], T]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return action()
            except _CommitFailed as failure:
                raise StoreUnavailable from failure
            except (peewee.OperationalError, peewee.InterfaceError, peewee.InternalError) as failure:
                if isinstance(getattr(failure, "orig", None), apsw.SQLError):
                    raise  # the statement is wrong, not the database
                if isinstance(failure, peewee.InternalError) and sqlstate(failure) not in UNAVAILABLE_SQLSTATES:
                    raise
                lost = self._forget_lost_connection()
                raced = sqlstate(failure) in RETRIED_SQLSTATES
                if (raced and attempt < ATTEMPTS) or (lost and attempt == 1):
                    time.sleep(random.uniform(0, 0.005 * 2**attempt))  # noqa: S311 - jitter, no secret
                    continue
                _log.warning("the database does not answer", error=type(failure).__name__, sqlstate=sqlstate(failure))
                raise StoreUnavailable from failure

    def _forget_lost_connection(self) -> bool:
        """Drop this thread's connection if the server has ended it; say whether that was so."""
        if self.dialect == SQLITE or self._db.is_closed() or not self._db.connection().closed:
            return False
        self._db.close()
        return True


class Transaction:
    """The one handle that a piece of writing work has on the database."""

    def __init__(self, database: peewee.Database, notifies: bool) -> None:
        self._db = database
        self._notifies = notifies

    def notify(self) -> None:
        """Wake the other servers when this has been committed, where the database can. It may get lost."""
        if self._notifies:
            self._db.execute_sql(f"NOTIFY {CHANNEL}")

    def select(self, query: peewee.BaseQuery) -> list[Any]:
        """Run a peewee query that reads, or one with RETURNING, and return its rows."""
        return list(query.bind(self._db))

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one reading statement, written with ``?`` for parameters, and return its rows."""
        return list(self._db.execute_sql(sql.replace("?", self._db.param), parameters).fetchall())

    def run(self, query: peewee.BaseQuery) -> None:
        """Run a peewee query that writes."""
        query.execute(self._db)

    def change(self, query: peewee.BaseQuery) -> int:
        """Run a peewee query that updates or deletes rows, and return how many."""
        return int(query.execute(self._db))

    def run_many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one writing statement, written with ``?`` for parameters, for each of many rows."""
        with peewee.__exception_wrapper__:  # type: ignore[attr-defined]  # peewee's own way to its exceptions
            self._db.cursor().executemany(sql.replace("?", self._db.param), rows)


class Listener:
    """A PostgreSQL connection that waits to be woken. It may miss a call: never rest on it alone."""

    def __init__(self, url: str, parameters: dict[str, Any]) -> None:
        with _unavailable(), contextlib.ExitStack() as made:
            connection = psycopg.connect(url, autocommit=True, **parameters)
            self._connection = made.enter_context(contextlib.closing(connection))
            self._connection.execute(f"LISTEN {CHANNEL}")
            self._interrupted, self._interrupting = map(made.enter_context, socket.socketpair())
            self._selector = made.enter_context(selectors.DefaultSelector())
            for waited_for in (self._connection, self._interrupted):
                self._selector.register(waited_for, selectors.EVENT_READ)
            self._made = made.pop_all()

    def wait(self, seconds: float) -> bool:
        """Wait for a call, so long at the most, and say whether there was one; it can end early without.

        Raises ``StoreUnavailable``.
        """
        self._selector.select(seconds)
        with _unavailable():
            return any(True for _ in self._connection.notifies(timeout=0, stop_after=1))

    def interrupt(self) -> None:
        """Have ``wait`` return at once, now and from now on. Another thread may call it."""
        with contextlib.suppress(OSError):  # it has been closed
            self._interrupting.send(b"!")

    def close(self) -> None:
        """Hang up."""
        self._made.close()


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, OSError) as failure:  # the latter where there is no descriptor left
        raise StoreUnavailable from failure


class _Leash:
    """What a thread holds as long as it lives: a connection's end is tied to it."""


def _close(connections: set[Any], connection: Any) -> None:
    if connection in connections:
        connections.discard(connection)
        try:
            connection.close()
        except Exception:
            _log.debug("closing a connection failed: it was broken already")


class _CommitFailed(Exception):
    """The commit itself failed: whether the change was made is not known."""


def sqlstate(failure: BaseException) -> str | None:
    """Return the SQLSTATE of what the driver raised, where there is one."""
    return getattr(getattr(failure, "orig", None), "sqlstate", None)


def open_store(url: str, create: bool = False) -> Store:
    """Open the database that ``url`` names: ``sqlite:///path``, ``postgresql://…`` or ``cockroachdb://…``.

    Nothing is connected yet. Raises ``SetupError`` for a URL of no known form, for a SQLite library that is too old,
    and for a SQLite file that does not exist, unless it may be created.
    """
    scheme, separator, rest = url.partition("://")
    if scheme == "sqlite" and separator:
        path = _sqlite_path(rest)
        if not create and not path.exists():
            raise SetupError(f"there is no database {path}: run `tumbler-server init` first, or correct --data-dir")
        return Store(_sqlite(path), SQLITE)
    if scheme in ("postgresql", "postgres") and separator:
        url = "postgresql://" + rest
        parameters = _libpq_parameters(url)
        return Store(
            _postgresql(peewee.PostgresqlDatabase, url, parameters), POSTGRESQL, lambda: Listener(url, parameters)
        )
    if scheme == "cockroachdb" and separator:
        url = "postgresql://" + rest
        return Store(_postgresql(CockroachDatabase, url, _libpq_parameters(url)), COCKROACHDB)
    raise SetupError("the database URL must begin with sqlite:///, postgresql:// or cockroachdb://")


def _sqlite_path(rest: str) -> Path:
    # As everywhere: sqlite:///relative.db, sqlite:////absolute.db.
    path = unquote(rest.removeprefix("/"))
    if not rest.startswith("/") or not path or path == ":memory:":
        raise SetupError("a SQLite URL names a file: sqlite:///relative/path.db or sqlite:////absolute/path.db")
    return Path(path)


def _sqlite(path: Path) -> APSWDatabase:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < SQLITE_FLOOR:
        floor = ".".join(map(str, SQLITE_FLOOR))
        raise SetupError(
            f"this SQLite library is {apsw.sqlite_lib_version()}; at least {floor} is needed, since older ones can "
            "corrupt a database that has several connections: pip install --upgrade apsw"
        )
    return APSWDatabase(
        str(path),
        autoconnect=False,
        timeout=BUSY_TIMEOUT,
        pragmas=(("journal_mode", "wal"), ("synchronous", "full")),
    )


def _libpq_parameters(url: str) -> dict[str, Any]:
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise SetupError("the database URL is not one that libpq understands") from None
    return {name: value for name, value in _LIBPQ_DEFAULTS.items() if name not in given}


def _postgresql(
    kind: type[peewee.PostgresqlDatabase], url: str, parameters: dict[str, Any]
) -> peewee.PostgresqlDatabase:
    return kind(url, autoconnect=False, prefer_psycopg3=True, **parameters)

"""Opening a database by its URL, and the only way to read from it and to write to it.

The store settles four things for all of its callers:

- *Time*: a call ends within ``timeout``, and a read within a fifth of it, whatever the database does. It returns its
  result or raises ``StoreUnavailable``. A caller with an earlier deadline shortens this, and gets ``CallerGone``.
- *Connections*: on SQLite each thread has its own. Other databases use a ``pool`` that connects in the background.
- *Serial writes*: one write transaction runs at a time, on every database. ``turns`` orders the threads of this
  process. SQLite's ``BEGIN IMMEDIATE``, or a lock on the log's head row, orders processes. So whatever a write
  transaction reads stays true until it commits. Urgent writes go to the front of the queue.
- *Failures*: a transaction that lost a race (40001, 40P01), or lost its connection before it began to commit, is
  retried a bounded number of times. A remaining failure of the database raises ``StoreUnavailable``, with its cause,
  its reason and whether a change was made. The log gets a line when the trouble begins, one a minute while it lasts,
  and one when it ends.

If the database turns out not to be the one that was opened, the process stops using it for the rest of its life.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import apsw
import peewee
import psycopg

from tumbler_server import logs
from tumbler_server.clock import SECOND
from tumbler_server.defaults import DATABASE_TIMEOUT
from tumbler_server.errors import CallerGone, Cause, SetupError, StoreUnavailable
from tumbler_server.store.bound import Bound
from tumbler_server.store.failures import Understood, is_missing_table, sqlstate
from tumbler_server.store.identity import Replaced
from tumbler_server.store.postgresql import (
    CHANNEL,
    POSTGRESQL_FLOOR,
    Listener,
    Postgresql,
    open_cockroachdb,
    open_postgresql,
)
from tumbler_server.store.sqlite import SQLITE_FLOOR, Sqlite, open_sqlite
from tumbler_server.store.turns import Turns
from tumbler_server.trouble import Trouble

__all__ = [
    "COCKROACHDB",
    "POSTGRESQL",
    "POSTGRESQL_FLOOR",
    "SQLITE",
    "SQLITE_FLOOR",
    "Listener",
    "Read",
    "Store",
    "Transaction",
    "open_store",
    "sqlite_path",
]

T = TypeVar("T")

Read = Callable[[str, Sequence[object]], list[tuple[Any, ...]]]
"""Runs a reading statement: ``Store.read`` outside a transaction, ``Transaction.read`` inside one."""

Select = Callable[[peewee.BaseQuery], list[Any]]
"""Runs a reading query: ``Store.select`` outside a transaction, ``Transaction.select`` inside one."""

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
COCKROACHDB = "cockroachdb"

READS_SHARE = 5
"""The timeout of a write divided by that of a read."""

ATTEMPTS = 8
"""How often a transaction that loses races is tried before its failure is reported."""

RETRIED_SQLSTATES = frozenset({"40001", "40P01"})  # serialization failure, deadlock

IDLE_TOO_LONG = "25P03"

UNDONE_SQLSTATES = RETRIED_SQLSTATES | {IDLE_TOO_LONG}
"""A commit that fails with one of these was not made."""

_UNDONE = frozenset({Cause.FULL, Cause.READ_ONLY})
"""If a commit fails for one of these causes, the database has rolled it back itself, and reports that."""

_OF_ALL = frozenset({Cause.AWAY, Cause.CROWDED, Cause.NO_FILES, Cause.STOPPING, Cause.REFUSED})
"""Causes that affect reads too, even if a write met them first."""

_log = logs.get_logger(__name__)


class Store:
    """An open database. Safe for use by many threads. ``timeout`` is in microseconds."""

    def __init__(self, backend: Sqlite | Postgresql, dialect: str, timeout: int = DATABASE_TIMEOUT) -> None:
        self.dialect = dialect
        self.notifies = False
        """Whether changes notify the other servers' listeners."""
        self._backend = backend
        self._seconds = timeout / SECOND
        self._turns = Turns()
        self._trouble = Trouble("the database cannot be used")
        self._refusing = Trouble("the database takes no changes")
        self._failing = False
        self._worked = False
        self._given_up = threading.Lock()
        self.lost = ""
        """Why the database was given up for the life of this process; empty while it is in use."""
        self.on_loss: Callable[[str], None] = lambda why: _log.error("the database was lost", why=why)
        """Called once, from any thread, when the database is given up."""

    @property
    def takes_changes(self) -> bool:
        """Whether a change has succeeded since the database last failed. True if it never failed."""
        return not (self.lost or self._failing)

    @property
    def recovers(self) -> bool:
        """Whether to try a change: changes fail, or failed lately and the log does not yet report the end of it."""
        return not self.lost and (self._failing or self._refusing.lasts or self._trouble.lasts)

    def try_to_change(self) -> None:
        """Test whether a change can be made now, with a write that changes nothing.

        Raises what ``write_serialized`` does.
        """
        self.write_serialized(lambda transaction: transaction.touch())

    def give_up(self, why: str) -> None:
        """Stop using the database: it is not the one that was opened, and everything cached from it is void.

        From now on each call raises ``StoreUnavailable``. ``why`` is reported to the operator.
        """
        with self._given_up:
            if self.lost:
                return
            self.lost = why
        kept = self._backend.give_up()
        if kept:
            self.lost = f"{why}; its last changes are kept in {kept}"
        self.on_loss(self.lost)

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one reading statement, with ``?`` for parameters, and return its rows.

        Raises ``StoreUnavailable`` if the database does not answer, and ``CallerGone`` if the caller has gone.
        """
        bound = Bound(self._seconds / READS_SHARE)
        return self._attempt(lambda: self._backend.read(sql, parameters, bound), bound)

    def version(self) -> tuple[int, int] | None:
        """Return a value that differs after each commit by any process; None on databases other than SQLite.

        The value may also change without a commit. The call takes a few microseconds and never waits: while another
        process has the file locked, it returns a value that equals no other. Values of different threads cannot be
        compared. Raises ``StoreUnavailable``.
        """
        backend = self._backend
        if not isinstance(backend, Sqlite):
            return None
        if self.lost:
            raise self._gone()
        try:
            version = backend.version()
        except (apsw.Error, Replaced) as failure:
            raise self._unavailable(failure) from failure
        self._went_well(writing=False)
        return version

    def listen(self) -> Listener | None:
        """Open a dedicated connection that receives what ``Transaction.notify`` sends.

        Returns None if the database sends no notifications, or is behind a pooler. Raises ``StoreUnavailable``.
        """
        if not (self.notifies and isinstance(self._backend, Postgresql) and self.dialect == POSTGRESQL):
            return None
        try:
            listener = self._backend.listen(Bound(self._seconds))
        except (psycopg.Error, OSError) as failure:  # OSError: no file descriptor is left
            raise self._unavailable(failure) from failure
        if listener is None:
            _log.info("the database is behind a pooler: changes made by other servers are found only by polling")
        return listener

    def select(self, query: peewee.BaseQuery) -> list[Any]:
        """Run a peewee query that only reads, and return its rows."""
        bound = Bound(self._seconds / READS_SHARE)

        def once() -> list[Any]:
            with self._backend.using(bound) as db:
                return list(query.bind(db))

        return self._attempt(once, bound)

    def snapshot(self, work: Callable[[Read], T]) -> T:
        """Run ``work`` with a function that reads like ``read``, except that all its reads see the same state.

        ``work`` may run more than once. Writers do not wait for it. Raises ``StoreUnavailable``.
        """
        bound = Bound(self._seconds)

        def once() -> T:
            with self._backend.using(bound) as db:
                self._backend.begin_snapshot()
                try:
                    return work(Transaction(db, notifies=False).read)
                finally:
                    self._roll_back()

        return self._attempt(once, bound)

    def write_serialized(self, work: Callable[["Transaction"], T], urgent: bool = False) -> T:
        """Run ``work`` in a write transaction, as the only writer, and return its result.

        ``work`` may run more than once, so it must have no effect except through its transaction. An exception rolls
        back. In this process an ``urgent`` write waits only for the write in progress and for other urgent writes.

        With the lock held, ``calls.Call.judge`` judges the caller again before ``work`` runs. If the caller has gone by
        then, ``CallerGone`` is raised and nothing changes. Raises ``StoreUnavailable`` if the database does not answer.
        The change may then have been made if, and only if, the commit itself failed.
        """
        bound = Bound(self._seconds)

        def judged(db: peewee.Database) -> T:
            transaction = Transaction(db, self.notifies)
            if bound.call is not None and bound.call.judge is not None:
                bound.call.judge(transaction)
            return work(transaction)

        def once() -> T:
            with self._turns.turn(bound, urgent):
                return self._transact(judged, bound, urgent, locked=True)

        return self._attempt(once, bound, writing=True)

    def write_unserialized(self, work: Callable[[peewee.Database], T], timeout: int | None = None) -> T:
        """Run ``work`` in a write transaction on the bare database, beside other writers.

        It takes no lock, except on SQLite, where every write needs the write lock.
        """
        bound = Bound(self._seconds if timeout is None else timeout / SECOND)

        def once() -> T:
            with self._turns.turn(bound) if self.dialect == SQLITE else contextlib.nullcontext():
                return self._transact(work, bound, urgent=False, locked=False)

        return self._attempt(once, bound, writing=True)

    def strpos(self, column: peewee.Node, text: str) -> peewee.Expression:
        """Return the condition that ``column`` contains ``text``, case-sensitively."""
        position = peewee.fn.instr if self.dialect == SQLITE else peewee.fn.strpos
        return position(column, text) > 0

    def close(self) -> None:
        """Close every connection. No call may be in progress."""
        self._backend.close()

    def _transact(self, work: Callable[[peewee.Database], T], bound: Bound, urgent: bool, locked: bool) -> T:
        with self._backend.using(bound, urgent, locked) as db:
            try:
                self._backend.begin(locked)
                bound.check()
                result = work(db)
                self._backend.check()
            except BaseException:
                self._roll_back()
                raise
            try:
                self._backend.commit()
            except Replaced as failure:
                raise _CommitFailed from failure
            except (peewee.DatabaseError, peewee.InterfaceError) as failure:
                self._roll_back()
                understood = self._backend.understand(failure)
                if sqlstate(failure) in UNDONE_SQLSTATES or (understood and understood.cause in _UNDONE):
                    raise
                raise _CommitFailed from failure
            return result

    def _roll_back(self) -> None:
        try:
            self._backend.roll_back()
        except (peewee.DatabaseError, peewee.InterfaceError):
            _log.debug("rolling back failed: the connection and its transaction are gone")

    def _attempt(self, action: Callable[[], T], bound: Bound, writing: bool = False) -> T:
        attempt = 0
        while True:
            attempt += 1
            if self.lost:
                raise self._gone(writing)
            try:
                result = action()
            except _CommitFailed as failure:
                raise self._unavailable(failure.__cause__, "unknown") from failure.__cause__
            except (StoreUnavailable, Replaced) as failure:
                raise self._unavailable(failure, "no" if writing else "") from failure.__cause__
            except (peewee.DatabaseError, peewee.InterfaceError, UnicodeDecodeError) as failure:
                if self._backend.understand(failure) is None:
                    if self._worked and is_missing_table(failure):
                        self.give_up("tables of the database are gone: it was replaced, or a backup is being restored")
                        raise self._gone(writing) from failure
                    raise  # the statement is wrong, not the database
                raced = sqlstate(failure) in RETRIED_SQLSTATES
                again = (raced and attempt < ATTEMPTS) or (attempt == 1 and self._backend.lost())
                if again and not bound.over():
                    pause = random.uniform(0, 0.005 * 2**attempt)  # noqa: S311 - jitter, no secret
                    time.sleep(min(pause, bound.left()))
                    continue
                told = bound.failure()
                if isinstance(told, CallerGone):  # the caller's own deadline says nothing about the database
                    raise told from failure
                raise self._unavailable(failure, "no" if writing else "") from failure
            else:
                self._went_well(writing)
                return result

    def _unavailable(self, failure: BaseException | None, changed: str = "") -> StoreUnavailable:
        """Log a failure of the database, and return the error for the caller."""
        if isinstance(failure, Replaced):
            self.give_up(str(failure))
            return StoreUnavailable(Cause.REPLACED, self.lost, changed)
        found = self._backend.understand(failure) if failure is not None else None
        cause, code, said = found or Understood(Cause.AWAY, "", type(failure).__name__)
        trouble = self._refusing if changed and cause not in _OF_ALL else self._trouble
        if self._worked:  # before the first success, the code that opened the store reports it: one line, not two
            self._failing = True
            trouble.met(cause=cause.name, code=code or None, reason=said, mend=cause.mend)
        return StoreUnavailable(cause, f"{said} ({code})" if code else said, changed)

    def _gone(self, writing: bool = False) -> StoreUnavailable:
        return StoreUnavailable(Cause.REPLACED, self.lost, "no" if writing else "")

    def _went_well(self, writing: bool) -> None:
        self._worked = True
        self._trouble.passed()
        if writing:
            self._failing = False
            self._refusing.passed()


class Transaction:
    """The handle through which ``work`` uses the database in a write transaction."""

    def __init__(self, database: peewee.Database, notifies: bool) -> None:
        self._db = database
        self._notifies = notifies
        self.appended: list[tuple[int, bytes]] = []
        """Revision and hash of each event that the transaction has appended to the log."""

    def notify(self) -> None:
        """Notify the other servers once this commits, if the database can. A notification may get lost."""
        if self._notifies:
            self._db.execute_sql(f"NOTIFY {CHANNEL}")

    def touch(self) -> None:
        """Write something without changing anything that is read elsewhere."""
        if isinstance(self._db, peewee.SqliteDatabase):
            # SQLite does not write a row that stays the same. Only this method uses user_version.
            ((number,),) = self._db.execute_sql("PRAGMA user_version").fetchall()
            self._db.execute_sql(f"PRAGMA user_version = {(number + 1) % 2**30}")
        else:
            self._db.execute_sql("UPDATE schema_version SET version = version WHERE id = 1")

    def select(self, query: peewee.BaseQuery) -> list[Any]:
        """Run a peewee query that only reads, or one with RETURNING, and return its rows."""
        return list(query.bind(self._db))

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement that returns rows, with ``?`` for parameters, and return the rows."""
        return list(self._db.execute_sql(sql.replace("?", self._db.param), parameters).fetchall())

    def run(self, query: peewee.BaseQuery) -> None:
        """Run a peewee query that writes."""
        query.execute(self._db)

    def change(self, query: peewee.BaseQuery) -> int:
        """Run a peewee query that updates or deletes rows, and return the number of rows."""
        return int(query.execute(self._db))

    def run_many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one writing statement, with ``?`` for parameters, for each of many rows."""
        with peewee.__exception_wrapper__:  # type: ignore[attr-defined]  # peewee's own way to its exceptions
            self._db.cursor().executemany(sql.replace("?", self._db.param), rows)


class _CommitFailed(Exception):
    """The commit itself failed. It is not known whether the change was made."""


def open_store(url: str, create: bool = False, timeout: int = DATABASE_TIMEOUT, warm: int = 0) -> Store:
    """Open the database that ``url`` names: ``sqlite:///path``, ``postgresql://…`` or ``cockroachdb://…``.

    Nothing connects yet. On first use a pool opens ``warm`` connections and keeps them; SQLite has no pool.
    Raises ``SetupError`` for a URL of unknown form, for a SQLite library that is too old, for a SQLite file that
    this user may not access, and for a missing one unless ``create`` is true.
    """
    scheme, separator, rest = url.partition("://")
    if scheme == "sqlite" and separator:
        path = sqlite_path(url)
        try:
            missing = not create and not path.exists()
        except OSError as failure:
            raise SetupError(f"the database {path} cannot be opened: {failure.strerror}") from None
        if missing:
            raise SetupError(f"there is no database {path}: run `tumbler-server init` first, or correct --data-dir")
        return Store(open_sqlite(path), SQLITE, timeout)
    if scheme in ("postgresql", "postgres") and separator:
        return Store(open_postgresql("postgresql://" + rest, warm), POSTGRESQL, timeout)
    if scheme == "cockroachdb" and separator:
        return Store(open_cockroachdb("postgresql://" + rest, warm), COCKROACHDB, timeout)
    raise SetupError("the database URL must begin with sqlite:///, postgresql:// or cockroachdb://")


def sqlite_path(url: str) -> Path:
    """Return the file that a SQLite URL names. Raises ``SetupError`` if it names none."""
    # The usual convention: sqlite:///relative.db, sqlite:////absolute.db.
    rest = url.removeprefix("sqlite://")
    path = unquote(rest.removeprefix("/"))
    if not rest.startswith("/") or not path or path == ":memory:":
        raise SetupError("a SQLite URL names a file: sqlite:///relative/path.db or sqlite:////absolute/path.db")
    return Path(path)

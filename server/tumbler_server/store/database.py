"""Opening a database by its URL, and the one way to read from it and to write to it.

Four things are settled here so that nobody else has to think of them:

- *Time*: whatever the database does, a call ends within ``timeout``, and a read within a fifth of it: with what it
  asked for, or with ``StoreUnavailable``. A caller who waits less long shortens that, and gets ``CallerGone``.
- *Connections*: on SQLite each thread has its own; elsewhere they are opened in the background, and lent (``pool``).
- *Writers go one at a time, in turn*, on every database: the threads of this process by ``turns``, processes by
  SQLite's ``BEGIN IMMEDIATE`` or by locking the log's head row first. Whatever a write transaction reads is therefore
  true until it commits. What is urgent goes before all others that wait.
- *Failures*: a transaction that lost a race (40001, 40P01) or its connection before it began to commit is repeated, a
  bounded number of times; what still fails because of the database is ``StoreUnavailable``, with its kind, its reason
  and what became of a change; the log is told by a line as it begins, one a minute, and one as it ends.

And a database that turns out to be another one than was opened is given up, for as long as the process lives.
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
import structlog

from tumbler_server.clock import SECOND
from tumbler_server.errors import CallerGone, Cause, SetupError, StoreUnavailable
from tumbler_server.store.bound import Bound
from tumbler_server.store.failures import Understood, sqlstate
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
"""How a statement is read: outside a transaction by the store, inside by the transaction."""

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
COCKROACHDB = "cockroachdb"

TIMEOUT = 10 * SECOND
"""How long a call to the database may take, in microseconds, unless the operator says otherwise."""

READS_SHARE = 5
"""A read may take this part of the time that a write may take."""

ATTEMPTS = 8
"""How often a transaction is tried before its failure is reported."""

RETRIED_SQLSTATES = frozenset({"40001", "40P01"})  # serialization failure, deadlock

IDLE_TOO_LONG = "25P03"

UNDONE_SQLSTATES = RETRIED_SQLSTATES | {IDLE_TOO_LONG}
"""Where these come of a commit, it was not made."""

_UNDONE = frozenset({Cause.FULL, Cause.READ_ONLY})
"""Where a commit fails for these, the database itself has undone the change, and says so."""

_OF_ALL = frozenset({Cause.AWAY, Cause.CROWDED, Cause.STOPPING, Cause.REFUSED})
"""Trouble that is not of changes alone, though it was a change that met it."""

_log = structlog.get_logger(__name__)


class Store:
    """A database, opened. Safe for use by many threads. ``timeout`` is in microseconds."""

    def __init__(self, backend: Sqlite | Postgresql, dialect: str, timeout: int = TIMEOUT) -> None:
        self.dialect = dialect
        self.notifies = False
        """Whether changes wake the other servers' listeners."""
        self._backend = backend
        self._seconds = timeout / SECOND
        self._turns = Turns()
        self._trouble = Trouble("the database cannot be used")
        self._refusing = Trouble("the database takes no changes")
        self._failing = False
        self._worked = False
        self._given_up = threading.Lock()
        self.lost = ""
        """Why the database is of no use any more, for as long as this process lives: it is another one."""
        self.on_loss: Callable[[str], None] = lambda why: _log.error("the database was lost", why=why)
        """Called once, by any thread, when it is lost."""

    @property
    def takes_changes(self) -> bool:
        """Whether a change was made since the database last failed, or it never did."""
        return not (self.lost or self._failing)

    @property
    def recovers(self) -> bool:
        """Whether changes fail, or did so lately and the log has not been told that it is over: try one."""
        return not self.lost and (self._failing or self._refusing.lasts or self._trouble.lasts)

    def try_to_change(self) -> None:
        """Find out whether a change can be made now, by one of nothing. Raises what ``write`` does."""
        self.write(lambda transaction: transaction.touch())

    def give_up(self, why: str) -> None:
        """Use the database no more: it is not the one that was opened, and what is remembered of it is void.

        From here on each call raises ``StoreUnavailable``. ``why`` is told to the operator.
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
        """Run one reading statement, written with ``?`` for parameters, and return its rows.

        Raises ``StoreUnavailable`` where the database does not answer, and ``CallerGone`` where nobody waits for it.
        """
        bound = Bound(self._seconds / READS_SHARE)
        return self._attempt(lambda: self._backend.read(sql, parameters, bound), bound)

    def version(self) -> tuple[int, int] | None:
        """Return what this thread sees change, at the latest, with each commit by anybody; None where nothing does.

        Only on SQLite, where it costs some microseconds, and never waits: for the one moment in which another process
        keeps the file to itself, it returns what equals no other value. Values of different threads say nothing about
        each other. Raises ``StoreUnavailable``.
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
        """Open a connection of its own that hears what ``Transaction.notify`` says; None where databases cannot.

        Nor can one behind a pooler. Raises ``StoreUnavailable``.
        """
        if not (self.notifies and isinstance(self._backend, Postgresql) and self.dialect == POSTGRESQL):
            return None
        try:
            listener = self._backend.listen(Bound(self._seconds))
        except (psycopg.Error, OSError) as failure:  # the latter where there is no descriptor left
            raise self._unavailable(failure) from failure
        if listener is None:
            _log.info("the database is behind a pooler: changes made by other servers are found only by polling")
        return listener

    def select(self, query: peewee.BaseQuery) -> list[Any]:
        """Run a peewee query that reads, and return its rows."""
        bound = Bound(self._seconds / READS_SHARE)

        def once() -> list[Any]:
            with self._backend.using(bound) as db:
                return list(query.bind(db))

        return self._attempt(once, bound)

    def write(self, work: Callable[["Transaction"], T], urgent: bool = False) -> T:
        """Run ``work`` in a write transaction, alone among all writers, and return what it returned.

        ``work`` may run more than once: it must have no effect but through its transaction. An exception rolls back.
        What is ``urgent`` waits in this process for the one write under way, and for nothing else but what is urgent
        too.

        Before ``work``, with the lock held, the caller is judged again (``calls.Call.judge``); where it has gone,
        ``CallerGone`` is raised and nothing is changed. Raises ``StoreUnavailable`` where the database does not answer;
        the change may then have been made, if and only if the failure came while committing.
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

    def alone(self, work: Callable[[peewee.Database], T], timeout: int | None = None) -> T:
        """Run ``work`` in one transaction of its own on the bare database, as migrations need it.

        It locks nothing of itself, except on SQLite, where there is no other way to write.
        """
        bound = Bound(self._seconds if timeout is None else timeout / SECOND)

        def once() -> T:
            with self._turns.turn(bound) if self.dialect == SQLITE else contextlib.nullcontext():
                return self._transact(work, bound, urgent=False, locked=False)

        return self._attempt(once, bound, writing=True)

    def strpos(self, column: peewee.Node, text: str) -> peewee.Expression:
        """Return the condition that ``column`` contains ``text``, case counting."""
        position = peewee.fn.instr if self.dialect == SQLITE else peewee.fn.strpos
        return position(column, text) > 0

    def close(self) -> None:
        """Close every connection; no call may be under way."""
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
                    raise  # the statement is wrong, not the database
                raced = sqlstate(failure) in RETRIED_SQLSTATES
                again = (raced and attempt < ATTEMPTS) or (attempt == 1 and self._backend.lost())
                if again and not bound.over():
                    pause = random.uniform(0, 0.005 * 2**attempt)  # noqa: S311 - jitter, no secret
                    time.sleep(min(pause, bound.left()))
                    continue
                told = bound.failure()
                if isinstance(told, CallerGone):  # whose own deadline says nothing of the database
                    raise told from failure
                raise self._unavailable(failure, "no" if writing else "") from failure
            else:
                self._went_well(writing)
                return result

    def _unavailable(self, failure: BaseException | None, changed: str = "") -> StoreUnavailable:
        """Return what is told of a failure of the database, after the log was told."""
        if isinstance(failure, Replaced):
            self.give_up(str(failure))
            return StoreUnavailable(Cause.REPLACED, self.lost, changed)
        found = self._backend.understand(failure) if failure is not None else None
        cause, code, said = found or Understood(Cause.AWAY, "", type(failure).__name__)
        trouble = self._refusing if changed and cause not in _OF_ALL else self._trouble
        if self._worked:  # what fails from the beginning is told by whoever began: in one line, not two
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
    """The one handle that a piece of writing work has on the database."""

    def __init__(self, database: peewee.Database, notifies: bool) -> None:
        self._db = database
        self._notifies = notifies

    def notify(self) -> None:
        """Wake the other servers when this has been committed, where the database can. It may get lost."""
        if self._notifies:
            self._db.execute_sql(f"NOTIFY {CHANNEL}")

    def touch(self) -> None:
        """Have something written, and nothing changed that anybody reads."""
        if isinstance(self._db, peewee.SqliteDatabase):
            # A row is not written where it stays as it was. Nobody uses this number but us, here.
            ((number,),) = self._db.execute_sql("PRAGMA user_version").fetchall()
            self._db.execute_sql(f"PRAGMA user_version = {(number + 1) % 2**30}")
        else:
            self._db.execute_sql("UPDATE schema_version SET version = version WHERE id = 1")

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


class _CommitFailed(Exception):
    """The commit itself failed: whether the change was made is not known."""


def open_store(url: str, create: bool = False, timeout: int = TIMEOUT, warm: int = 0) -> Store:
    """Open the database that ``url`` names: ``sqlite:///path``, ``postgresql://…`` or ``cockroachdb://…``.

    Nothing is connected yet; at the first use ``warm`` connections are opened and kept, where connections are lent.
    Raises ``SetupError`` for a URL of no known form, for a SQLite library that is too old, and for a SQLite file that
    does not exist, unless it may be created.
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
    """Return the file that a SQLite URL names. Raises ``SetupError`` where it names none."""
    # As everywhere: sqlite:///relative.db, sqlite:////absolute.db.
    rest = url.removeprefix("sqlite://")
    path = unquote(rest.removeprefix("/"))
    if not rest.startswith("/") or not path or path == ":memory:":
        raise SetupError("a SQLite URL names a file: sqlite:///relative/path.db or sqlite:////absolute/path.db")
    return Path(path)

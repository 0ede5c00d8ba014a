"""SQLite: one connection per thread, a bound on everything that takes time, and turns at the single write lock."""

import contextlib
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import peewee
from playhouse.apsw_ext import APSWDatabase

from tumbler_server import logs
from tumbler_server.errors import SetupError
from tumbler_server.store.bound import Bound
from tumbler_server.store.failures import Understood, understand
from tumbler_server.store.identity import Identity
from tumbler_server.store.lending import Lending
from tumbler_server.store.turns import Gate

SQLITE_FLOOR = (3, 51, 3)
"""Older libraries can corrupt a WAL database that has several connections, or lose a commit."""

_POLL, _URGENT_POLL = 0.001, 0.0005
"""Seconds between two attempts of the next writer to get the write lock."""

_STEPS = 100_000
"""Steps of SQLite's virtual machine, some milliseconds, between two looks at the clock."""

_log = logs.get_logger(__name__)


class _Database(Lending, APSWDatabase):  # type: ignore[misc]  # playhouse has no types
    """Peewee's database, except that it opens connections outside of its lock."""

    def open(self, busy: Callable[[int], bool]) -> Any:
        """Open a connection. ``busy`` decides how long it waits for each lock."""
        with peewee.__exception_wrapper__:  # type: ignore[attr-defined]  # peewee's own way to its exceptions
            connection = apsw.Connection(self.database, **self.connect_params)
            try:
                connection.set_busy_handler(busy)
                self._prepare(connection, busy)
            except BaseException:
                connection.close()
                raise
            return connection

    def _prepare(self, connection: Any, busy: Callable[[int], bool]) -> None:
        """Set the pragmas. If several connections switch a new file to WAL at once, SQLite fails some immediately.

        Then read once: that opens the log, and SQLite does not remove it until this connection closes.
        """
        while True:
            try:
                self._add_conn_hooks(connection)
                connection.execute("PRAGMA schema_version").fetchall()
            except apsw.BusyError:
                if not busy(0):
                    raise
            else:
                return


class _Thread(threading.local):
    """The state of one thread."""

    connection: Any = None
    watch: Any = None  # a connection that sees the commits of all others, including this thread's
    serial = 0
    bound: Bound | None = None
    urgent = False
    leash: Any = None


class Sqlite:
    """A SQLite file. Each thread's connections are opened on first use, and closed when the thread ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.identity = Identity(path)
        self.database = _Database(
            str(path),
            autoconnect=False,
            pragmas=(("journal_mode", "wal"), ("synchronous", "full")),
        )
        self._gate = Gate(path.absolute().parent)
        self._serials = itertools.count()
        self._unknown = itertools.count(1)
        self._connections: set[Any] = set()
        self._thread = _Thread()

    def understand(self, failure: BaseException) -> Understood | None:
        """See ``failures.understand``."""
        system = 0
        with contextlib.suppress(apsw.ConnectionClosedError):
            if self._thread.connection is not None:
                system = self._thread.connection.system_errno
        return understand(failure, system=system)

    def read(self, sql: str, parameters: Sequence[object], bound: Bound) -> list[tuple[Any, ...]]:
        """Run one reading statement. Raises ``identity.Replaced``, like every other use of the file."""
        self.identity.now_and_then()
        thread = self._thread
        thread.bound = bound
        if thread.connection is not None:
            # Call the driver directly: every Verify of a key that is not cached comes here, and peewee costs several
            # times as much. If this fails, run the statement again the usual way, which handles the failure.
            with contextlib.suppress(apsw.Error):
                return list(thread.connection.execute(sql, parameters))
        with self.using(bound) as db:
            return list(db.execute_sql(sql, parameters).fetchall())

    def version(self) -> tuple[int, int]:
        """See ``Store.version``. Raises what the driver does."""
        self.identity.now_and_then()
        thread = self._thread
        try:
            if thread.watch is None:
                self.identity.opening()
                thread.watch = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
                thread.serial = next(self._serials)
                self._tie(thread.watch)
            # Use the PRAGMA: the driver's own function does not see the commits of other processes.
            return thread.serial, thread.watch.execute("PRAGMA data_version").get
        except (apsw.BusyError, apsw.LockedError):
            return thread.serial, -next(self._unknown)

    @contextlib.contextmanager
    def using(self, bound: Bound, urgent: bool = False, _writing: bool = False) -> Iterator[peewee.Database]:
        """Yield the database on this thread's connection, within the bound."""
        thread = self._thread
        thread.bound, thread.urgent = bound, urgent
        if thread.connection is None:
            self.identity.opening()
            connection = self.database.open(self._busy)
            connection.set_progress_handler(self._progressing, _STEPS)
            self.database.lend(connection)
            self._tie(connection)
            thread.connection = connection
            self.identity.look()
        self.identity.now_and_then()
        yield self.database

    def begin(self, _locked: bool) -> None:
        """Begin a write transaction, in turn with other processes."""
        if not self._thread.urgent and self._thread.bound is not None:
            self._gate.wait(self._thread.bound)
        try:
            self.database.begin("IMMEDIATE")
        finally:
            self._gate.leave()

    def begin_snapshot(self) -> None:
        """Begin a transaction whose reads all see the same state. The first read decides which."""
        self.database.begin("DEFERRED")

    def check(self) -> None:
        """Check before a commit that the file is still ours. Raises ``identity.Replaced``."""
        self.identity.look()

    def commit(self) -> None:
        """Commit, without waiting for a lock.

        Raises ``identity.Replaced`` if the file at the path does not have the change. The change must then not be
        acknowledged.
        """
        self.database.commit()
        self.identity.look()

    def roll_back(self) -> None:
        """Roll back."""
        self.database.rollback()

    def lost(self) -> bool:
        """Return whether the connection has ended: never, since a file cannot hang up."""
        return False

    def close(self) -> None:
        """Close every thread's connections. No call may be in progress."""
        while self._connections:
            self._end(next(iter(self._connections)))
        self._gate.close()

    def give_up(self) -> str:
        """Stop using the file, since it is not ours any more. Nothing of our log may be written into it.

        Returns the path that the log was moved to, or an empty string. Other threads may be running statements.
        """
        for connection in list(self._connections):
            with contextlib.suppress(apsw.Error):
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        return self.identity.set_aside()

    def _end(self, connection: Any) -> None:
        _close(self._connections, connection)
        if not self._connections:
            self.identity.forget_logs()

    def _tie(self, connection: Any) -> None:
        """Close a connection when the thread ends."""
        thread = self._thread
        self._connections.add(connection)
        if thread.leash is None:
            thread.leash = _Leash()
        weakref.finalize(thread.leash, self._end, connection)

    def _busy(self, _: int) -> bool:
        """Return whether to try again for a lock that is held."""
        thread = self._thread
        if thread.bound is None or thread.bound.over():
            return False
        if thread.urgent:
            self._gate.try_to_hold()  # its holder is next and we do not wait for that, but block those who come later
        time.sleep(_URGENT_POLL if thread.urgent else _POLL)
        return True

    def _progressing(self) -> bool:
        """Return whether to end the statement."""
        bound = self._thread.bound
        return bound is not None and bound.over()


class _Leash:
    """An object that lives as long as its thread. Its finalizers close the thread's connections."""


def _close(connections: set[Any], connection: Any) -> None:
    if connection in connections:
        connections.discard(connection)
        try:
            connection.close()
        except Exception:
            _log.debug("closing a connection failed: it was already broken")


def open_sqlite(path: Path) -> Sqlite:
    """Open a SQLite file, which may be missing. Raises ``SetupError`` if the library is too old."""
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < SQLITE_FLOOR:
        floor = ".".join(map(str, SQLITE_FLOOR))
        raise SetupError(
            f"this SQLite library is {apsw.sqlite_lib_version()}; at least {floor} is needed, since older ones can "
            "corrupt a database that has several connections: pip install --upgrade apsw"
        )
    return Sqlite(path)

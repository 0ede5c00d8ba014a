"""PostgreSQL, and CockroachDB with the same driver: pooled connections, with time limits on both sides.

The server ends a statement by its own clock (``statement_timeout``, which covers waiting for a lock), so no abandoned
statement goes on there. The limit is set for one transaction at a time, in the message that begins it: a pooler in
transaction mode would pass a session's setting on to other clients. If the server stops answering while its kernel or
a pooler still acknowledges, our own clock ends the driver's wait, and the connection with it.
"""

import contextlib
import math
import selectors
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, TypeVar

import peewee
import psycopg
from playhouse.cockroachdb import CockroachDatabase

from tumbler_server import logs
from tumbler_server.errors import Cause, SetupError, StoreUnavailable
from tumbler_server.store.bound import GRACE, Bound
from tumbler_server.store.failures import Understood, understand
from tumbler_server.store.lending import Lending
from tumbler_server.store.pool import Pool

T = TypeVar("T")

POSTGRESQL_FLOOR = 140_000

_LIBPQ_DEFAULTS: dict[str, Any] = {
    "application_name": "tumbler-server",
    # A peer that vanished silently must not hold a connection for the minutes that TCP would wait.
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

IDLE_LIMIT = 10_000
"""Milliseconds that a PostgreSQL transaction may be idle. Without a limit, a process that is stopped in a transaction,
or loses its network, would hold its locks forever, and block all writers of all servers."""

_LOCK = "SELECT id FROM log_head WHERE id = 1 FOR UPDATE"

CHANNEL = "tumbler"
"""The PostgreSQL channel on which our servers notify one another of commits."""

_LOOK = 0.05
"""Seconds between two looks at our clock while the database server is silent."""

_TRICKLE = 0.5
"""Seconds past the bound for an answer that has begun to arrive."""

_log = logs.get_logger(__name__)


_DURABLE = (
    "set_config('synchronous_commit', "
    "CASE s.setting WHEN 'off' THEN 'on' ELSE s.setting END, true) "
    "FROM (SELECT current_setting('synchronous_commit') AS setting) s"
)
"""Makes a commit wait for the disk even where an administrator's default is `off`: what is acknowledged must last."""


class Silent(psycopg.OperationalError):
    """The server did not answer in time, and the connection was cut."""


class Connection(psycopg.Connection[Any]):
    """A connection whose waits end at ``until``, an instant of ``time.monotonic``."""

    until = math.inf
    silent = False
    """Whether it was cut because the server did not answer."""
    limits = ""
    """The SQL to send before each statement outside of a transaction, which makes the server bound it."""

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **named: Any) -> T:
        """Wait for the server. All of psycopg's traffic goes through here."""
        if self.until == math.inf:
            return super().wait(gen, *arguments, **named)
        look = max(0.001, min(_LOOK, self.until - time.monotonic()))
        try:
            return super().wait(_bounded(gen, self.until), look)
        except Silent:
            self.silent = True
            self.pgconn.finish()
            raise


def _bounded(steps: Generator[Any, Any, T], until: float) -> Generator[Any, Any, T]:
    """Run the steps of psycopg's generator. Raise ``Silent`` once it is too late."""
    try:
        waiting = next(steps)
        while True:
            ready = yield waiting
            late = time.monotonic() - until
            if late > _TRICKLE or (late > 0 and not ready):
                raise Silent("the server does not answer")
            waiting = steps.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


class _Database(Lending):
    """A mix-in for a peewee database that speaks PostgreSQL's protocol."""

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        connection: Connection = self.connection()  # type: ignore[attr-defined]  # the database mixed into has it
        with peewee.__exception_wrapper__:  # type: ignore[attr-defined]  # peewee's own way to its exceptions
            if not connection.limits:
                cursor = connection.cursor()
                cursor.execute(sql, params or ())
                return cursor
            # One message is one transaction, so the parameters must be in its text; psycopg's ClientCursor puts them
            # there. Two messages would cost three times as much.
            cursor = psycopg.ClientCursor(connection)
            cursor.execute(f"{connection.limits}; {sql}", params or ())
            cursor.nextset()
            return cursor


class PostgresqlDatabase(_Database, peewee.PostgresqlDatabase):
    """PostgreSQL for peewee, on lent connections."""


class CockroachDatabaseLent(_Database, CockroachDatabase):  # type: ignore[misc]  # playhouse has no types
    """CockroachDB for peewee, on lent connections."""


class Postgresql:
    """A PostgreSQL or CockroachDB server. With ``limits``, the server itself ends what takes too long."""

    def __init__(self, database: Any, url: str, limits: bool, warm: int = 0) -> None:
        parameters = _libpq_parameters(url)
        self.database = database
        self._url, self._parameters = url, parameters
        self._password = str(psycopg.conninfo.conninfo_to_dict(url).get("password") or "")
        self._limits = limits
        self._pool: Pool[Connection] = Pool(
            lambda: Connection.connect(url, autocommit=True, prepare_threshold=None, **parameters),
            warm,
        )
        self._thread = threading.local()

    def understand(self, failure: BaseException) -> Understood | None:
        """See ``failures.understand``."""
        return understand(failure, self._password)

    def read(self, sql: str, parameters: Sequence[object], bound: Bound) -> list[tuple[Any, ...]]:
        """Run one reading statement."""
        with self.using(bound) as db:
            return list(db.execute_sql(sql.replace("?", "%s"), parameters).fetchall())

    @contextlib.contextmanager
    def using(self, bound: Bound, _urgent: bool = False, writing: bool = False) -> Iterator[peewee.Database]:
        """Yield the database on a connection of the pool, within the bound."""
        thread = self._thread
        if not self.database.is_closed():
            yield self.database  # a read in the middle of a transaction belongs to it
            return
        thread.connection = connection = self._pool.take(bound, writing)
        thread.bound = bound
        connection.until = bound.cut
        if self._limits:
            connection.limits = f"SELECT set_config('statement_timeout', '{_milliseconds(bound)}', true)"
        self.database.lend(connection)
        try:
            yield self.database
        finally:
            self.database.unlend()
            if connection.silent and time.monotonic() >= bound.last:  # not if only a caller's deadline passed
                self._pool.distrust(TimeoutError(f"no answer within {bound.seconds:g} s"))
            connection.until, connection.limits = math.inf, ""
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.close()
            self._pool.give_back(connection, writing)

    def begin_snapshot(self) -> None:
        """Begin a transaction whose reads all see the same state."""
        connection: Connection = self._thread.connection
        limits, connection.limits = connection.limits, ""
        with peewee.__exception_wrapper__:  # type: ignore[attr-defined]  # peewee's own way to its exceptions
            connection.execute("; ".join(filter(None, ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", limits))))

    def begin(self, locked: bool) -> None:
        """Begin a transaction and, if ``locked``, lock the log's head row."""
        connection: Connection = self._thread.connection
        limits, connection.limits = connection.limits, ""
        statements = ["BEGIN"]
        if limits:
            statements.append(
                f"{limits}, set_config('idle_in_transaction_session_timeout', '{IDLE_LIMIT}', true), {_DURABLE}"
            )
        if locked:
            statements.append(_LOCK)
        with peewee.__exception_wrapper__:  # type: ignore[attr-defined]  # peewee's own way to its exceptions
            connection.execute("; ".join(statements))  # one message

    def check(self) -> None:
        """Do nothing: no check is needed before a commit."""

    def commit(self) -> None:
        """Commit. Wait the full time, even for a caller who has gone: otherwise the outcome would be unknown."""
        self._thread.connection.until = self._thread.bound.last
        self.database.commit()

    def roll_back(self) -> None:
        """Roll back. A late caller does not cost the connection."""
        connection, bound = self._thread.connection, self._thread.bound
        connection.until = max(connection.until, min(bound.last, time.monotonic() + GRACE))
        self.database.rollback()

    def lost(self) -> bool:
        """Return whether this thread's last connection has ended."""
        connection = getattr(self._thread, "connection", None)
        return connection is not None and connection.closed

    def listen(self, bound: Bound) -> "Listener | None":
        """See ``Store.listen``. Raises what the driver does."""
        listener = Listener(self._url, self._parameters, bound)
        if listener.pooled:
            listener.close()
            return None
        return listener

    def give_up(self) -> str:
        """Stop using the database. There is no file to move aside."""
        return ""

    def close(self) -> None:
        """Close the pool. No call may be in progress."""
        self._pool.close()


def _milliseconds(bound: Bound) -> int:
    """Return how long a statement may take: until the server's limit, or just past the caller's deadline."""
    return max(1, math.ceil((bound.server_until - time.monotonic()) * 1_000) + 1)


class Listener:
    """A PostgreSQL connection that waits for notifications. It may miss some, so never rely on it alone.

    It is ``pooled`` if a pooler may share the server's side of the connection among clients, as PgBouncer does in
    transaction mode. Its notifications could then reach any client.
    """

    def __init__(self, url: str, parameters: dict[str, Any], bound: Bound) -> None:
        with contextlib.ExitStack() as made:
            connection = Connection.connect(url, autocommit=True, prepare_threshold=None, **parameters)
            self._connection = made.enter_context(contextlib.closing(connection))
            connection.until = bound.cut
            # A pooler makes up the process id that it reports for the server.
            process = self._connection.execute("SELECT pg_backend_pid()").fetchone()
            self.pooled = process != (connection.info.backend_pid,)
            if not self.pooled:
                self._connection.execute(f"LISTEN {CHANNEL}")
            connection.until = math.inf
            self._interrupted, self._interrupting = map(made.enter_context, socket.socketpair())
            self._selector = made.enter_context(selectors.DefaultSelector())
            for waited_for in (self._connection, self._interrupted):
                self._selector.register(waited_for, selectors.EVENT_READ)
            self._made = made.pop_all()

    def wait(self, seconds: float) -> bool:
        """Wait up to so many seconds for a notification, and return whether there was one.

        It may return early without one. Raises ``StoreUnavailable``.
        """
        self._selector.select(seconds)
        try:
            return any(True for _ in self._connection.notifies(timeout=0, stop_after=1))
        except (psycopg.Error, OSError) as failure:
            cause, _, said = understand(failure) or Understood(Cause.AWAY, "", type(failure).__name__)
            raise StoreUnavailable(cause, said) from failure

    def interrupt(self) -> None:
        """Make ``wait`` return at once, now and from now on. Another thread may call it."""
        with contextlib.suppress(OSError):  # already closed
            self._interrupting.send(b"!")

    def close(self) -> None:
        """Close the connection."""
        self._made.close()


def _libpq_parameters(url: str) -> dict[str, Any]:
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise SetupError("the database URL is not a valid libpq URI") from None
    return {name: value for name, value in _LIBPQ_DEFAULTS.items() if name not in given}


def open_postgresql(url: str, warm: int = 0) -> Postgresql:
    """Open a database of a PostgreSQL server."""
    return Postgresql(PostgresqlDatabase(url, autoconnect=False, prefer_psycopg3=True), url, limits=True, warm=warm)


def open_cockroachdb(url: str, warm: int = 0) -> Postgresql:
    """Open a database of a CockroachDB cluster. Only our own clock bounds it: the other limits are untested there."""
    return Postgresql(CockroachDatabaseLent(url, autoconnect=False, prefer_psycopg3=True), url, limits=False, warm=warm)

"""A pool of connections that are opened ahead of use, and lent for one operation at a time.

The pool opens connections in the background, several at a time, and replaces broken ones there. So no call waits for an
attempt to connect longer than its own bound, or behind another call's attempt.
"""

import select
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from tumbler_server.errors import StoreUnavailable
from tumbler_server.store.bound import Bound

MOST = 16
"""Most connections that a pool opens for readers, unless ``warm`` is larger."""

_OPENERS = 4
"""Connections that may be opened at the same time."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
"""Seconds between two failed attempts to connect."""


class PooledConnection(Protocol):
    """What a pool needs of a connection."""

    @property
    def closed(self) -> bool:
        """Whether it can no longer be used."""

    def fileno(self) -> int:
        """Return the descriptor of its socket."""

    def close(self) -> None:
        """Close it."""


C = TypeVar("C", bound=PooledConnection)


class Pool(Generic[C]):
    """A pool of open connections. Safe for use by many threads.

    It connects on first use, and then keeps at least ``warm`` connections. It opens more on demand, up to ``MOST`` and
    one for the writer, which readers never take.
    """

    def __init__(self, connect: Callable[[], C], warm: int = 0) -> None:
        self._connect = connect
        self._warm = warm
        self._most = max(warm, MOST) + 1
        self._changed = threading.Condition()
        self._idle: list[C] = []
        self._lent = 0
        self._readers = 0
        self._waiting = 0
        self._openers = 0
        self._wanted = 0
        self._failure: Exception | None = None  # of the last attempt to reach the database; None if it succeeded
        self._never = threading.Event()

    def take(self, bound: Bound, writing: bool = False) -> C:
        """Return a connection. The caller must give it back.

        Raises ``StoreUnavailable`` if there is none within the bound, and at once if the database is known to be away.
        Raises ``CallerGone`` if the caller has gone.
        """
        with self._changed:
            self._waiting += 1
            try:
                while (connection := self._ready(writing)) is None:
                    self._want(max(self._warm, self._lent + self._waiting))
                    if self._failure is not None and not self._lent:
                        raise StoreUnavailable from self._failure
                    bound.check()
                    self._changed.wait(bound.glance())
            finally:
                self._waiting -= 1
            self._lent += 1
            self._readers += not writing
        return connection

    def give_back(self, connection: C, writing: bool = False) -> None:
        """Take back a connection. A closed one is replaced."""
        with self._changed:
            self._lent -= 1
            self._readers -= not writing
            if not connection.closed:
                self._failure = None
                if len(self._idle) + self._lent < self._wanted:
                    self._idle.append(connection)
                else:
                    connection.close()  # the pool was closed in the meantime
            self._fill()
            self._changed.notify_all()

    def distrust(self, failure: Exception) -> None:
        """Drop idle connections and refuse at once until a new connection succeeds: the database does not answer."""
        with self._changed:
            self._failure = failure
            self._drop_idle()
            self._fill()

    def close(self) -> None:
        """Close all connections. No call may be in progress."""
        with self._changed:
            self._wanted = 0
            self._drop_idle()

    def _ready(self, writing: bool) -> C | None:
        if not writing and self._readers >= self._most - 1:
            return None
        while self._idle:
            connection = self._idle.pop()  # the most recently used one
            if not _has_ended(connection):
                return connection
            connection.close()
        return None

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _want(self, number: int) -> None:
        self._wanted = max(self._wanted, min(number, self._most))
        self._fill()

    def _fill(self) -> None:
        missing = self._wanted - len(self._idle) - self._lent - self._openers
        # While the database is away, one thread is enough to notice that it is back.
        most = 1 if self._failure is not None else _OPENERS
        for _ in range(min(missing, most - self._openers)):
            threading.Thread(target=self._open, name="connecting", daemon=True).start()
            self._openers += 1  # we hold the lock, so the thread has not decremented this yet

    def _open(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                connection = self._connect()
            except Exception as failure:  # any: without this thread there would be no further attempt
                with self._changed:
                    self._failure = failure
                    self._changed.notify_all()
                    if self._openers > 1 or not self._wanted:
                        self._openers -= 1
                        return
                self._never.wait(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)
                continue
            with self._changed:
                self._openers -= 1
                self._failure = None
                if len(self._idle) + self._lent < self._wanted:
                    self._idle.insert(0, connection)
                else:
                    connection.close()
                self._fill()
                self._changed.notify_all()
            return


def _has_ended(connection: PooledConnection) -> bool:
    """Return whether an idle connection has something to read, which usually means that it has ended."""
    ready = select.poll()
    ready.register(connection.fileno(), select.POLLIN)
    return bool(ready.poll(0))

"""Following the log: reads what has changed since the last look and invalidates the cache.

A position in the log is useful only with the time at which it was the newest. That time is taken *before* the query is
sent to the database, since the answer then includes every change that had returned by then.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from tumbler_server import clock
from tumbler_server.clock import SECOND, Clock
from tumbler_server.defaults import MAX_STALENESS
from tumbler_server.errors import Cause, StoreUnavailable
from tumbler_server.events import log
from tumbler_server.events.lineage import Lineage
from tumbler_server.events.log import ANNOUNCEMENTS, Head
from tumbler_server.events.ring import Ring
from tumbler_server.freshness.board import Board
from tumbler_server.store.database import Store
from tumbler_server.trouble import Trouble

_MOST = 10_000
"""Most events to read at once. If further behind, dropping the whole cache is cheaper than reading the changes."""

_PAUSE = SECOND // 2
"""While the database does not answer, only one call in this interval tries it. The others fail at once."""


class Cache(Protocol):
    """A cache that a tail invalidates. Calls come one at a time, in log order."""

    def forget(self, key_ids: Iterable[str]) -> None:
        """Drop what is cached of these keys."""

    def forget_all(self) -> None:
        """Drop what is cached of all keys."""


class Tail:
    """A process's position in the log, and how long ago it was the newest. Safe for use by many threads."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        max_staleness: int = MAX_STALENESS,
        board: Board | None = None,
        monotonic: Clock = clock.monotonic,
    ) -> None:
        self._store = store
        self._cache = cache
        self._max_staleness = max_staleness
        self._board = board or Board()
        self._monotonic = monotonic
        self._moved: Callable[[], None] = lambda: None
        self._lock = threading.Lock()  # never held while the database is read
        # Held while SQLite is read. Every thread sees each commit. The first to take the lock reads it for all of them.
        self._reading = threading.Lock()
        self._thread = threading.local()
        self._confirmed = monotonic()
        self._blocked_until = 0
        self._failure = StoreUnavailable()  # raised while blocked
        self._stale = Trouble("keys are verified from memory, as --stale-if-error allows", monotonic)
        self._commits_show = store.version() is not None
        self._head = log.head(store)
        self.lineage = Lineage(store)
        self.lineage.note([self._head])
        self.ring = Ring(self._head.revision)
        self.resets = 0
        """How often everything was dropped. A stream that was open during a reset has missed events."""
        cache.forget_all()

    @property
    def position(self) -> int:
        """The revision reached so far."""
        return self._head.revision

    @property
    def age(self) -> int:
        """How many microseconds ago the position was known to be the newest."""
        return self._monotonic() - self._confirmed

    def on_move(self, moved: Callable[[], None]) -> None:
        """Set the callback for changes of the position. It must return at once."""
        self._moved = moved

    @property
    def commits_show(self) -> bool:
        """Whether a thread can detect any commit, by any process, without reading the log (SQLite)."""
        return self._commits_show

    def version(self) -> object:
        """Return a value that changes, for this thread, with each commit by anyone; only if ``commits_show``.

        Raises ``StoreUnavailable``.
        """
        return self._store.version()

    def known(self, at_least: int = 0, fully_consistent: bool = False) -> int | None:
        """Return the position if an answer may rest on it, or None if the log must be read.

        For databases where commits do not show. The position must have been the newest within ``max_staleness``,
        include all that this server has committed, and reach ``at_least``. With ``fully_consistent``, the log must
        always be read.
        """
        position = self._head.revision
        if (
            not fully_consistent
            and position >= at_least
            and position >= self._board.newest()
            and not self._store.lost
            and self.age <= self._max_staleness
        ):
            return position
        return None

    def look(self, at_least: int = 0, fully_consistent: bool = False) -> int:
        """Return a position that an answer may rest on, after applying the events up to it.

        If commits show (SQLite), that is the newest position. Otherwise it is a ``known`` one. If there is none, the
        log is read. Raises ``StoreUnavailable`` if that fails.
        """
        position: int | None
        if self._commits_show:
            unchanged = self._store.version() == getattr(self._thread, "version", None)
            position = self._head.revision if unchanged else None
        else:
            position = self.known(at_least, fully_consistent)
        return self.confirm() if position is None else position

    def confirm(self) -> int:
        """Do what ``catch_up`` does, but raise ``StoreUnavailable`` at once while the database is known to be down."""
        if self._blocked_until and self._monotonic() < self._blocked_until:
            raise StoreUnavailable(self._failure.cause, self._failure.said)
        return self.catch_up()

    def last_resort(self, stale_if_error: int) -> int | None:
        """Return the position if it was the newest within ``max_staleness`` plus ``stale_if_error``, or None.

        Also return None if the database was replaced, or if this server has committed a newer revision.
        """
        if self._store.lost or self._board.newest() > self.position or self.age > self._max_staleness + stale_if_error:
            return None
        self._stale.met(seconds=self.age // SECOND)
        return self.position

    def committed(self, revision: int, appended: Iterable[tuple[int, bytes]] = ()) -> None:
        """Apply a change that this process has just committed, before the change is acknowledged.

        ``appended`` has the revisions and hashes of its events.

        After this call, every worker of this server sees the change or answers UNAVAILABLE.
        """
        self.lineage.note(appended)
        self._board.post(revision)  # even if this process has already read it: other workers may not have
        if revision > self.position:
            with contextlib.suppress(StoreUnavailable):  # the board keeps all workers from answering from less
                self.catch_up()

    def catch_up(self) -> int:
        """Apply every change committed before this call, and return the revision reached.

        Raises ``StoreUnavailable`` if the database does not answer. No key may be accepted then.
        """
        began = self._monotonic()
        if self._blocked_until:  # one caller at a time checks whether the database is back
            self._blocked_until = began + _PAUSE
        try:
            version = self._store.version()
            if version is None:
                self._read_all()
            elif version != getattr(self._thread, "version", None):
                seen = self._monotonic()
                with self._reading:
                    if self._confirmed <= seen:
                        began = self._monotonic()
                        self._read_all()
                        self._confirmed = began
                self._thread.version = version
        except StoreUnavailable as failure:
            self._blocked_until = self._monotonic() + _PAUSE
            self._failure = StoreUnavailable(failure.cause, failure.said)
            raise
        self._blocked_until = 0
        self._confirmed = max(self._confirmed, began)
        self._stale.passed()
        return self.position

    def _read_head(self) -> Head:
        try:
            return log.head(self._store)
        except ValueError:
            raise self._lost("its log has no head") from None

    def _lost(self, why: str) -> StoreUnavailable:
        """Give up the store and return the error to raise. Nothing that rests on the old history may be served."""
        self._store.give_up(f"the database was replaced, or restored from a backup, while it was served: {why}")
        return StoreUnavailable(Cause.REPLACED, self._store.lost)

    def _read_all(self) -> None:
        while not self._read():
            pass

    def _read(self) -> bool:
        """Read and apply new events. Return False if other threads moved the position and the read must be retried."""
        # Read our position before the head. In the other order, progress by another thread would look as if the head
        # had gone back.
        resets, place = self.resets, self._head
        head = self._read_head()
        if head == place:
            return True
        events = log.events_after(self._store, place.revision, _MOST) if head.revision > place.revision else []
        follows = bool(events) and log.follows(place.hash, events[0])
        continues = follows and events[-1].revision >= head.revision
        next_one = bool(events) and events[0].revision == place.revision + 1
        if head.revision <= place.revision or (next_one and not follows):
            raise self._lost(f"its log is at event {head.revision}, which does not follow event {place.revision}")
        with self._lock:
            if self.resets != resets or not (continues or self._head == place):
                return False
            if continues:
                news = [event for event in events if event.revision > self._head.revision]
                if news:
                    self._cache.forget({event.key_id for event in news if event.type not in ANNOUNCEMENTS})
                    self.lineage.note((event.revision, event.hash) for event in news)
                    self.ring.extend(news)
                    self._head = Head(news[-1].revision, news[-1].hash)
            else:
                # Too far behind.
                self._cache.forget_all()
                self.lineage.note([head])
                self.ring.restart(head.revision)
                self.resets += 1
                self._head = head
        self._moved()
        return True

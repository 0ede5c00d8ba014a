"""Open streams and their keys: which key to verify again and when, and which streams end. No I/O.

A key is verified again when nothing confirms it any more: after an event that names it, a reset, lapsed freshness of
the stream of changes, an answer that denied it, and when its record's ``cache_ttl`` ends. That is never after the key's
expiry or the end of its grace period.
"""

import heapq
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable

from tumbler._cache import NEVER, Cache, Clock, peek_id
from tumbler._logging import log
from tumbler._settings import SECOND, Settings
from tumbler.decide import Demand
from tumbler.errors import Unavailable
from tumbler.verification import Verification

MAX_CHECKS = 256
"""Maximum number of keys being verified again at a time."""

RETRY_DELAY = SECOND
"""How long to wait before a key that could not be verified is retried."""

_MIN_TRUST = SECOND
"""Minimum time that an answer counts. The last answers before an expiry live for microseconds, and others not at all
(``cache_ttl`` 0)."""

_SPREAD = SECOND // 1_000
"""Interval from one key to the next when all must be verified: 1,000 a second."""

MAX_TIMER = 1.0
"""Maximum seconds between two looks at the clock: it may have jumped while the machine slept."""

Ended = Callable[[Verification | Exception], None]
"""Called when a stream must end: with the verdict that denies its key, or the error if there is no verdict."""

_IDLE, _QUEUED, _CHECKING = range(3)


class AdmittedKey:
    """A key, the demand, and the streams that it opened. The key's text stays in memory while one of them is open."""

    def __init__(self, ident: tuple[bytes, Demand], key: str, key_id: str) -> None:
        self.ident = ident
        self.key = key
        self.key_id = key_id
        self.sessions: set[Session] = set()
        self.state = _IDLE
        self.turn = 0
        """Number of the current verification. Answers to earlier ones do not count."""
        self.changed_meanwhile = False
        """Whether the stream delivered something while the verification was in flight."""
        self.due_at = NEVER
        self.unconfirmed_since: int | None = None
        """Since when nothing confirms the key."""

    @property
    def demand(self) -> Demand:
        """The demand with which the key was presented."""
        return self.ident[1]


class Session:
    """One open stream."""

    __slots__ = ("_sessions", "admitted", "ended")

    def __init__(self, sessions: "Sessions", admitted: AdmittedKey, ended: Ended) -> None:
        self._sessions = sessions
        self.admitted = admitted
        self.ended = ended

    def close(self) -> None:
        """Forget the stream: it has ended by itself. May be called again."""
        self._sessions.remove(self)


class Sessions:
    """All open streams of one verifier. Thread-safe. Calls ``wake`` when there is work."""

    def __init__(self, settings: Settings, cache: Cache, clock: Clock) -> None:
        self._cache = cache
        self._clock = clock
        self._max_unconfirmed = int(settings.max_staleness * SECOND)
        self._log = settings.logger
        self._keys: dict[tuple[bytes, Demand], AdmittedKey] = {}
        self._by_id: dict[str, set[AdmittedKey]] = {}
        self._timers: list[tuple[int, int, AdmittedKey]] = []
        self._numbers = itertools.count()
        self._queue: deque[AdmittedKey] = deque()
        self._checking = 0
        self._lapsed = True
        self._closed: Exception | None = None
        self._lock = threading.Lock()
        self.change_count = 0
        """Counts changes to keys. A difference from before a verification shows that one came in between."""
        self.wake: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return sum(len(admitted.sessions) for admitted in list(self._keys.values()))

    def open(self, key: str, demand: Demand, verification: Verification, since: int, ended: Ended) -> Session:
        """Register a stream that this verdict let in. ``since`` is ``change_count`` from before the verification.

        ``ended`` is called once, perhaps by another thread, if the key stops being valid before the session is closed.
        """
        now, ident = self._clock(), (self._cache.digest(key), demand)
        with self._lock:
            admitted = self._keys.get(ident)
            if admitted is None:
                admitted = self._keys[ident] = AdmittedKey(ident, key, peek_id(key))
                self._by_id.setdefault(admitted.key_id, set()).add(admitted)
                self._schedule_recheck(admitted, verification.until, now)
            session = Session(self, admitted, ended)
            admitted.sessions.add(session)
            if since != self.change_count:
                self._recheck(admitted, now)
            closed = self._closed
            if closed is not None:
                self._remove(admitted)
        if closed is not None:
            ended(closed)
            return session
        try:
            self.wake()
        except BaseException:  # nothing would verify the key again, so the stream must not begin
            session.close()
            raise
        return session

    def remove(self, session: Session) -> None:
        """Remove a stream that has ended by itself."""
        with self._lock:
            session.admitted.sessions.discard(session)
            if not session.admitted.sessions:
                self._remove(session.admitted)

    def changed(self, key_id: str | None) -> None:
        """Note that a key has changed. None: any key may have changed."""
        with self._lock:
            self.change_count += 1
            now = self._clock()
            if key_id is None:
                self._recheck_all(now)
            else:
                for admitted in self._by_id.get(key_id, ()):
                    self._recheck(admitted, now)
            work = bool(self._keys) and (key_id is None or key_id in self._by_id)
        if work:
            self.wake()

    def due(self) -> list[AdmittedKey]:
        """Return the keys to verify now. The caller must return each with `settle` and its ``turn``."""
        ready: list[AdmittedKey] = []
        over: list[Session] = []
        with self._lock:
            now = self._clock()
            self._watch_freshness(now)
            while self._timers and self._timers[0][0] <= now:
                at, _, admitted = heapq.heappop(self._timers)
                if admitted.state == _IDLE and admitted.due_at == at and admitted.sessions:
                    self._recheck(admitted, now)
            while self._queue and len(ready) + self._checking < MAX_CHECKS:
                admitted = self._queue.popleft()
                if not admitted.sessions:
                    continue
                if admitted.unconfirmed_since is not None and now - admitted.unconfirmed_since > self._max_unconfirmed:
                    over += self._remove(admitted)
                    continue
                admitted.state, admitted.changed_meanwhile = _CHECKING, False
                admitted.turn += 1
                ready.append(admitted)
            self._checking += len(ready)
        self._end(over, Unavailable("the key of an open stream could not be verified again in time"))
        return ready

    def settle(self, admitted: AdmittedKey, turn: int, outcome: Verification | Exception | None) -> None:
        """Handle the outcome of a verification. None: there is none, and the key must be verified again."""
        over: list[Session] = []
        with self._lock:
            if admitted.turn != turn or admitted.state != _CHECKING:
                return
            admitted.state = _IDLE
            self._checking -= 1
            if not admitted.sessions:
                return
            now = self._clock()
            if isinstance(outcome, Exception):
                if now - (admitted.unconfirmed_since or now) >= self._max_unconfirmed:
                    over = self._remove(admitted)
                else:
                    self._set_timer(admitted, now + RETRY_DELAY)
            elif outcome is not None and not outcome:
                over = self._remove(admitted)
            elif outcome is None or admitted.changed_meanwhile:
                self._recheck(admitted, now)
            else:
                admitted.unconfirmed_since = None
                self._schedule_recheck(admitted, outcome.until, now)
        if over and outcome is not None:
            self._end(over, outcome)
        self.wake()

    def pause(self) -> float | None:
        """Return the seconds after which to call ``due``, unless woken before. None: no stream is open."""
        with self._lock:
            if not self._keys:
                return None
            following = self._timers[0][0] if self._timers else NEVER
            if not self._lapsed:
                following = min(following, self._cache.fresh_until)
            return min(MAX_TIMER, max(0.0, (following - self._clock()) / SECOND))

    def close(self, error: Exception) -> None:
        """End all streams, and every stream that is opened later."""
        with self._lock:
            self._closed = error
            over = [session for admitted in list(self._keys.values()) for session in self._remove(admitted)]
        self._end(over, error)

    def abandon(self, error: Exception) -> None:
        """Forget all streams, in a forked process: they belong to the parent."""
        self._lock = threading.Lock()
        self._closed = error
        self._keys, self._by_id, self._timers = {}, {}, []
        self._queue.clear()
        self.wake = lambda: None

    def _watch_freshness(self, now: int) -> None:
        fresh = now < self._cache.fresh_until
        if self._lapsed != fresh:
            return
        self._lapsed = not fresh
        if self._lapsed:
            self._recheck_all(now)

    def _recheck_all(self, now: int) -> None:
        for place, admitted in enumerate(self._keys.values()):
            self._recheck(admitted, now, min(place * _SPREAD, self._max_unconfirmed // 2))

    def _recheck(self, admitted: AdmittedKey, now: int, delay: int = 0) -> None:
        if admitted.unconfirmed_since is None:
            admitted.unconfirmed_since = now
        if admitted.state == _CHECKING:
            admitted.changed_meanwhile = True
        elif admitted.state == _IDLE and delay:
            self._set_timer(admitted, min(admitted.due_at, now + delay))
        elif admitted.state == _IDLE:
            admitted.state = _QUEUED
            self._queue.append(admitted)

    def _schedule_recheck(self, admitted: AdmittedKey, until: int, now: int) -> None:
        """Schedule the next check of a valid key: when its answer expires, or sooner if freshness has lapsed."""
        if now >= self._cache.fresh_until:
            until = min(until, now + self._max_unconfirmed)
        self._set_timer(admitted, max(until, now + _MIN_TRUST))

    def _set_timer(self, admitted: AdmittedKey, instant: int) -> None:
        admitted.due_at = instant
        heapq.heappush(self._timers, (instant, next(self._numbers), admitted))
        if len(self._timers) > 2 * len(self._keys) + 64:
            # Streams open and close faster than their timers fire, so remove outdated timers.
            alive = [timer for timer in self._timers if timer[2].sessions and timer[2].due_at == timer[0]]
            heapq.heapify(alive)
            self._timers = alive

    def _remove(self, admitted: AdmittedKey) -> list[Session]:
        over = list(admitted.sessions)
        admitted.sessions.clear()
        admitted.key = ""  # not later: its timer may run for another minute
        if self._keys.get(admitted.ident) is admitted:
            del self._keys[admitted.ident]
            alike = self._by_id[admitted.key_id]
            alike.discard(admitted)
            if not alike:
                del self._by_id[admitted.key_id]
        return over

    def _end(self, over: list[Session], outcome: Verification | Exception) -> None:
        failures: list[Exception] = []
        for session in over:
            try:
                session.ended(outcome)
            except Exception as error:
                failures.append(error)
        for failure in failures:
            text = "a stream whose key is no longer valid could not be ended"
            log(self._log, logging.ERROR, text, error=failure)

"""Open streams and their keys: which key to verify again and when, and which streams end. No I/O.

A key is verified again when nothing confirms it any more: after an event that names it, a reset, lapsed freshness of
the stream of changes, an answer that denied it, and when its record's ``cache_ttl`` ends. That is never after the key's
expiry or the end of its grace period.
"""

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable

from tumbler._memory import NEVER, Clock, Memory, id_in
from tumbler._settings import SECOND, Settings
from tumbler.decide import Demand
from tumbler.errors import Unavailable
from tumbler.verification import Verification

MOST_ASKED = 256
"""Maximum number of keys being verified again at a time."""

RETRY = SECOND
"""How long to wait before a key that could not be verified is retried."""

_SHORTEST = SECOND // 10
"""Minimum time that an answer counts. The last answers before an expiry live for microseconds."""

_SPREAD = SECOND // 1_000
"""Interval from one key to the next when all must be verified: 1,000 a second."""

LOOK = 1.0
"""Maximum seconds between two looks at the clock: it may have jumped while the machine slept."""

Ended = Callable[[Verification | Exception], None]
"""Called when a stream must end: with the verdict that denies its key, or the error if there is no verdict."""

_IDLE, _QUEUED, _ASKED = range(3)


class Held:
    """A key, the demand, and the streams that it opened. The key's text stays in memory while one of them is open."""

    def __init__(self, ident: tuple[bytes, Demand], key: str, key_id: str) -> None:
        self.ident = ident
        self.key = key
        self.key_id = key_id
        self.sessions: set[Session] = set()
        self.state = _IDLE
        self.turn = 0
        """Number of the current verification. Answers to earlier ones do not count."""
        self.again = False
        """Whether the stream delivered something while the verification was in flight."""
        self.check_at = NEVER
        self.doubted: int | None = None
        """Since when nothing confirms the key."""

    @property
    def demand(self) -> Demand:
        """The demand with which the key was presented."""
        return self.ident[1]


class Session:
    """One open stream."""

    __slots__ = ("_all", "ended", "held")

    def __init__(self, all_of_them: "Sessions", held: Held, ended: Ended) -> None:
        self._all = all_of_them
        self.held = held
        self.ended = ended

    def close(self) -> None:
        """Forget the stream: it has ended by itself. May be called again."""
        self._all.forget(self)


class Sessions:
    """All open streams of one verifier. Thread-safe. Calls ``wake`` when there is work."""

    def __init__(self, settings: Settings, memory: Memory, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock
        self._patience = int(settings.max_staleness * SECOND)
        self._log = settings.logger
        self._held: dict[tuple[bytes, Demand], Held] = {}
        self._by_id: dict[str, set[Held]] = {}
        self._timers: list[tuple[int, int, Held]] = []
        self._numbers = itertools.count()
        self._queue: deque[Held] = deque()
        self._asked = 0
        self._lapsed = True
        self._closed: Exception | None = None
        self._lock = threading.Lock()
        self.words = 0
        """Counts changes to keys. A difference from before a verification shows that one came in between."""
        self.wake: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return sum(len(held.sessions) for held in list(self._held.values()))

    def open(self, key: str, demand: Demand, told: Verification, since: int, ended: Ended) -> Session:
        """Register a stream that this verdict let in. ``since`` is ``words`` from before the verification.

        ``ended`` is called once, perhaps by another thread, if the key stops being valid before the session is closed.
        """
        now, ident = self._clock(), (self._memory.tag(key), demand)
        with self._lock:
            held = self._held.get(ident)
            if held is None:
                held = self._held[ident] = Held(ident, key, id_in(key))
                self._by_id.setdefault(held.key_id, set()).add(held)
                self._rest(held, told.until, now)
            session = Session(self, held, ended)
            held.sessions.add(session)
            if since != self.words:
                self._doubt(held, now)
            closed = self._closed
            if closed is not None:
                self._drop(held)
        if closed is not None:
            ended(closed)
        else:
            self.wake()
        return session

    def forget(self, session: Session) -> None:
        """Remove a stream that has ended by itself."""
        with self._lock:
            session.held.sessions.discard(session)
            if not session.held.sessions:
                self._drop(session.held)

    def heard(self, key_id: str | None) -> None:
        """Note that a key has changed. None: any key may have changed."""
        with self._lock:
            self.words += 1
            now = self._clock()
            if key_id is None:
                self._doubt_all(now)
            else:
                for held in self._by_id.get(key_id, ()):
                    self._doubt(held, now)
            work = bool(self._held) and (key_id is None or key_id in self._by_id)
        if work:
            self.wake()

    def due(self) -> list[Held]:
        """Return the keys to verify now. The caller must return each with `settle` and its ``turn``."""
        ready: list[Held] = []
        over: list[Session] = []
        with self._lock:
            now = self._clock()
            self._watch_trust(now)
            while self._timers and self._timers[0][0] <= now:
                at, _, held = heapq.heappop(self._timers)
                if held.state == _IDLE and held.check_at == at and held.sessions:
                    self._doubt(held, now)
            while self._queue and len(ready) + self._asked < MOST_ASKED:
                held = self._queue.popleft()
                if not held.sessions:
                    continue
                if held.doubted is not None and now - held.doubted > self._patience:
                    over += self._drop(held)
                    continue
                held.state, held.again = _ASKED, False
                held.turn += 1
                ready.append(held)
            self._asked += len(ready)
        self._end(over, Unavailable("the key of an open stream could not be verified again in time"))
        return ready

    def settle(self, held: Held, turn: int, outcome: Verification | Exception | None) -> None:
        """Handle the outcome of a verification. None: there is none, and the key must be verified again."""
        over: list[Session] = []
        with self._lock:
            if held.turn != turn or held.state != _ASKED:
                return
            held.state = _IDLE
            self._asked -= 1
            if not held.sessions:
                return
            now = self._clock()
            if isinstance(outcome, Exception):
                if now - (held.doubted or now) >= self._patience:
                    over = self._drop(held)
                else:
                    self._at(held, now + RETRY)
            elif outcome is not None and not outcome:
                over = self._drop(held)
            elif outcome is None or held.again:
                self._doubt(held, now)
            else:
                held.doubted = None
                self._rest(held, outcome.until, now)
        if over and outcome is not None:
            self._end(over, outcome)
        self.wake()

    def pause(self) -> float | None:
        """Return the seconds after which to call ``due``, unless woken before. None: no stream is open."""
        with self._lock:
            if not self._held:
                return None
            following = self._timers[0][0] if self._timers else NEVER
            if not self._lapsed:
                following = min(following, self._memory.fresh_until)
            return min(LOOK, max(0.0, (following - self._clock()) / SECOND))

    def close(self, error: Exception) -> None:
        """End all streams, and every stream that is opened later."""
        with self._lock:
            self._closed = error
            over = [session for held in list(self._held.values()) for session in self._drop(held)]
        self._end(over, error)

    def abandon(self, error: Exception) -> None:
        """Forget all streams, in a forked process: they belong to the parent."""
        self._lock = threading.Lock()
        self._closed = error
        self._held, self._by_id, self._timers = {}, {}, []
        self._queue.clear()
        self.wake = lambda: None

    def _watch_trust(self, now: int) -> None:
        fresh = now < self._memory.fresh_until
        if self._lapsed != fresh:
            return
        self._lapsed = not fresh
        if self._lapsed:
            self._doubt_all(now)

    def _doubt_all(self, now: int) -> None:
        for place, held in enumerate(self._held.values()):
            self._doubt(held, now, min(place * _SPREAD, self._patience // 2))

    def _doubt(self, held: Held, now: int, delay: int = 0) -> None:
        if held.doubted is None:
            held.doubted = now
        if held.state == _ASKED:
            held.again = True
        elif held.state == _IDLE and delay:
            self._at(held, min(held.check_at, now + delay))
        elif held.state == _IDLE:
            held.state = _QUEUED
            self._queue.append(held)

    def _rest(self, held: Held, until: int, now: int) -> None:
        """Schedule the next check of a valid key: when its answer expires, or sooner if freshness has lapsed."""
        if now >= self._memory.fresh_until:
            until = min(until, now + self._patience)
        self._at(held, max(until, now + _SHORTEST))

    def _at(self, held: Held, instant: int) -> None:
        held.check_at = instant
        heapq.heappush(self._timers, (instant, next(self._numbers), held))
        if len(self._timers) > 2 * len(self._held) + 64:
            # Streams open and close faster than their timers fire, so remove outdated timers.
            alive = [timer for timer in self._timers if timer[2].sessions and timer[2].check_at == timer[0]]
            heapq.heapify(alive)
            self._timers = alive

    def _drop(self, held: Held) -> list[Session]:
        over = list(held.sessions)
        held.sessions.clear()
        held.key = ""  # not later: its timer may run for another minute
        if self._held.get(held.ident) is held:
            del self._held[held.ident]
            alike = self._by_id[held.key_id]
            alike.discard(held)
            if not alike:
                del self._by_id[held.key_id]
        return over

    def _end(self, over: list[Session], outcome: Verification | Exception) -> None:
        for session in over:
            try:
                session.ended(outcome)
            except Exception:
                self._log.exception("a stream whose key is no longer valid could not be ended")

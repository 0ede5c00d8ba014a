"""Open streams and the keys that they were let in by: which key to verify anew when, and which streams end. No I/O.

A key is verified anew when nothing vouches for it any more: after an event that names it, a reset, a loss of trust in
the stream of changes, an answer that denied it, and at the end of its record's ``cache_ttl``, which is never past its
expiry or the end of its grace.
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
"""How many keys are verified anew at a time."""

RETRY = SECOND
"""How long to wait before a key that could not be verified is asked about again."""

_SHORTEST = SECOND // 10
"""How long an answer counts at least: the last ones before an expiry live for microseconds."""

_SPREAD = SECOND // 1_000
"""From one key to the next, where all have to be verified: 1,000 a second."""

LOOK = 1.0
"""Seconds after which to look at the clock again at the latest: it may have jumped, after the machine has slept."""

Ended = Callable[[Verification | Exception], None]
"""What a stream is ended by: the verdict that denies its key, or the error for which none could be had."""

_IDLE, _QUEUED, _ASKED = range(3)


class Held:
    """A key, what it was presented for, and the streams that it let in. Its text is kept for as long as one is open."""

    def __init__(self, ident: tuple[bytes, Demand], key: str, key_id: str) -> None:
        self.ident = ident
        self.key = key
        self.key_id = key_id
        self.sessions: set[Session] = set()
        self.state = _IDLE
        self.turn = 0
        """Which asking this is: an answer to an earlier one does not count."""
        self.again = False
        """Whether something was told while it was asked about."""
        self.check_at = NEVER
        self.doubted: int | None = None
        """Since when it is not vouched for."""

    @property
    def demand(self) -> Demand:
        """What it was presented for."""
        return self.ident[1]


class Session:
    """One open stream."""

    __slots__ = ("_all", "ended", "held")

    def __init__(self, all_of_them: "Sessions", held: Held, ended: Ended) -> None:
        self._all = all_of_them
        self.held = held
        self.ended = ended

    def close(self) -> None:
        """Forget it: it has ended by itself. May be called again."""
        self._all.forget(self)


class Sessions:
    """All open streams of one verifier. Safe for use by many threads; ``wake`` is called where there is work."""

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
        """How often anything was told. Noted before a key is verified, it shows what came in between."""
        self.wake: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return sum(len(held.sessions) for held in list(self._held.values()))

    def open(self, key: str, demand: Demand, told: Verification, since: int, ended: Ended) -> Session:
        """Note a stream that was let in by this verdict, asked for when ``words`` was ``since``.

        ``ended`` is called once, by another thread maybe, if the key stops being valid before the session is closed.
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
        """Note that a stream has ended by itself."""
        with self._lock:
            session.held.sessions.discard(session)
            if not session.held.sessions:
                self._drop(session.held)

    def heard(self, key_id: str | None) -> None:
        """Note that a key has changed; None: that any may have."""
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
        """Return the keys to verify now; each must come back by ``settle``, with its ``turn``."""
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
        """Take what came of asking; None: nothing, and it has to be asked again."""
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
        """Return the seconds after which to ask for what is ``due``, unless woken before; None: no stream is open."""
        with self._lock:
            if not self._held:
                return None
            following = self._timers[0][0] if self._timers else NEVER
            if not self._lapsed:
                following = min(following, self._memory.fresh_until)
            return min(LOOK, max(0.0, (following - self._clock()) / SECOND))

    def close(self, error: Exception) -> None:
        """End all streams, and each that is opened later."""
        with self._lock:
            self._closed = error
            over = [session for held in list(self._held.values()) for session in self._drop(held)]
        self._end(over, error)

    def abandon(self, error: Exception) -> None:
        """Forget all streams, in a process that was forked: they are not this one's."""
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
        """Let a key be that was found valid: for as long as the answer counts, and is vouched for."""
        if now >= self._memory.fresh_until:
            until = min(until, now + self._patience)
        self._at(held, max(until, now + _SHORTEST))

    def _at(self, held: Held, instant: int) -> None:
        held.check_at = instant
        heapq.heappush(self._timers, (instant, next(self._numbers), held))
        if len(self._timers) > 2 * len(self._held) + 64:
            # Streams come and go faster than their timers.
            alive = [timer for timer in self._timers if timer[2].sessions and timer[2].check_at == timer[0]]
            heapq.heapify(alive)
            self._timers = alive

    def _drop(self, held: Held) -> list[Session]:
        over = list(held.sessions)
        held.sessions.clear()
        held.key = ""  # its timer may have a minute to go
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

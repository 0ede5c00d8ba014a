"""A few threads that hand notices over. Each that waits for a listener who does not read has its place taken."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from tumbler_server import clock
from tumbler_server.clock import SECOND, Clock

FEWEST = 4
"""Threads that are free of slow listeners, always."""

MOST_STUCK = 64
"""Threads that may wait for slow listeners at the same time."""

STUCK = SECOND // 10
"""From here on a thread counts as waiting; whoever reads takes a notice in a fraction of a millisecond."""

_JOIN = 2.0


class Served(Protocol):
    """What is served. ``since`` is when handing something over to it began; 0: nothing is being handed over."""

    since: int


S = TypeVar("S", bound=Served)


class Senders(Generic[S]):
    """Calls ``serve`` with each that was put, in order. One may be served by several threads only if put again."""

    def __init__(self, serve: Callable[[S], None], uptime: Clock = clock.uptime) -> None:
        self._serve = serve
        self._uptime = uptime
        self._ready: queue.SimpleQueue[S | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, S | None] = {}
        self._wanted = FEWEST
        self._closed = False

    def start(self) -> None:
        """Begin to serve."""
        self._hire()

    def put(self, one: S) -> None:
        """Have somebody served."""
        self._ready.put(one)

    def stuck(self) -> list[tuple[int, S]]:
        """Return who takes too long, and for how many microseconds, the longest first; see that others are served.

        To be called often: that is how places are taken.
        """
        now = self._uptime()
        served = [(one.since, one) for one in list(self._threads.values()) if one is not None]
        found = [(now - since, one) for since, one in served if since and now - since >= STUCK]
        found.sort(key=lambda each: -each[0])
        # Where many do not read, the free threads meet them one after the other: so they become more for a while.
        spare = FEWEST if self._ready.empty() else max(FEWEST, len(found))
        self._wanted = len(found) + min(spare, MOST_STUCK)
        self._hire()
        return found

    def close(self) -> None:
        """End, after what is being handed over."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._ready.put(None)
        for thread in threads:
            thread.join(_JOIN)  # one that waits for the database is left behind

    def _hire(self) -> None:
        with self._lock:
            while len(self._threads) < self._wanted and not self._closed:
                thread = threading.Thread(target=self._run, name="watch-sender", daemon=True)
                self._threads[thread] = None
                thread.start()

    def _run(self) -> None:
        thread = threading.current_thread()
        while (one := self._ready.get()) is not None:
            self._threads[thread] = one
            self._serve(one)
            self._threads[thread] = one = None  # an idle thread holds on to nobody
            if len(self._threads) > self._wanted and self._superfluous(thread):
                return

    def _superfluous(self, thread: threading.Thread) -> bool:
        with self._lock:
            if len(self._threads) <= self._wanted or self._closed:
                return False
            del self._threads[thread]
            return True

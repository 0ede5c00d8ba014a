"""Fair turns for writers: among the threads of a process and, on SQLite, among processes.

Waiting threads come from a bounded pool, so a queue is never longer than that pool. No thread waits past the bound of
its call.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from tumbler_server.store.bound import Bound


class Turns:
    """A queue of threads that write one at a time: first come, first served, with urgent ones before all others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._urgent: deque[threading.Lock] = deque()
        self._others: deque[threading.Lock] = deque()

    @contextlib.contextmanager
    def turn(self, bound: Bound, urgent: bool = False) -> Iterator[None]:
        """Hold the turn for as long as the context lasts.

        Raises ``StoreUnavailable`` if the turn does not come within the bound, and ``CallerGone`` if the caller has
        gone.
        """
        self._take(bound, self._urgent if urgent else self._others)
        try:
            bound.check()
            yield
        finally:
            self._pass_on()

    def _take(self, bound: Bound, queue: deque[threading.Lock]) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            called = threading.Lock()  # released by the thread that passes the turn to us
            called.acquire()
            queue.append(called)
        try:
            while not called.acquire(timeout=bound.glance()):
                bound.check()
        except BaseException:
            with self._lock:
                waiting = called in queue
                if waiting:
                    queue.remove(called)
            if not waiting:
                self._pass_on()  # the turn came just as we left
            raise

    def _pass_on(self) -> None:
        with self._lock:
            for queue in (self._urgent, self._others):
                if queue:
                    queue.popleft().release()
                    return
            self._taken = False


class Gate:
    """A lock that makes the writers of several processes take turns at one SQLite file.

    SQLite's own lock excludes other writers, but it goes to whichever process asks at the right moment. A process that
    writes again and again leaves it free for microseconds, and another that asks every few milliseconds rarely hits
    them. So the next writer holds the gate, a lock on the database's folder, until it has SQLite's lock, and a writer
    that has just finished must pass the gate again. The gate is for fairness only: a writer that cannot get it, for
    example because its holder is stopped, goes on without it.

    In each process only the thread whose turn it is uses it.
    """

    PATIENCE = 0.5
    """Seconds to wait for the gate before going on without it."""

    _FIRST, _MOST = 0.001, 0.005

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1
        self.held = False

    def wait(self, bound: Bound) -> None:
        """Wait for the gate and hold it, or go on without it after ``PATIENCE`` or at the bound."""
        patience = time.monotonic() + self.PATIENCE
        pause = self._FIRST
        while not self.try_to_hold() and time.monotonic() < patience and not bound.over():
            time.sleep(pause)
            pause = min(self._MOST, pause + self._FIRST)

    def try_to_hold(self) -> bool:
        """Hold the gate if it is free. Return whether there is nothing to wait for."""
        if self.held:
            return True
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the folder cannot be locked
        self.held = True
        return True

    def leave(self) -> None:
        """Release the gate to the next writer."""
        if self.held:
            self.held = False
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the gate and close the folder."""
        self.leave()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

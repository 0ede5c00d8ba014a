"""Bcrypt, kept from taking over the machine: a small pool, a bounded queue, and one run for many who ask the same."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager

from tumbler_server import metrics
from tumbler_server.clock import SECOND
from tumbler_server.errors import Overloaded

Check = tuple[bytes, Callable[[], bool]]
"""What a presented key is remembered by, and how to find out whether it is right."""

MOST_A_CALL = 64
"""How many keys of one batch are checked; the others are for the next call."""


class BcryptPool:
    """Runs checks of secrets that no digest can prove.

    ``most_waiting`` callers may wait at a time. Each holds one of the threads that serve calls, so it must leave some
    for those who need no bcrypt.
    """

    def __init__(self, workers: int, most_waiting: int) -> None:
        self._workers = workers
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="bcrypt")
        self._seats = threading.BoundedSemaphore(most_waiting)
        self._flights: dict[bytes, Future[bool]] = {}
        self._lock = threading.RLock()  # a check that is done at once lands while it is being entered

    def check(self, checks: Sequence[Check]) -> Iterator[bool]:
        """Yield what each check returns; callers with the same key at the same time share one run.

        A call takes as many of the pool's threads as there are at the most, and then waits its turn again. Raises
        ``Overloaded`` where too many are waiting, and after ``MOST_A_CALL``.
        """
        if not checks:
            return
        with self._seat():
            for start in range(0, len(checks), self._workers):
                if start >= MOST_A_CALL:
                    raise Overloaded(retry_after=SECOND)
                flights = [self._fly(*check) for check in checks[start : start + self._workers]]
                try:
                    for flight in flights:
                        yield flight.result()
                except CancelledError:  # the server is stopping
                    raise Overloaded(retry_after=SECOND) from None

    def close(self) -> None:
        """Wait for the checks under way, and take no more."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _seat(self) -> Iterator[None]:
        if not self._seats.acquire(blocking=False):
            raise Overloaded(retry_after=SECOND)
        try:
            yield
        finally:
            self._seats.release()

    def _fly(self, tag: bytes, run: Callable[[], bool]) -> Future[bool]:
        with self._lock:
            flight = self._flights.get(tag)
            if flight is None:
                try:
                    flight = self._executor.submit(run)
                except RuntimeError:  # the server is stopping
                    raise Overloaded(retry_after=SECOND) from None
                metrics.BCRYPT_RUNS.inc()
                self._flights[tag] = flight
                flight.add_done_callback(lambda _: self._land(tag))
        return flight

    def _land(self, tag: bytes) -> None:
        with self._lock:
            self._flights.pop(tag, None)

"""Bcrypt, kept from taking over the machine: a small pool, a bounded queue, and one run for many who ask the same."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from tumbler_server.clock import SECOND
from tumbler_server.errors import Overloaded

QUEUE = 64
"""How many different checks may wait or run; one more is refused."""


class BcryptPool:
    """Runs checks of secrets that no digest can prove."""

    def __init__(self, workers: int) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="bcrypt")
        self._flights: dict[bytes, Future[bool]] = {}
        self._lock = threading.RLock()  # a check that is done at once lands while it is being entered

    def check(self, tag: bytes, run: Callable[[], bool]) -> bool:
        """Return what ``run`` returns; callers with the same ``tag`` at the same time share one run.

        Raises ``Overloaded`` where too many are waiting.
        """
        with self._lock:
            flight = self._flights.get(tag)
            if flight is None:
                if len(self._flights) >= QUEUE:
                    raise Overloaded(retry_after=SECOND)
                flight = self._flights[tag] = self._executor.submit(run)
                flight.add_done_callback(lambda _: self._land(tag))
        return flight.result()

    def close(self) -> None:
        """Wait for the checks under way, and take no more."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _land(self, tag: bytes) -> None:
        with self._lock:
            self._flights.pop(tag, None)

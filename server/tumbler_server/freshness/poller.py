"""Keeps a tail up to date between calls. Correctness rests on polling. PostgreSQL's NOTIFY only wakes it early."""

import random
import threading

from tumbler_server.clock import SECOND
from tumbler_server.errors import StoreUnavailable
from tumbler_server.freshness.tail import Tail
from tumbler_server.store.database import SQLITE, Listener, Store
from tumbler_server.trouble import Trouble

_SQLITE_INTERVAL = 0.05
"""Seconds between polls for commits of other processes. A poll takes a few microseconds and serves only the streams."""

_LONGEST_INTERVAL = 0.25
_LISTEN = 1.0
_BACKOFF = (0.1, 5.0)


class Poller:
    """The threads that keep a tail up to date. They poll several times within ``max_staleness`` (microseconds)."""

    def __init__(self, store: Store, tail: Tail, max_staleness: int) -> None:
        self._store = store
        self._tail = tail
        often = min(_LONGEST_INTERVAL, max_staleness / SECOND / 4)
        self._interval = _SQLITE_INTERVAL if store.dialect == SQLITE else often
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._listener: Listener | None = None
        self._threads = [threading.Thread(target=self._poll, name="poll", daemon=True)]
        if store.notifies:
            self._threads.append(threading.Thread(target=self._listen, name="listen", daemon=True))

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads."""
        self._stopping.set()
        self._wake.set()
        if listener := self._listener:
            listener.interrupt()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * _LISTEN)  # do not wait for a thread that is still connecting

    def _poll(self) -> None:
        pause = self._interval
        polling = Trouble("following the log fails")
        while not self._stopping.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            try:
                self._tail.catch_up()
                pause = self._interval
            except StoreUnavailable:
                pause = min(2 * pause, 1.0)
            except Exception as failure:
                # Any failure is safe here: no answer rests on an unconfirmed position. The next poll may succeed.
                polling.met(error=type(failure).__name__)
                pause = 1.0
            else:
                polling.passed()

    def _listen(self) -> None:
        pause = _BACKOFF[0]
        listening = Trouble("the connection that listens for changes fails; polling continues")
        while not self._stopping.is_set():
            listener = None
            try:
                self._listener = listener = self._store.listen()
                if listener is None:
                    return
                while not self._stopping.is_set():
                    self._wake.set()  # also after connecting: earlier notifications were missed
                    pause = _BACKOFF[0]
                    while not listener.wait(_LISTEN) and not self._stopping.is_set():
                        listening.passed()
            except StoreUnavailable as failure:
                listening.met(cause=failure.cause.name, reason=failure.said)
            finally:
                if listener:
                    listener.close()
            self._stopping.wait(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, no secret
            pause = min(2 * pause, _BACKOFF[1])

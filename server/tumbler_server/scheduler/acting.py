"""The thread that does scheduled work, in the one process that holds the lease."""

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from tumbler_server import calls, clock, logs
from tumbler_server.calls import Call
from tumbler_server.clock import SECOND, Clock
from tumbler_server.errors import CallerGone, StoreUnavailable
from tumbler_server.store.lease import Lease, LeaseLost
from tumbler_server.trouble import Trouble

_INTERVAL = SECOND // 4
"""How often to look for work. A look reads a few rows by index."""

_SHARE = 9
"""The pause after a turn, as a multiple of the time that the turn took, but at most the interval between looks.
So short turns use at most a tenth of the database and the processors."""

_LAST = 1.0
"""Seconds for releasing the lease at shutdown. If that fails, the lease expires by itself."""

_log = logs.get_logger(__name__)


class Duty(Protocol):
    """A kind of work that only one process does."""

    def work(self, lease: Lease) -> bool:
        """Do a bounded part of the work, and return whether there is more. Each write must check the lease.

        Raises ``LeaseLost`` and ``StoreUnavailable``.
        """


class Acting:
    """Keeps the lease, and runs the duties while it is held."""

    def __init__(
        self,
        lease: Lease,
        duties: Sequence[Duty],
        span: int,
        monotonic: Clock = clock.monotonic,
    ) -> None:
        self.lease = lease
        self._duties = duties
        self._interval = min(_INTERVAL, span // 10)
        self._monotonic = monotonic
        self._stopping = False
        self._call = Call()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="acting", daemon=True)

    def turn(self) -> bool:
        """Do a part of each duty if the lease is held, and return whether there is more to do at once.

        Raises ``StoreUnavailable``.
        """
        more = False
        for duty in self._duties:
            if not self.lease.keep():
                return False
            try:
                more = duty.work(self.lease) or more
            except LeaseLost:
                return False
        return more

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Start the next turn early, since there is work."""
        self._wake.set()

    def close(self) -> None:
        """Stop and release the lease, within about a second even if the database is blocked.

        A waiting or slow transaction is abandoned. The next holder of the lease repeats it.
        """
        self._stopping = True
        self._call.gone = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            with calls.serving(Call(time.monotonic() + _LAST)):
                self.lease.release()
        except (StoreUnavailable, CallerGone):
            _log.debug("the lease could not be released; it expires by itself")

    def _run(self) -> None:
        with calls.serving(self._call):
            self._act()

    def _act(self) -> None:
        trouble = Trouble("acting on schedules fails; retrying")
        while not self._stopping:
            began = self._monotonic()
            try:
                more = self.turn()
            except (StoreUnavailable, CallerGone):
                more = False  # already logged where it happened
            except Exception as failure:
                trouble.met(error=type(failure).__name__)
                more = False
            else:
                trouble.passed()
            took = self._monotonic() - began
            time.sleep(min(_SHARE * took, self._interval) / SECOND)
            if not more:
                self._wake.wait(self._interval / SECOND)
            # Clearing is safe: the work was stored before `wake` was called, so the next turn finds it.
            self._wake.clear()

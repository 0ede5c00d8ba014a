"""The thread that does what the clock demands, in the one process that holds the lease."""

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from tumbler_server import calls, clock
from tumbler_server.calls import Call
from tumbler_server.clock import SECOND, Clock
from tumbler_server.errors import CallerGone, StoreUnavailable
from tumbler_server.events.lease import Lease, LeaseLost
from tumbler_server.trouble import Trouble

_INTERVAL = SECOND // 4
"""How often it is looked what is to be done: a few rows, found by indexes."""

_SHARE = 9
"""After something was done there is a pause of so many times as long, so that others can use the database and the
processors: at most a tenth of either is used up."""

_LAST = 1.0
"""Seconds for giving back the lease. Where that is too little, it runs out."""

_log = structlog.get_logger(__name__)


class Duty(Protocol):
    """Something that one process is to do."""

    def work(self, lease: Lease) -> bool:
        """Do a bounded part of what is to be done, and say whether there is more. It checks the lease as it writes.

        Raises ``LeaseLost`` and ``StoreUnavailable``.
        """


class Acting:
    """Keeps the lease, and does the duties while it is held."""

    def __init__(
        self,
        lease: Lease,
        duties: Sequence[Duty],
        span: int,
        uptime: Clock = clock.uptime,
    ) -> None:
        self.lease = lease
        self._duties = duties
        self._interval = min(_INTERVAL, span // 10)
        self._uptime = uptime
        self._stopping = False
        self._call = Call()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="acting", daemon=True)

    def turn(self) -> bool:
        """Do a part of each duty if the lease is held, and say whether there is more to do at once.

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
        """Begin to act."""
        self._thread.start()

    def wake(self) -> None:
        """Have the next turn sooner, since there is something to do."""
        self._wake.set()

    def close(self) -> None:
        """End, and leave the lease to another: within a second or so, whatever holds the database.

        A transaction that waits, or takes long, is given up; the next holder of the lease does it.
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
            began = self._uptime()
            try:
                more = self.turn()
            except (StoreUnavailable, CallerGone):
                more = False  # it was logged where it happened
            except Exception as failure:
                trouble.met(error=type(failure).__name__)
                more = False
            else:
                trouble.passed()
            took = self._uptime() - began
            time.sleep(min(_SHARE * took, self._interval) / SECOND)
            if not more:
                self._wake.wait(self._interval / SECOND)
            # Whoever woke us has put what is to be done where the next turn finds it.
            self._wake.clear()

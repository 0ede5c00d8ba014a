"""The time limit of one database call, by its own timeout and its caller's deadline."""

import time

from tumbler_server import calls
from tumbler_server.errors import CallerGone, StoreUnavailable, TumblerError

GRACE = 0.25
"""Seconds past the caller's deadline before a connection is cut.

The server ends the statement at the deadline. If the connection were cut at the same instant, every impatient caller
would cost a connection, and other callers would wait for its replacement.
"""

_GLANCE = 0.1
"""Seconds between two checks that the caller is still there."""


class Bound:
    """The end of one database call: ``seconds`` from now, or the caller's deadline if that is earlier."""

    __slots__ = ("call", "last", "seconds", "until")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.call = call = calls.current()
        self.last = last = time.monotonic() + seconds
        self.until = last if call is None else min(last, call.deadline)

    @property
    def server_until(self) -> float:
        """When the database server must give up: a tenth of ``seconds`` before ``last``, so that its error arrives."""
        early = self.last - self.seconds / 10
        return early if self.call is None else min(early, self.call.deadline)

    @property
    def cut(self) -> float:
        """When the connection is cut, whatever the server does."""
        return self.last if self.call is None else min(self.last, self.call.deadline + GRACE)

    def left(self) -> float:
        """Return the seconds that are left."""
        return max(0.0, self.until - time.monotonic())

    def glance(self) -> float:
        """Return the seconds to wait before the next call of ``over``."""
        return self.left() if self.call is None else min(self.left(), _GLANCE)

    def over(self) -> bool:
        """Return whether the time is over or the caller has gone."""
        return time.monotonic() >= self.until or (self.call is not None and self.call.gone)

    def check(self) -> None:
        """Raise ``failure()`` if the time is over or the caller has gone."""
        if self.over():
            raise self.failure() from TimeoutError(f"no answer within {self.seconds:g} s")

    def failure(self) -> TumblerError:
        """Return the error of a call that ended early: ``CallerGone``, or else ``StoreUnavailable``."""
        if self.call is not None and not self.call.alive():
            return CallerGone()
        return StoreUnavailable()

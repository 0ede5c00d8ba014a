"""How long one call to the database may take, and for whom."""

import time

from tumbler_server import calls
from tumbler_server.errors import CallerGone, StoreUnavailable, TumblerError

GRACE = 0.25
"""Seconds past its caller's deadline that a connection may be waited for.

The server ends the statement at the deadline. Were the connection cut in the same instant, every impatient caller would
cost one, and others would wait for its replacement.
"""

_GLANCE = 0.1
"""Seconds between two looks at whether the caller is still there."""


class Bound:
    """The end of one call to the database: ``seconds`` from now, or the caller's deadline where that comes first."""

    __slots__ = ("call", "last", "seconds", "until")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.call = call = calls.current()
        self.last = last = time.monotonic() + seconds
        self.until = last if call is None else min(last, call.deadline)

    @property
    def server_until(self) -> float:
        """When a database server is to give up: a tenth earlier than we do, so that it is heard saying so."""
        early = self.last - self.seconds / 10
        return early if self.call is None else min(early, self.call.deadline)

    @property
    def cut(self) -> float:
        """When the connection is cut, whatever the server does."""
        return self.last if self.call is None else min(self.last, self.call.deadline + GRACE)

    def left(self) -> float:
        """Return how many seconds are left."""
        return max(0.0, self.until - time.monotonic())

    def glance(self) -> float:
        """Return how long to wait before ``over`` is asked again."""
        return self.left() if self.call is None else min(self.left(), _GLANCE)

    def over(self) -> bool:
        """Say whether the time is over, or nobody waits for what comes of it."""
        return time.monotonic() >= self.until or (self.call is not None and self.call.gone)

    def check(self) -> None:
        """Raise what ``failure`` returns if it is over."""
        if self.over():
            raise self.failure() from TimeoutError(f"no answer within {self.seconds:g} s")

    def failure(self) -> TumblerError:
        """Return what a call that ended early is answered: whether the database or the caller was too slow."""
        if self.call is not None and not self.call.alive():
            return CallerGone()
        return StoreUnavailable()

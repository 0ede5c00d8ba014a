"""The call that a thread works on: how long its caller waits, and what must still hold when it writes.

The serving layer sets it around the work of each call. The store reads it before it begins a transaction. So no layer
in between has to pass it on, and no write can forget it.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False, slots=True)
class Call:
    """What the store knows of a call. ``deadline`` is in seconds of ``time.monotonic``."""

    deadline: float = math.inf
    gone: bool = False
    """Whether the caller has cancelled the call or disconnected. Set by one thread, read by another."""
    judge: Callable[[Any], None] | None = None
    """Checks the caller again inside each write transaction, its argument, before anything is written.

    Raises the error to answer with.
    """
    peer: Callable[[], str] | None = None
    """Returns the caller's IP address. Called only if something is written."""
    request_id: str = ""
    """The caller's name for the call, for the event log."""

    def address(self) -> str:
        """Return the caller's IP address; empty if it has none, as behind a Unix socket."""
        return self.peer() if self.peer else ""

    def alive(self) -> bool:
        """Return whether the caller still waits for the answer."""
        return not self.gone and time.monotonic() < self.deadline


NOBODY = Call()
"""The call of work without a caller: a command, or background work. It is never gone."""

_CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def current() -> Call | None:
    """Return the call that this thread works on, or None outside of calls, as in commands and background work."""
    return _CURRENT.get()


@contextlib.contextmanager
def serving(call: Call | None) -> Iterator[None]:
    """Set the current call while the context lasts; None for work that is shared and belongs to no one caller."""
    token = _CURRENT.set(call)
    try:
        yield
    finally:
        _CURRENT.reset(token)

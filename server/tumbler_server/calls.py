"""The call that a thread is working on: how long its caller waits, and what must still hold when it writes.

The layer that serves sets it around the work of each call; the store asks it before it begins a transaction. So nothing
in between has to hand it on, and no write can forget it.
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
    """A caller's patience. ``deadline`` is an instant of ``time.monotonic``, in seconds."""

    deadline: float = math.inf
    gone: bool = False
    """Whether the caller has cancelled the call, or its connection has ended. Set by one thread, read by another."""
    judge: Callable[[Any], None] | None = None
    """Judges the caller again inside each write transaction (its argument), before anything is written.

    Raises what to answer.
    """
    peer: Callable[[], str] | None = None
    """Tells the caller's IP address; asked only where something is written."""
    request_id: str = ""
    """What the caller named the call; the log tells it."""

    def address(self) -> str:
        """Return the caller's IP address; empty: there is none, as behind a Unix socket."""
        return self.peer() if self.peer else ""

    def alive(self) -> bool:
        """Say whether anybody still waits for the answer."""
        return not self.gone and time.monotonic() < self.deadline


NOBODY = Call()
"""Where nobody has called: a command, or work in the background. It is never gone."""

_CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def current() -> Call | None:
    """Return the call that this thread works on; None outside of one, as in commands and in the background."""
    return _CURRENT.get()


@contextlib.contextmanager
def serving(call: Call | None) -> Iterator[None]:
    """Work on a call for as long as the context lasts; with None, on what is everybody's and no one caller's."""
    token = _CURRENT.set(call)
    try:
        yield
    finally:
        _CURRENT.reset(token)

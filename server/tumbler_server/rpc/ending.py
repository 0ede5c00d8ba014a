"""How a call ends: callbacks at its end, and how to cut it off if its caller has stopped reading."""

import asyncio
from collections.abc import Callable
from typing import Any, cast


def at_end(callback: Callable[[Any], object]) -> None:
    """Call ``callback``, with one argument, when the current call is over.

    A callback of the call's own context would make a reference cycle. The call and its stream would then live until the
    garbage collector runs, and count among the connection's streams.
    """
    task().add_done_callback(callback)


def cut_off(serving: "asyncio.Task[Any]", context: Any) -> None:
    """Cut a call off, by its task and its context."""
    serving.cancel()
    context.cut()


def task() -> "asyncio.Task[Any]":
    """Return the task that serves the current call."""
    return cast("asyncio.Task[Any]", asyncio.current_task())

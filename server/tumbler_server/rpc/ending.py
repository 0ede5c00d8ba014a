"""How a call ends: what is done once it is over, and how it is cut off when its caller takes nothing any more."""

import asyncio
from collections.abc import Callable
from typing import Any, cast


def at_end(callback: Callable[[Any], object]) -> None:
    """Have this called with anything once the call is over that this task serves.

    What a call's own context were to call would make a cycle of it: the call and its stream would then live until the
    collector comes, and count among the connection's streams.
    """
    task().add_done_callback(callback)


def cut_off(serving: "asyncio.Task[Any]", context: Any) -> None:
    """Cut a call off, by its task and its context."""
    serving.cancel()
    context.cut()


def task() -> "asyncio.Task[Any]":
    """Return the task that serves a call, to what is called by it."""
    return cast("asyncio.Task[Any]", asyncio.current_task())

"""How a call ends: what is done once it is over, and how it is cut off when its caller takes nothing any more.

A call is served by a task, which ends once gRPC has handed the answer to the network. Beside it gRPC has a second task,
which waits for the caller to close the call: while that one lives, gRPC keeps the call, and with it what its caller has
not taken, for as long as there is a connection. Once both are gone, the stream is reset.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, cast

_keeper: ContextVar["asyncio.Task[Any] | None"] = ContextVar("keeper", default=None)


async def keep(call: Awaitable[None]) -> None:
    """Wait for the caller to close a call, as gRPC has it, so that ``keeper`` knows of it."""
    _keeper.set(asyncio.current_task())
    await call


def at_end(callback: Callable[[Any], object]) -> None:
    """Have this called with anything once the call is over that this task serves.

    gRPC's contexts offer the same, by a cycle of objects for each call: the call itself and its stream then live until
    the collector comes, and count among the connection's streams.
    """
    task().add_done_callback(callback)


def keeper() -> "asyncio.Task[Any] | None":
    """Return the second task of the call that this task serves; None where gRPC has it to itself."""
    return _keeper.get()


def cut_off(serving: "asyncio.Task[Any]", kept_by: "asyncio.Task[Any] | None") -> bool:
    """Cut a call off, by its two tasks; say whether gRPC lets go of it. Else it ends with its connection."""
    serving.cancel()
    return kept_by is not None and kept_by.cancel()


def task() -> "asyncio.Task[Any]":
    """Return the task that serves a call, to what is called by it."""
    return cast("asyncio.Task[Any]", asyncio.current_task())

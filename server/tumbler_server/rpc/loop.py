"""An event loop on a thread of its own: what serves, beside the thread that waits for signals."""

import asyncio
import contextlib
import gc
import sys
import threading
import traceback
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger(__name__)

TURN = 0.001
"""Seconds that a thread may keep the interpreter while the loop waits for it. Callers would feel Python's own 5 ms."""

_LAST = 1.0
"""Seconds that what is cancelled at the end has to end."""

_YOUNG = 20_000
"""Objects made, less those freed, until the collector looks at the young ones; Python's own figure is 700."""


class LoopThread:
    """Runs a loop until ``close``: uvloop's where it can be had, which costs less a call."""

    def __init__(self) -> None:
        sys.setswitchinterval(TURN)
        # A call makes dozens of objects that its end frees without the collector; looking for cycles so often is waste.
        gc.set_threshold(_YOUNG, 20, 50)
        self.loop = _new_loop()
        self.loop.set_exception_handler(_tell)
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and return what it returns. For other threads."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        """Cancel what is still going on there, and end the loop."""
        self.run(_cancel_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


def _tell(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught by its type: asyncio's own handler would log its text, which could hold a secret."""
    failure = context.get("exception")
    places = traceback.extract_tb(failure.__traceback__) if failure else ()
    with contextlib.suppress(Exception):  # a log that cannot be written must not change what happens
        _log.error(
            "something on the loop failed",
            error=type(failure).__name__,
            places=[f"{place.filename}:{place.lineno} {place.name}" for place in places][-8:],
        )


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_LAST)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # it does not run on Windows
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop

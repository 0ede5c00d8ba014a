"""An event loop's view of the log, from memory if possible. Otherwise one thread reads it for all waiting calls."""

import asyncio
import functools
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

from tumbler_server.errors import own
from tumbler_server.events.lineage import compared
from tumbler_server.freshness.tail import Tail
from tumbler_server.secrets.opaque_tokens import Point

T = TypeVar("T")


class Glance:
    """Returns a position that an answer may rest on; see ``Tail.look``. For the thread of one event loop.

    If the log must be read, one look by a thread serves all waiting calls. A look that began before a call proves
    nothing for that call, so the call waits for the next look.
    """

    def __init__(self, tail: Tail, threads: Executor) -> None:
        self._tail = tail
        self._threads = threads
        self._seen: object = None
        self._reading: dict[object, asyncio.Task[int]] = {}
        self._looks = _Runs(threads, lambda: tail.confirm)
        self._of_this_turn: int | None = None
        self._wanted: set[int] = set()
        self._events = _Runs(threads, self._take_wanted)

    def now(self, at_least: int = 0, fully_consistent: bool = False) -> int | None:
        """Return a position that an answer may rest on, or None if the log must be read first.

        One look serves all calls of this pass of the event loop. A call that runs before ``_turn_over`` was already in
        the loop's queue at the look, so it had begun by then.
        """
        tail = self._tail
        if not tail.commits_show:
            return tail.known(at_least, fully_consistent)
        position = self._of_this_turn
        if position is None and tail.version() == self._seen:
            position = self._of_this_turn = tail.position
            asyncio.get_running_loop().call_soon(self._turn_over)
        return position

    def _turn_over(self) -> None:
        self._of_this_turn = None

    async def fresh(self) -> int:
        """Return a position that includes every change that returned before this call. Raises ``StoreUnavailable``."""
        if not self._tail.commits_show:
            return await outcome(self._looks.next())
        version = self._tail.version()
        look = self._reading.get(version)
        if look is None:  # a look that began at this version is fresh enough
            look = self._reading[version] = asyncio.ensure_future(self._read(version))
            look.add_done_callback(_retrieved)
        return await outcome(look)

    def known(self, point: Point) -> bool | None:
        """Return whether a point is in this log's history, or None if its event must be read to tell."""
        return self._tail.lineage.known(point)

    async def holds(self, points: Collection[Point]) -> list[bool]:
        """Do what ``Lineage.holds`` does; one thread reads what memory lacks, for all waiting calls together."""
        lineage, revisions = self._tail.lineage, compared(points)
        hashes = lineage.recall(revisions)
        if missing := revisions - hashes.keys():
            self._wanted |= missing
            hashes |= await outcome(self._events.next())
        return lineage.compare(points, hashes)

    def _take_wanted(self) -> Callable[[], Mapping[int, bytes]]:
        wanted, self._wanted = self._wanted, set()
        return functools.partial(self._tail.lineage.read, wanted)

    async def _read(self, version: object) -> int:
        try:
            position = await asyncio.get_running_loop().run_in_executor(self._threads, self._tail.confirm)
        finally:
            del self._reading[version]
        self._seen = version
        return position


class _Runs(Generic[T]):
    """Runs of some work on a thread, one after another. ``prepare`` returns the work of a run as that begins."""

    def __init__(self, threads: Executor, prepare: Callable[[], Callable[[], T]]) -> None:
        self._threads = threads
        self._prepare = prepare
        self._next: asyncio.Task[T] | None = None
        self._latest: asyncio.Task[T] | None = None

    def next(self) -> "asyncio.Task[T]":
        """Return the next run that has not begun. All who ask until then share it."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._latest))
            self._next.add_done_callback(_retrieved)
        return self._next

    async def _after(self, latest: "asyncio.Task[T] | None") -> T:
        if latest is not None:
            await asyncio.wait([latest])
        self._latest, self._next = self._next, None
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._prepare())


async def outcome(shared: "asyncio.Task[T]") -> T:
    """Return the result of a task that callers share, or raise a failure of the caller's own.

    A caller that goes away does not end the task.
    """
    await asyncio.wait([shared])
    failure = shared.exception()
    if failure is not None:
        raise own(failure)
    return shared.result()


def _retrieved(look: "asyncio.Task[Any]") -> None:
    """Retrieve an exception that no call waited for, so that asyncio does not log it."""
    if not look.cancelled():
        look.exception()

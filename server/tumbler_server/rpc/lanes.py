"""Fair shares of a bounded resource: who waits for what, how many may wait, and whose turn is next.

Everything here belongs to one event loop and must be called on its thread. A *party* has a share: a project, a key id,
or, before authentication, a connection.
"""

import asyncio
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

from tumbler_server import metrics
from tumbler_server.clock import SECOND
from tumbler_server.errors import Overloaded
from tumbler_server.shares import LaneLimit

T = TypeVar("T")

RETRY = SECOND // 2
"""How long a refused caller should wait before a retry, in microseconds."""


class FairQueue(Generic[T]):
    """A bounded queue in which parties take turns, however much each of them has queued.

    A party may queue at most as many items as there are free places, and at most its limit.
    """

    def __init__(self, name: str, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._waiting: dict[str, deque[T]] = {}  # in the order of their turns
        self._length = 0
        self._refused = metrics.REFUSED.labels(name)

    def __len__(self) -> int:
        return self._length

    def put(self, party: str, item: T) -> None:
        """Append an item to the party's items. Raises ``Overloaded`` if the party's share or the queue is full."""
        items = self._waiting.get(party)
        if (len(items) if items else 0) >= min(self._most_each, self._most - self._length):
            self._refused.inc()
            raise Overloaded(retry_after=RETRY)
        if items is None:
            items = self._waiting[party] = deque()
        items.append(item)
        self._length += 1

    def take(self, allowed: Callable[[str], bool] = lambda _: True) -> tuple[str, T] | None:
        """Take the oldest item of the party whose turn it is. Parties that are not ``allowed`` are skipped."""
        for party in self._waiting:
            if allowed(party):
                items = self._waiting.pop(party)
                item = items.popleft()
                self._length -= 1
                if items:
                    self._waiting[party] = items  # behind all others
                return party, item
        return None

    def drop(self, party: str, item: T) -> None:
        """Remove an item, if it is still queued."""
        items = self._waiting.get(party)
        if items is not None:
            with contextlib.suppress(ValueError):
                items.remove(item)
                self._length -= 1
            if not items:
                del self._waiting[party]


class Lane:
    """A number of places for work of one kind, with a thread each for work that blocks.

    A party holds at most its share of the places, which leaves room for others. Parties take turns in the queue. A
    place is held until the work ends, even if its caller has gone away.
    """

    def __init__(self, limit: LaneLimit, niceness: int = 0) -> None:
        self._width, self._share = limit.places, limit.share
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(limit.name, limit.waiting, limit.waiting_each)
        self._busy = 0
        self._held: dict[str, int] = {}
        self._threads = begun_threads(limit.places, limit.name, niceness)

    async def run(self, party: str, work: Callable[..., T], *arguments: object) -> T:
        """Run blocking work on one of the lane's threads, and return its result.

        The work runs in the caller's context. Raises ``Overloaded`` if too much is queued. If cancelled, queued work is
        dropped; work that has begun continues, and holds its place until it ends.
        """
        await self.enter(party)
        return await self.use(party, work, *arguments)

    async def use(self, party: str, work: Callable[..., T], *arguments: object) -> T:
        """Do what ``run`` does, in a place that ``enter`` has taken. The place is released when the work ends."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        try:
            self._threads.submit(_work, loop, outcome, self.leave, party, copy_context(), work, arguments)
        except RuntimeError:  # the server is stopping
            self.leave(party)
            raise Overloaded(retry_after=RETRY) from None
        return await outcome

    async def enter(self, party: str) -> None:
        """Take a place when it is the party's turn; ``leave`` releases it. Raises ``Overloaded``."""
        if self._busy < self._width and self._may(party):
            self._take(party)
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.put(party, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(party)  # the turn came at the same moment
            else:
                self._queue.drop(party, turn)
            raise

    def leave(self, party: str) -> None:
        """Release a place."""
        self._busy -= 1
        held = self._held[party] - 1
        if held:
            self._held[party] = held
        else:
            del self._held[party]
        while self._busy < self._width and (next_one := self._queue.take(self._may)):
            waiting, turn = next_one
            if not turn.done():
                self._take(waiting)
                turn.set_result(None)

    def close(self) -> None:
        """Wait for the work in progress, and begin nothing more."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _may(self, party: str) -> bool:
        return self._held.get(party, 0) < self._share

    def _take(self, party: str) -> None:
        self._busy += 1
        self._held[party] = self._held.get(party, 0) + 1


def _work(
    loop: asyncio.AbstractEventLoop,
    outcome: "asyncio.Future[T]",
    leave: Callable[[str], None],
    party: str,
    context: Context,
    work: Callable[..., T],
    arguments: tuple[object, ...],
) -> None:
    """Do blocking work on a thread of a lane, and report the result to the loop in one callback."""
    result: Any = None
    failure: Exception | None = None
    try:
        result = context.run(work, *arguments)
    except BaseException as raised:
        failure = tellable(raised)
    with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the wait for the result
        loop.call_soon_threadsafe(_tell, outcome, leave, party, result, failure)
    del failure  # its traceback refers to this frame, and so to the request: a cycle otherwise


def _tell(
    outcome: "asyncio.Future[T]", leave: Callable[[str], None], party: str, result: T, failure: Exception | None
) -> None:
    leave(party)
    if outcome.done():  # the caller has gone away
        return
    if failure is None:
        outcome.set_result(result)
    else:
        outcome.set_exception(failure)


def tellable(failure: BaseException) -> Exception:
    """Return a failure in a form that a future accepts. Others would make its waiter wait forever, or end the loop."""
    if isinstance(failure, Exception) and not isinstance(failure, StopIteration):
        return failure
    return RuntimeError(f"the work ended with {type(failure).__name__}")


def begun_threads(number: int, name: str, niceness: int = 0) -> ThreadPoolExecutor:
    """Return a pool whose threads already run, so that a lack of threads shows now, and not during a call.

    Raises ``RuntimeError`` if the system has no more threads.
    """
    threads = ThreadPoolExecutor(number, thread_name_prefix=name, initializer=stand_back, initargs=(niceness,))
    all_run = threading.Barrier(number)
    try:
        for each in [threads.submit(all_run.wait) for _ in range(number)]:
            each.result()
    except BaseException:
        all_run.abort()
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    return threads


def stand_back(niceness: int) -> None:
    """Lower this thread's priority below that of the threads that serve. Only Linux can do that for a single thread."""
    if niceness and sys.platform == "linux":
        import os

        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)

"""Fair shares of a bounded resource: who waits for what, how many may wait, and whose turn is next.

Everything here belongs to one event loop and must be called on its thread. A *party* is whoever shares: a project, a
key id, or, where nobody has been authenticated yet, a connection.
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
"""When a caller that was refused for want of room should come again, in microseconds."""


class FairQueue(Generic[T]):
    """A bounded queue in which parties take turns, however much each of them has put in.

    A party may have as many items in it as there is room for more, and no more than its limit.
    """

    def __init__(self, name: str, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._waiting: dict[str, deque[T]] = {}  # in the order of their turns
        self._length = 0
        self._refused = metrics.REFUSED.labels(name)

    def __len__(self) -> int:
        return self._length

    def put(self, party: str, item: T) -> None:
        """Put an item behind the party's others. Raises ``Overloaded`` where the party, or the queue, is full."""
        items = self._waiting.get(party)
        if (len(items) if items else 0) >= min(self._most_each, self._most - self._length):
            self._refused.inc()
            raise Overloaded(retry_after=RETRY)
        if items is None:
            items = self._waiting[party] = deque()
        items.append(item)
        self._length += 1

    def take(self, allowed: Callable[[str], bool] = lambda _: True) -> tuple[str, T] | None:
        """Take the oldest item of the party whose turn it is, passing over parties that are not allowed one now."""
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
        """Take out an item that is not wanted any more, if it is still there."""
        items = self._waiting.get(party)
        if items is not None:
            with contextlib.suppress(ValueError):
                items.remove(item)
                self._length -= 1
            if not items:
                del self._waiting[party]


class Lane:
    """A number of places for work of one kind, and threads of its own for work that blocks.

    A party holds at most its share of the places, so that one is free for the others, and waits in a queue in which
    parties take turns. A place is held until the work is over, also where its caller has gone meanwhile.
    """

    def __init__(self, limit: LaneLimit, niceness: int = 0) -> None:
        self._width, self._share = limit.places, limit.share
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(limit.name, limit.waiting, limit.waiting_each)
        self._busy = 0
        self._held: dict[str, int] = {}
        self._threads = begun_threads(limit.places, limit.name, niceness)

    async def run(self, party: str, work: Callable[..., T], *arguments: object) -> T:
        """Run blocking work on one of the lane's threads, and return what it returns.

        It runs in the caller's context. Raises ``Overloaded`` where too much is waiting. Cancelling takes work that has
        not begun out of the queue; work that has begun goes on, and holds its place until it ends.
        """
        await self.enter(party)
        return await self.use(party, work, *arguments)

    async def use(self, party: str, work: Callable[..., T], *arguments: object) -> T:
        """Do what ``run`` does, on a place that ``enter`` has taken; the end of the work gives it back."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        try:
            self._threads.submit(_work, loop, outcome, self.leave, party, copy_context(), work, arguments)
        except RuntimeError:  # the server is stopping
            self.leave(party)
            raise Overloaded(retry_after=RETRY) from None
        return await outcome

    async def enter(self, party: str) -> None:
        """Take a place, when it is the party's turn. ``leave`` gives it back. Raises ``Overloaded``."""
        if self._busy < self._width and self._may(party):
            self._take(party)
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.put(party, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(party)  # it came in the same moment
            else:
                self._queue.drop(party, turn)
            raise

    def leave(self, party: str) -> None:
        """Give a place back."""
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
        """Finish what is under way, and begin nothing more."""
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
    """Do blocking work on a thread of a lane, and tell the loop once what came of it."""
    result: Any = None
    failure: Exception | None = None
    try:
        result = context.run(work, *arguments)
    except BaseException as raised:
        failure = tellable(raised)
    with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
        loop.call_soon_threadsafe(_tell, outcome, leave, party, result, failure)
    del failure  # its traceback has this frame, and with it the request: nothing is to wait for the collector


def _tell(
    outcome: "asyncio.Future[T]", leave: Callable[[str], None], party: str, result: T, failure: Exception | None
) -> None:
    leave(party)
    if outcome.done():  # the caller has gone
        return
    if failure is None:
        outcome.set_result(result)
    else:
        outcome.set_exception(failure)


def tellable(failure: BaseException) -> Exception:
    """Return a failure of work as a future takes it; its waiter would wait for ever, or its loop end, with others."""
    if isinstance(failure, Exception) and not isinstance(failure, StopIteration):
        return failure
    return RuntimeError(f"the work ended with {type(failure).__name__}")


def begun_threads(number: int, name: str, niceness: int = 0) -> ThreadPoolExecutor:
    """Return a pool whose threads run already: a machine that has none left is noticed now, and not in a call's midst.

    Raises ``RuntimeError`` then.
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
    """Have this thread yield the processor to those that serve. Only Linux can do that for a single thread."""
    if niceness and sys.platform == "linux":
        import os

        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)

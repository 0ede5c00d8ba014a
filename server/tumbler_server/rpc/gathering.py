"""Gathers reads of records that arrive together into one query: one thread and one statement for many callers."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from tumbler_server.errors import Overloaded, own
from tumbler_server.keys.record import Key
from tumbler_server.rpc.lanes import RETRY, FairQueue, begun_threads, tellable
from tumbler_server.shares import LaneLimit
from tumbler_server.verify.verifier import Doubtful, Unknown

MOST = 64
"""Maximum records per query. That many take a thread, which the loop may have to wait for, about a millisecond."""

Found = Key | Doubtful | None
Wanted = tuple[Unknown, "asyncio.Future[Found]"]


class Gathering:
    """Reads records, in turns by party. Requests that arrive during a read go into the next one.

    ``read`` is called on threads of its own. Use this on the loop's thread only.
    """

    def __init__(self, limit: LaneLimit, read: Callable[[Sequence[Unknown]], Sequence[Found]]) -> None:
        self._places = limit.places
        self._read = read
        self._queue: FairQueue[Wanted] = FairQueue(limit.name, limit.waiting, limit.waiting_each)
        self._threads = begun_threads(limit.places, limit.name)
        self._under_way = 0
        self._launching = False

    async def find(self, unknown: Unknown, party: str) -> Found:
        """Return what is stored of a presented key.

        Raises ``Overloaded`` if too many requests wait, and ``StoreUnavailable``. A request that is cancelled before
        its turn is not read.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Found] = loop.create_future()
        wanted = (unknown, found)
        self._queue.put(party, wanted)
        if not self._launching:
            self._launching = True
            loop.call_soon(self._launch, loop)  # together with all later requests of this turn of the loop
        try:
            return await found
        except asyncio.CancelledError:
            self._queue.drop(party, wanted)
            raise

    def close(self) -> None:
        """Wait for the reads in progress."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _launch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._launching = False
        while self._under_way < self._places and len(self._queue):
            batch: list[Wanted] = []
            while len(batch) < MOST and (taken := self._queue.take()):
                if not taken[1][1].done():
                    batch.append(taken[1])
            if batch:
                try:
                    self._threads.submit(self._work, loop, batch)
                except RuntimeError:  # the server is stopping
                    _fail(batch, Overloaded(retry_after=RETRY))
                    continue
                self._under_way += 1

    def _work(self, loop: asyncio.AbstractEventLoop, batch: Sequence[Wanted]) -> None:
        found: Sequence[Found] = ()
        failure: Exception | None = None
        try:
            found = self._read([unknown for unknown, _ in batch])
        except BaseException as raised:
            failure = tellable(raised)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the wait for the result
            loop.call_soon_threadsafe(self._tell, loop, batch, found, failure)
        del failure  # its traceback refers to this frame, and so to the presented keys

    def _tell(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[Wanted],
        found: Sequence[Found],
        failure: Exception | None,
    ) -> None:
        self._under_way -= 1
        if failure is not None:
            _fail(batch, failure)
        for (_, waiting), each in zip(batch, found, strict=False):
            if not waiting.done():
                waiting.set_result(each)
        self._launch(loop)


def _fail(batch: Sequence[Wanted], failure: Exception) -> None:
    for _, waiting in batch:
        if not waiting.done():
            waiting.set_exception(own(failure))

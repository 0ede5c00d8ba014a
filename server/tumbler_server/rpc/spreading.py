"""Work on the loop, in portions between which others have their turn."""

import asyncio
import time
from collections.abc import Iterator
from typing import TypeVar

from tumbler_server.rpc.lanes import FairQueue
from tumbler_server.shares import CrowdLimit

T = TypeVar("T")

TURN = 0.001
"""Seconds after which such work gives up its turn: a call takes half a dozen turns of the loop."""


AT_ONCE = 8
"""Calls that have their turn in one turn of the loop."""


class Turns:
    """Hands out turns to calls, so many in each turn of the loop. Where more want one, projects take turns.

    For one loop's thread.
    """

    def __init__(self, limit: CrowdLimit) -> None:
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue(limit.name, limit.most, limit.most_each)
        self._given = 0

    def now(self) -> bool:
        """Take a turn at once; say whether there was one."""
        if self._given >= AT_ONCE or len(self._waiting):
            return False
        if not self._given:
            asyncio.get_running_loop().call_soon(self._begin)
        self._given += 1
        return True

    async def wait(self, party: str) -> None:
        """Wait for a turn, where there is none now. Raises ``Overloaded`` where too many wait."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(party, turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.drop(party, turn)
            raise

    def _begin(self) -> None:
        self._given = 0
        while self._given < AT_ONCE and (taken := self._waiting.take()):
            if not taken[1].done():
                taken[1].set_result(None)
                self._given += 1
        if self._given:
            asyncio.get_running_loop().call_soon(self._begin)


async def spread(work: Iterator[T]) -> list[T]:
    """Take all items of an iterator, and return them."""
    done: list[T] = []
    until = time.monotonic() + TURN
    for item in work:
        done.append(item)
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + TURN
    return done

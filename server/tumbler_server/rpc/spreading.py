"""Work on the loop, in portions between which others have their turn."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import TypeVar

from tumbler_server.rpc.lanes import FairQueue
from tumbler_server.shares import CrowdLimit

T = TypeVar("T")

TURN = 0.001
"""Seconds after which such work gives up its turn: a call takes half a dozen turns of the loop."""

AT_A_LOOK = 8
"""Items after which the clock is looked at; of the costliest, one takes a tenth of a millisecond."""

AT_ONCE = 4
"""Calls that begin at once, in a turn of the loop or within ``TURN``."""


class Turns:
    """Hands out turns to calls, so many at a time. Where more want one, projects take turns.

    For one loop's thread.
    """

    def __init__(self, limit: CrowdLimit) -> None:
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue(limit.name, limit.most, limit.most_each)
        self._giving = False
        self._given, self._until = 0, 0.0

    def now(self) -> bool:
        """Take a turn at once; say whether there was one."""
        now = time.monotonic()
        if now >= self._until:
            self._given, self._until = 0, now + TURN
        if self._given >= AT_ONCE or self._giving:
            return False
        self._given += 1
        return True

    async def wait(self, party: str) -> None:
        """Wait for a turn. Raises ``Overloaded`` where too many wait."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(party, turn)
        if not self._giving:
            self._giving = True
            asyncio.get_running_loop().call_soon(self._give)
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.drop(party, turn)
            raise

    def _give(self) -> None:
        given = 0
        while given < AT_ONCE and (taken := self._waiting.take()):
            if not taken[1].done():
                taken[1].set_result(None)
                given += 1
        self._giving = bool(given)
        if given:  # those who had their turn now have the next to themselves
            asyncio.get_running_loop().call_soon(self._give)


async def spread(work: Iterator[T]) -> list[T]:
    """Take all items of an iterator, and return them."""
    done: list[T] = []
    until = time.monotonic() + TURN
    while True:
        some = list(itertools.islice(work, AT_A_LOOK))
        done += some
        if len(some) < AT_A_LOOK:
            return done
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + TURN

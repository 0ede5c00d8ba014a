"""Splits work on the loop into portions, between which other work runs."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import TypeVar

from tumbler_server.rpc.lanes import FairQueue
from tumbler_server.shares import CrowdLimit

T = TypeVar("T")

TURN = 0.001
"""Seconds after which such work yields. A call takes half a dozen turns of the loop."""

AT_A_LOOK = 8
"""Items between two looks at the clock. The costliest kind takes a tenth of a millisecond per item."""

AT_ONCE = 4
"""Calls that begin at once, in one turn of the loop or within ``TURN``."""


class VerifyTurns:
    """Gives turns to calls, a few at a time. If more calls want one, projects take turns.

    Use it on the loop's thread only.
    """

    def __init__(self, limit: CrowdLimit) -> None:
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue(limit.name, limit.most, limit.most_each)
        self._giving = False
        self._given, self._until = 0, 0.0

    def now(self) -> bool:
        """Take a turn without waiting, and return whether there was one."""
        now = time.monotonic()
        if now >= self._until:
            self._given, self._until = 0, now + TURN
        if self._given >= AT_ONCE or self._giving:
            return False
        self._given += 1
        return True

    async def wait(self, party: str) -> None:
        """Wait for a turn. Raises ``Overloaded`` if too many wait."""
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
        if given:  # the calls that got a turn run before the next ones get theirs
            asyncio.get_running_loop().call_soon(self._give)


async def spread(work: Iterator[T]) -> list[T]:
    """Return all items of an iterator. Yields to other work after each ``TURN``."""
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

"""Parting from callers who go on calling, as a server ends.

gRPC tells them to go (GOAWAY) in the moment in which it takes up no more calls. What they have sent by then, or send
before they hear it, it ends with CANCELLED, as if they had cancelled it themselves: nobody tries such a call again.

So it is told to shut down only when nobody is left. Before that the calls under way are answered, new ones are told
UNAVAILABLE, and a connection that has none under way is closed from our side, behind what was sent on it. What its
caller sends meanwhile is UNAVAILABLE too, by every client library, and the caller connects anew: to another server.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Set

from tumbler_server.rpc import sockets
from tumbler_server.rpc.serving import Context
from tumbler_server.rpc.shedding import Shedding, end_of_peer
from tumbler_server.rpc.sockets import End

PAUSE = 0.02
"""Seconds between two looks at who is left."""

LAST = 1.0
"""Seconds for callers to hang up whose connections have been closed."""


class Parting:
    """Closes the connections of a server, from when new calls are refused. For one loop's thread.

    ``calls`` returns the calls that have not ended, and ``busy`` says whether some of them are worth waiting for.
    """

    def __init__(self, shedding: Shedding, calls: Callable[[], Set[Context]], busy: Callable[[], object]) -> None:
        self._shedding = shedding
        self._calls = calls
        self._busy = busy
        self._taken = calls()
        self._closed: set[End] = set()

    async def part(self, until: float) -> None:
        """Close each connection once its calls have been answered; all others once none is worth waiting for.

        Nobody can connect meanwhile. No call is waited for beyond ``until``, by the monotonic clock. Returns when all
        callers have hung up, or soon.
        """
        sockets.stop_listening(self._shedding.port)
        while self._busy() and time.monotonic() < until:
            await self._close({end_of_peer(call.peer()) for call in self._taken & self._calls()})
            await asyncio.sleep(PAUSE)
        last = min(until, time.monotonic() + LAST)
        while await self._close(frozenset()) and time.monotonic() < last:
            await asyncio.sleep(PAUSE)

    async def _close(self, kept: Collection[End]) -> int:
        """Close all connections but those that are kept, and return how many of them are still there."""
        found: list[End] = []
        await self._shedding.aside(lambda: found.extend(_close(self._shedding.port, kept, self._closed)))
        self._closed = set(found)
        return len(found)


def _close(port: int, kept: Collection[End], closed: Collection[End]) -> list[End]:
    found = []
    for end, file in sockets.connections(port):
        if end not in kept:
            found.append(end)
            if end not in closed:
                sockets.finish(file)
    return found

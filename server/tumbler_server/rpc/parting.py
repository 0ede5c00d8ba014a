"""Disconnects callers when the server stops, although they keep calling.

gRPC tells callers to leave (GOAWAY) when it stops accepting calls. Calls that they have sent by then, or send before
they receive it, end with CANCELLED, as if the callers had cancelled them: no client retries such a call.

So gRPC is shut down only when no caller is left. Before that, calls in flight are answered, new ones get UNAVAILABLE,
and a connection without calls in flight is closed from our side, after all data sent on it. In every client library,
calls that its caller sends meanwhile are UNAVAILABLE too, and the caller reconnects: to another server.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Set

from tumbler_server.rpc import sockets
from tumbler_server.rpc.serving import Context
from tumbler_server.rpc.shedding import Shedding, end_of_peer
from tumbler_server.rpc.sockets import End

PAUSE = 0.02
"""Seconds between two checks of who is left."""

LAST = 1.0
"""Seconds for callers to hang up after their connections were closed."""


class Parting:
    """Closes the connections of a server that refuses new calls. Use it on the loop's thread only.

    ``calls`` returns the calls that have not ended, and ``busy`` whether some of them are worth waiting for.
    """

    def __init__(self, shedding: Shedding, calls: Callable[[], Set[Context]], busy: Callable[[], object]) -> None:
        self._shedding = shedding
        self._calls = calls
        self._busy = busy
        self._taken = calls()
        self._closed: set[End] = set()

    async def part(self, until: float) -> None:
        """Close each connection once its calls are answered, and all others once no call is worth waiting for.

        New connections are refused meanwhile. ``until``, on the monotonic clock, ends the wait for calls. Returns when
        all callers have hung up, or soon.
        """
        sockets.stop_listening(self._shedding.port)
        while self._busy() and time.monotonic() < until:
            await self._close({end_of_peer(call.peer()) for call in self._taken & self._calls()})
            await asyncio.sleep(PAUSE)
        last = min(until, time.monotonic() + LAST)
        while await self._close(frozenset()) and time.monotonic() < last:
            await asyncio.sleep(PAUSE)

    async def _close(self, kept: Collection[End]) -> int:
        """Close all connections except those to keep, and return how many of the closed ones are still there."""
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

"""An event loop's view of the log: from memory where nothing needs reading, else read by one thread for many."""

import asyncio
from concurrent.futures import Executor

from tumbler_server.events.tail import Tail


class Glance:
    """Says what position an answer may rest on; see ``Tail.look``. For one loop's thread.

    What has to be read is read by one thread for all that ask meanwhile: a look that began before a call did proves
    nothing for that call, so it waits for the next one.
    """

    def __init__(self, tail: Tail, threads: Executor) -> None:
        self._tail = tail
        self._threads = threads
        self._seen: object = None
        self._reading: dict[object, asyncio.Task[int]] = {}
        self._next: asyncio.Task[int] | None = None
        self._latest: asyncio.Task[int] | None = None
        self._of_this_turn: int | None = None

    def now(self, at_least: int = 0, exactly: bool = False) -> int | None:
        """Return the position that an answer may rest on; None where the log must be read first.

        One look serves all whose turn it is: who has it before ``_turn_over`` does stood in the loop's queue already
        when the look was taken, so its call had begun.
        """
        tail = self._tail
        if not tail.commits_show:
            return tail.known(at_least, exactly)
        position = self._of_this_turn
        if position is None and tail.version() == self._seen:
            position = self._of_this_turn = tail.position
            asyncio.get_running_loop().call_soon(self._turn_over)
        return position

    def _turn_over(self) -> None:
        self._of_this_turn = None

    async def fresh(self) -> int:
        """Return a position that holds every change that returned before this call. Raises ``StoreUnavailable``."""
        if not self._tail.commits_show:
            return await asyncio.shield(self._next_look())
        version = self._tail.version()
        look = self._reading.get(version)
        if look is None:  # one that began while this very version showed will do
            look = self._reading[version] = asyncio.ensure_future(self._read(version))
            look.add_done_callback(_retrieved)
        return await asyncio.shield(look)

    def _next_look(self) -> "asyncio.Task[int]":
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._latest))
            self._next.add_done_callback(_retrieved)
        return self._next

    async def _read(self, version: object) -> int:
        try:
            position = await asyncio.get_running_loop().run_in_executor(self._threads, self._tail.confirm)
        finally:
            del self._reading[version]
        self._seen = version
        return position

    async def _after(self, latest: "asyncio.Task[int] | None") -> int:
        if latest is not None:
            await asyncio.wait([latest])
        self._latest, self._next = self._next, None
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._tail.confirm)


def _retrieved(look: "asyncio.Task[int]") -> None:
    """Take note of a failure that nobody waited for."""
    if not look.cancelled():
        look.exception()

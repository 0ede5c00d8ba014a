"""Countermeasures against floods of unauthenticated calls: delayed refusals, and cut connections.

A *stranger* is a connection on which no caller has been authenticated lately. A connection with an authenticated caller
is spared: a proxy may carry honest and hostile calls on it. So is one with an open Watch stream, which may be silent
for hours.
"""

import asyncio
import functools
import ipaddress
import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from tumbler_server import logs, metrics, shares
from tumbler_server.rpc import sockets
from tumbler_server.rpc.auth import peer_address
from tumbler_server.rpc.sockets import End

WINDOW = 10.0
"""Seconds after which refused calls are forgotten. Authenticated callers are remembered for up to twice as long."""

DELAY = (5.0, 10.0)
"""Minimum and maximum seconds of a delayed refusal. Meanwhile the call holds a stream of its connection."""

MOST = shares.CONNECTIONS.most
"""Maximum number of connections, and of addresses, to keep."""

_MOST_LET_IN = 8 * MOST
"""Maximum number of authenticated connections to remember. Some clients open one for each call."""

_CROWDED = 4
"""One in this many places must be taken before strangers are cut."""

LOOK = 0.5
"""Seconds between two checks of the number of connections."""

LOOKS, HURRIED = 5, 2
"""Checks after which a stranger is cut. A new connection has two seconds to authenticate, or half a second if more
than half of all places are taken. If more than three quarters are taken, the first check cuts every stranger, so
that others can connect."""

_PAUSE = 0.02
"""Seconds between two scans of the process's sockets, and between two batches of connections that are cut."""

_CUT_AT_ONCE = 64

_log = logs.get_logger(__name__)


def shut_down(port: int, ends: Collection[End]) -> int:
    """Shut down the connections of these peers to a port of ours, and return how many there were."""
    number = 0
    for end, file in sockets.connections(port):
        if end in ends:
            sockets.hang_up(file)
            number += 1
            if not number % _CUT_AT_ONCE:
                time.sleep(_PAUSE)  # gRPC also handles all of them before it reads other connections
    return number


class Shedding:
    """Knows which callers were authenticated and which were refused, by gRPC's names of peers.

    ``port`` is the port that the server listens on, ``most`` the maximum number of connections. Use it on the loop's
    thread only.
    """

    def __init__(self) -> None:
        self.port = 0
        self.most = shares.CONNECTIONS.most
        self.heard: dict[str, int] | None = None
        """Bytes of calls that each peer has sent; None while ``policing`` does not need them."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shedding")
        self._refused: Counter[str] = Counter()
        self._late: set[asyncio.Future[None]] = set()
        self._let_in: tuple[set[str], set[str]] = (set(), set())
        self._doomed: set[End] = set()
        self._strangers: dict[End, int] = {}
        self._staying: Counter[str] = Counter()
        self._listening: Counter[str] = Counter()
        self._gone: dict[str, float] = {}
        """The peers whose connections were cut a moment ago, and when."""
        self._cutting: asyncio.Task[None] | None = None
        self._cut = 0
        self._overdrawn = 0
        self._over = False

    def let_in(self, peer: str) -> None:
        """Note that a call on this connection was authenticated."""
        if len(self._let_in[0]) < _MOST_LET_IN:
            self._let_in[0].add(peer)

    def has_been_let_in(self, peer: str) -> bool:
        """Return whether a caller was authenticated here in the last 10 to 20 s, or has an open stream."""
        return peer in self._let_in[0] or peer in self._let_in[1] or peer in self._staying

    def stay(self, peer: str, stranger: bool = False) -> Callable[[object], None]:
        """Note a stream on this connection, which may be silent for hours; return the callback for its end.

        The stream of a stranger only keeps its connection from being cut to make room.
        """
        streams = self._listening if stranger else self._staying
        streams[peer] += 1
        return functools.partial(_leave, streams, peer)

    async def refuse(self, peer: str) -> None:
        """Note that a call on this connection is refused, and wait until the refusal may be sent."""
        if self.has_been_let_in(peer):
            return
        address = _network(peer)
        if len(self._refused) < MOST or address in self._refused:
            self._refused[address] += 1
            if self._refused[address] <= shares.PROMPT_REFUSALS.most:
                return
        if self._over:
            return
        if len(self._late) < shares.LATE_REFUSALS.most:
            await self._wait()
        else:
            self.cut(peer)

    def cut(self, peer: str, whoever: bool = False) -> None:
        """Cut the connection if it is a stranger; with ``whoever``, cut any connection, before this returns."""
        if len(self._gone) < MOST and (whoever or not self.has_been_let_in(peer)):
            self._gone[peer] = time.monotonic()
        if whoever:
            file = sockets.file_of(end_of_peer(peer), self.port)
            if file is not None:
                sockets.hang_up(file)
                self._note_cut(1)
        elif not self.has_been_let_in(peer) and len(self._doomed) < MOST:
            self.doom({end_of_peer(peer)})

    def has_gone(self, call: Any) -> bool:
        """Return whether a call's connection was cut a moment ago.

        Its calls that waited to be accepted still arrive.
        """
        return bool(self._gone) and str(call.peer(), "utf-8") in self._gone

    def strangers(self, ends: Collection[End]) -> list[End]:
        """Return the strangers among these. Any thread may call this."""
        # Each set is copied in one step, so that it cannot change meanwhile.
        return _strangers(ends, {*chain([*self._let_in[0]], [*self._let_in[1]], [*self._staying])})

    async def aside(self, work: Callable[[], object]) -> None:
        """Run some work on the thread that scans the sockets."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def watch(self) -> None:
        """Forget what is old, and make room if there are many connections. Runs until cancelled."""
        while True:
            for _ in range(int(WINDOW / LOOK)):
                await asyncio.sleep(LOOK)
                old = time.monotonic() - shares.SECONDS_PENDING.most - LOOK
                self._gone = {peer: since for peer, since in self._gone.items() if since > old}
                await self.make_room()
            self.turn()

    async def make_room(self) -> None:
        """Cut strangers that have been connected for a while, if a quarter of all places is taken."""
        loop = asyncio.get_running_loop()
        ends = await loop.run_in_executor(self._thread, self._look)
        streams = self._staying.keys() | self._listening.keys()
        known = self._let_in[0] | self._let_in[1] | streams if ends else set()
        strangers = await loop.run_in_executor(self._thread, _strangers, ends, known) if ends else []
        looks = {end: self._strangers.get(end, 0) + 1 for end in strangers}
        taken = len(ends) / self.most
        most = LOOKS if taken <= 1 / 2 else HURRIED if taken <= 3 / 4 else 1
        self.doom({end for end, number in looks.items() if number >= most})
        self._strangers = looks

    def say_goodbye(self) -> None:
        """End all delays of refusals."""
        self._over = True
        for waiting in self._late:
            _wake(waiting)

    def turn(self) -> None:
        """Begin a new window, and log what happened in the last one."""
        refused = sum(self._refused.values())
        strangers = self._cut - self._overdrawn
        if strangers > 0 or refused > shares.PROMPT_REFUSALS.most:
            _log.warning(
                "unauthenticated clients call or connect too often",
                calls_refused=refused,
                connections_cut=max(0, strangers),
            )
        if self._overdrawn:
            _log.warning("connections send more bytes than their calls explain", connections_cut=self._overdrawn)
        self._refused.clear()
        self._cut = self._overdrawn = 0
        self._let_in = set(), self._let_in[0]

    def close(self) -> None:
        """Wait for the work in progress."""
        self._thread.shutdown()

    def doom_overdrawn(self, ends: set[End]) -> None:
        """Queue these connections to be cut, because they sent more bytes than their calls explain."""
        new = ends - self._doomed
        self._overdrawn += len(new)
        self.doom(new)

    def doom(self, ends: set[End]) -> None:
        """Queue these connections to be cut."""
        self._doomed |= ends
        if self._doomed:
            self._cutting = self._cutting or asyncio.ensure_future(self._cut_all())

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        # Random, so that calls that arrived together are not answered together, and do not return together.
        timer = loop.call_later(random.uniform(*DELAY), _wake, waiting)  # noqa: S311 - no secret
        self._late.add(waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._late.discard(waiting)

    def _look(self) -> list[End]:
        crowded = self.most // _CROWDED
        if len(sockets.descriptors()) <= crowded:
            return []
        ends = [end for end, _ in sockets.connections(self.port)]
        return ends if len(ends) > crowded else []

    async def _cut_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._doomed:
                ends = frozenset(self._doomed)
                try:
                    cut = await loop.run_in_executor(self._thread, shut_down, self.port, ends)
                except RuntimeError:  # the thread has been shut down
                    return
                self._note_cut(cut)
                await asyncio.sleep(_PAUSE)
                self._doomed -= ends
        finally:
            self._cutting = None

    def _note_cut(self, number: int) -> None:
        self._cut += number
        metrics.CUT.inc(number)


def _network(peer: str) -> str:
    """Return a peer's IP address, or the /64 of an IPv6 address.

    A single machine can have all addresses of a /64.
    """
    address = peer_address(peer)
    if ":" not in address:
        return address
    try:
        whole = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(whole.ipv4_mapped or ipaddress.IPv6Address(int(whole) >> 64 << 64))


def _leave(streams: Counter[str], peer: str, _: object) -> None:
    streams[peer] -= 1
    if not streams[peer]:
        del streams[peer]


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _strangers(ends: Collection[End], known: Collection[str]) -> list[End]:
    kept = {end_of_peer(peer) for peer in known}
    return [end for end in ends if end not in kept]


def end_of_peer(peer: str) -> End:
    """Return the address and port in gRPC's name of a peer.

    The interface of a link-local address is dropped, because sockets do not report it.
    """
    return peer_address(peer).partition("%")[0], peer.rpartition(":")[2]

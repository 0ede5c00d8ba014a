"""What strangers get who are many: refusals that come late, and connections that are cut.

Whoever is let in on a connection is none: a proxy may carry honest calls and hostile ones on the same. Nor is who has a
stream of changes open on it, which may say nothing for hours.
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

import structlog

from tumbler_server import metrics, shares
from tumbler_server.rpc import sockets
from tumbler_server.rpc.auth import peer_address
from tumbler_server.rpc.sockets import End

WINDOW = 10.0
"""Seconds after which refused calls are forgotten; that somebody was let in is known twice as long."""

DELAY = (5.0, 10.0)
"""Seconds that a late refusal waits, somewhere between. As long as it does, it takes a stream of its connection."""

MOST = shares.CONNECTIONS.most
"""How many connections, and how many addresses, are kept at the most."""

_MOST_LET_IN = 8 * MOST
"""How many connections are known at the most on which somebody was let in: some are opened for each call."""

_CROWDED = 4
"""One in how many places has to be taken before strangers have to go who have been there for a while."""

LOOK = 0.5
"""Seconds between two looks at how many connections there are."""

LOOKS, HURRIED = 5, 2
"""A stranger has to go who is there for so many looks: a newcomer has two seconds to be let in, and half a one where
more than half of all places are taken. Of more than three quarters, whoever is met by a look has to go: else nobody
could come."""

_PAUSE = 0.02
"""Seconds between two looks through the process's sockets, and between some that are cut and the next ones."""

_CUT_AT_ONCE = 64

_log = structlog.get_logger(__name__)


def shut_down(port: int, ends: Collection[End]) -> int:
    """Shut down the connections that these have to a port of ours; return how many there were."""
    number = 0
    for end, file in sockets.connections(port):
        if end in ends:
            sockets.hang_up(file)
            number += 1
            if not number % _CUT_AT_ONCE:
                time.sleep(_PAUSE)  # gRPC, too, sees to all of them before it reads what others send
    return number


class Shedding:
    """Knows who was let in and who was refused, by gRPC's names of peers. For one loop's thread.

    ``port`` is the one that is listened on, ``most`` the number of connections that there may be.
    """

    def __init__(self) -> None:
        self.port = 0
        self.most = shares.CONNECTIONS.most
        self.heard: dict[str, int] | None = None
        """While somebody wants to know: how many bytes of messages each peer has brought."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shedding")
        self._refused: Counter[str] = Counter()
        self._late: set[asyncio.Future[None]] = set()
        self._let_in: tuple[set[str], set[str]] = (set(), set())
        self._doomed: set[End] = set()
        self._strangers: dict[End, int] = {}
        self._staying: Counter[str] = Counter()
        self._listening: Counter[str] = Counter()
        self._gone: dict[str, float] = {}
        """Whose connections were cut a moment ago, and when."""
        self._cutting: asyncio.Task[None] | None = None
        self._cut = 0
        self._overdrawn = 0
        self._over = False

    def let_in(self, peer: str) -> None:
        """Note that a call from this connection had a credential that counts."""
        if len(self._let_in[0]) < _MOST_LET_IN:
            self._let_in[0].add(peer)

    def has_been_let_in(self, peer: str) -> bool:
        """Say whether a call from this connection had a credential that counts, some ten to twenty seconds ago."""
        return peer in self._let_in[0] or peer in self._let_in[1] or peer in self._staying

    def stay(self, peer: str, stranger: bool = False) -> Callable[[object], None]:
        """Note a stream on this connection, which may say nothing for hours; return what to call when it has ended.

        A stranger's keeps the connection from having to make room, and from nothing else.
        """
        streams = self._listening if stranger else self._staying
        streams[peer] += 1
        return functools.partial(_leave, streams, peer)

    async def refuse(self, peer: str) -> None:
        """Note that a call from this connection is refused, and return when the caller may be told."""
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
        """End the connection, unless somebody was let in on it; with ``whoever``, even then, and before we return."""
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
        """Say whether a call's connection was cut a moment ago: those that wait to be taken up still come."""
        return bool(self._gone) and str(call.peer(), "utf-8") in self._gone

    def strangers(self, ends: Collection[End]) -> list[End]:
        """Return those on whose connections nobody was let in. For all threads."""
        # Each of these becomes a list at once: none can change meanwhile.
        return _strangers(ends, {*chain([*self._let_in[0]], [*self._let_in[1]], [*self._staying])})

    async def aside(self, work: Callable[[], object]) -> None:
        """Do some work on the thread that looks through the sockets."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def watch(self) -> None:
        """Forget what is old, and make room where connections are many, until cancelled."""
        while True:
            for _ in range(int(WINDOW / LOOK)):
                await asyncio.sleep(LOOK)
                old = time.monotonic() - shares.SECONDS_PENDING.most - LOOK
                self._gone = {peer: since for peer, since in self._gone.items() if since > old}
                await self.make_room()
            self.turn()

    async def make_room(self) -> None:
        """Cut the connections of strangers who have been there for a while, where a quarter of all places are taken."""
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
        """Have nobody wait any more."""
        self._over = True
        for waiting in self._late:
            _wake(waiting)

    def turn(self) -> None:
        """Begin a new window, and log what happened in the one before."""
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
        """Finish what is under way."""
        self._thread.shutdown()

    def doom_overdrawn(self, ends: set[End]) -> None:
        """Have the connections of these ended, which brought more than their calls explain."""
        new = ends - self._doomed
        self._overdrawn += len(new)
        self.doom(new)

    def doom(self, ends: set[End]) -> None:
        """Have the connections of these ended."""
        self._doomed |= ends
        if self._doomed:
            self._cutting = self._cutting or asyncio.ensure_future(self._cut_all())

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        # At random: calls that came together are not to be told together, nor their callers' next ones to come so.
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
                except RuntimeError:  # it has been closed
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
    """Return a peer's address; of an IPv6 one the first 64 bits: a single machine can have all that begin so."""
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
    """Return whom gRPC calls so; a socket does not tell the interface that a link-local address belongs to."""
    return peer_address(peer).partition("%")[0], peer.rpartition(":")[2]

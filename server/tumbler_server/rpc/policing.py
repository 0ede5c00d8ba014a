"""Connections that keep gRPC from reading the others: they are found by what they send, silenced, and cut later.

A thread of gRPC's that reads a connection goes on for as long as there is something to read. It has few of them, and
makes no more than one a second: two peers that send without end stop a server of few cores for as long.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog

from tumbler_server import metrics, shares
from tumbler_server.rpc import sockets
from tumbler_server.rpc.shedding import Shedding, end_of_peer
from tumbler_server.rpc.sockets import End

LOOK = 0.01
"""Seconds between two looks at how busy gRPC is. They are taken on the loop, and cost it some microseconds each."""

SILENCE = 10.0
"""Seconds after which who is silenced is cut."""

_BUSY = 0.5
"""The share of a core that gRPC's threads take, below which none of them has been reading all the time."""

_GREETING = 1 << 20
"""Bytes that may come on a connection beyond its rate: a hundred calls' headers, 10 KiB each, may wait for the loop;
and of messages that nobody has asked for yet gRPC takes in some (``grpc.http2.lookahead_bytes``)."""

_TRICKLE = 0.02
"""The share of the rate below which a stranger is none of those who divide it up."""

_MOMENT = 0.05
"""Seconds after which it says nothing how much has come since."""

_REST = 5
"""So many times the processor's time that it took to look through the connections passes until they are again."""

_OLD = 1.0
"""Seconds after which it says nothing what a connection had received."""

_THREADS = "/proc/self/task"
_TRAFFIC, _TRAFFIC_6 = Path("/proc/self/net/netstat"), Path("/proc/self/net/snmp6")

_log = structlog.get_logger(__name__)


class Readers:
    """Knows how busy the threads are that read what peers send. They are those that Python has not made."""

    def __init__(self) -> None:
        self._clocks: list[int] = []
        self._found = -_OLD
        self._looked = 0.0
        self._used = 0.0

    def are_busy(self) -> bool:
        """Say whether one of them may have been reading all the time since this was last asked."""
        now = time.monotonic()
        if now - self._found > _OLD:
            self._found, self._clocks, self._used = now, _clocks(), 0.0
        used = 0.0
        for clock in self._clocks:
            with contextlib.suppress(OSError):  # the thread has ended
                used += time.clock_gettime(clock)
        before, self._used = self._used, used
        looked, self._looked = self._looked, now
        return before > 0 and used - before > _BUSY * (now - looked)


class Traffic:
    """Knows how much comes to this machine, or to this container."""

    def __init__(self) -> None:
        self._came = self._looked = 0.0

    def may_be_much(self) -> bool:
        """Say whether one of all connections may have sent too much since this was last asked, or in a moment past."""
        now = time.monotonic()
        came = _came()
        before, self._came = self._came, came
        looked, self._looked = self._looked, now
        since = now - looked
        return since > _MOMENT or came - before > shares.UNEXPLAINED_RATE.most * since


class Policing:
    """Ends what keeps gRPC busy with bytes that are no calls. For one loop's thread; on Linux only.

    Strangers who send without end are silenced, and cut later: were they cut at once, they would be back at once, and
    gRPC reads those first who came last. Where somebody was let in, which may be a proxy, what came is held against the
    messages that it brought, and what is still awaited; the connection is cut if that does not explain it.

    ``awaited`` tells for how many bytes of messages each peer is listened to now.
    """

    def __init__(
        self, shedding: Shedding, awaited: Callable[[], Mapping[str, int]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shedding = shedding
        self._awaited = awaited
        self._clock = clock
        self._received: dict[End, int] = {}
        self._unexplained: dict[End, float] = {}
        """Of those on whose connections somebody was let in."""
        self._strange: dict[End, float] = {}
        """Of all others."""
        self._looked = self._took = 0.0
        self._silenced: dict[End, float] = {}

    async def watch(self) -> None:
        """Look what is sent whenever gRPC is kept busy, until cancelled."""
        if sys.platform != "linux":
            return
        readers, traffic = Readers(), Traffic()
        try:
            while True:
                await asyncio.sleep(LOOK)
                # In this order: each question costs a hundred times the one before.
                if readers.are_busy() and traffic.may_be_much():
                    await self.look()
                    await asyncio.sleep(_REST * self._took - LOOK)
                elif self._clock() - self._looked > _OLD:
                    self._shedding.heard = None
                if self._silenced and min(self._silenced.values()) < self._clock() - SILENCE:
                    await self._shedding.aside(self.cut)
        finally:
            self._cut(self._silenced)

    async def look(self) -> None:
        """Judge what has come on each connection since the last look."""
        heard, self._shedding.heard = self._shedding.heard or {}, {}
        await self._shedding.aside(lambda: self._look({end_of_peer(peer): size for peer, size in heard.items()}))
        if most := max(self._unexplained.values(), default=0.0):
            if most < _GREETING:
                return
            awaited = Counter({end_of_peer(peer): size for peer, size in self._awaited().items()})
            for peer, size in self._shedding.heard.items():  # what has ended while we looked
                awaited[end_of_peer(peer)] += size
            self._shedding.doom_overdrawn(
                {end for end, size in self._unexplained.items() if size > _GREETING + awaited[end]}
            )

    def _look(self, heard: Mapping[End, int]) -> None:
        began = time.thread_time()
        now, port = self._clock(), self._shedding.port
        since, self._looked = now - self._looked, now
        here = {end: (file, sockets.received(file)) for end, file in sockets.connections(port)}
        before, self._received = self._received, {end: size for end, (_, size) in here.items()}
        self._took = time.thread_time() - began
        if since > _OLD:
            self._unexplained, self._strange = {}, {}
            return
        came = {end: size - before.get(end, 0) for end, size in self._received.items()}
        rate = since * shares.UNEXPLAINED_RATE.most
        talking = {end for end, size in came.items() if size > _TRICKLE * rate}
        talking |= self._strange.keys() & came.keys()
        strangers = set(self._shedding.strangers(talking)) if talking else set()
        # Strangers have the rate together: who opens a hundred connections is not a hundred times as welcome.
        owed = _debts(self._strange, came, dict.fromkeys(strangers, rate / max(1, len(strangers))))
        for end in [end for end, debt in owed.items() if debt > _GREETING]:
            del owed[end]
            file, _ = here[end]
            if sockets.end_of(file, port) == end:  # it may have ended meanwhile, and the file be another one
                sockets.silence(file)
                self._silenced[end] = now
        self._strange = owed
        known = {end for end in talking - strangers if came[end] > rate} | self._unexplained.keys() & came.keys()
        self._unexplained = _debts(
            self._unexplained, came, {end: rate + heard.get(end, 0) for end in known - strangers}
        )

    def cut(self) -> None:
        """Cut those who have been silenced for long enough."""
        over = self._clock() - SILENCE
        self._cut([end for end, since in self._silenced.items() if since < over])

    def _cut(self, ends: Collection[End]) -> None:
        for end, file in sockets.connections(self._shedding.port) if ends else ():
            if end in ends and sockets.hear(file):  # else it is another one of the same name
                sockets.hang_up(file)
        metrics.CUT.inc(len(ends))
        if ends:
            _log.warning("unauthenticated clients sent without a pause", connections_cut=len(ends))
        for end in list(ends):
            del self._silenced[end]


def _debts(before: Mapping[End, float], came: Mapping[End, int], explained: Mapping[End, float]) -> dict[End, float]:
    debts = {end: before.get(end, 0) + came[end] - size for end, size in explained.items()}
    return {end: debt for end, debt in debts.items() if debt > 0}


def _clocks() -> list[int]:
    """Return the CPU clocks of the threads that Python has not made, as pthread_getcpuclockid(3) composes them."""
    ours = {thread.native_id for thread in threading.enumerate()}
    try:
        threads = [int(name) for name in os.listdir(_THREADS)]
    except OSError:  # no more files may be opened: the next look will tell
        return []
    return [~thread << 3 | 6 for thread in threads if thread not in ours]


def _came() -> float:
    """Return how many bytes have come by IP; where the system does not tell, each time more than can be sent."""
    try:
        lines = _TRAFFIC.read_bytes().splitlines()
        names, values = (line.split() for line in lines if line.startswith(b"IpExt:"))
        came = int(values[names.index(b"InOctets")])
        if _TRAFFIC_6.exists():
            _, came_6 = next(line.split() for line in _TRAFFIC_6.read_bytes().splitlines() if b"Ip6InOctets" in line)
            came += int(came_6)
    except (OSError, ValueError, StopIteration):
        return time.monotonic() * sys.maxsize
    return came

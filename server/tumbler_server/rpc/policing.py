"""Stops connections that keep gRPC from reading the others: they are found by what they send, silenced, and cut later.

A thread of gRPC stays with one connection as long as there is something to read. gRPC has few such threads, and adds at
most one a second: on a server with few cores, two peers that send without a pause block all others for that long.
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

from tumbler_server import logs, metrics, shares
from tumbler_server.rpc import sockets
from tumbler_server.rpc.shedding import Shedding, end_of_peer
from tumbler_server.rpc.sockets import End

LOOK = 0.01
"""Seconds between two checks of how busy gRPC is. They run on the loop, and take a few microseconds each."""

CALM_LOOK = 0.04
"""Seconds between two checks while the whole process is nearly idle: an idle server shall cost nothing to speak of."""

_CALM = 0.1
"""Share of a core. If the process uses less, it is nearly idle."""

SILENCE = 10.0
"""Seconds after which a silenced connection is cut."""

_BUSY = 0.5
"""Share of a core. If gRPC's threads use less, none of them has been reading all the time."""

_GREETING = 1 << 20
"""Bytes that a connection may send beyond its rate. The headers of a hundred calls, 10 KiB each, may wait for the
loop, and gRPC reads some of each message before the server asks for it (``grpc.http2.lookahead_bytes``)."""

_TRICKLE = 0.02
"""Share of the rate. Strangers that send less are not counted when the rate is divided."""

_MOMENT = 0.05
"""Seconds after which the traffic since the last check proves nothing."""

_REST = 5
"""The pause between two scans of the connections, as a multiple of the processor time that a scan takes."""

_OLD = 1.0
"""Seconds after which an earlier reading is too old to compare with."""

_THREADS = "/proc/self/task"
_TRAFFIC, _TRAFFIC_6 = Path("/proc/self/net/netstat"), Path("/proc/self/net/snmp6")

_log = logs.get_logger(__name__)


class Readers:
    """Measures how busy the threads are that read what peers send: all threads that Python did not create."""

    def __init__(self) -> None:
        self._clocks: list[int] = []
        self._found = -_OLD
        self._looked = 0.0
        self._used = 0.0
        self._spent = 0.0
        self.pause = LOOK
        """Seconds after which to ask again."""

    def are_busy(self) -> bool:
        """Return whether one of them may have been reading without a pause since the last call."""
        now, spent = time.monotonic(), time.process_time()
        looked, self._looked = self._looked, now
        before, self._spent = self._spent, spent
        since = now - looked
        calm = spent - before < _CALM * since
        self.pause = CALM_LOOK if calm else LOOK
        if calm:  # no thread uses more than the process
            self._used = 0.0
            return False
        if now - self._found > _OLD:
            self._found, self._clocks, self._used = now, _clocks(), 0.0
        used = 0.0
        for clock in self._clocks:
            with contextlib.suppress(OSError):  # the thread has ended
                used += time.clock_gettime(clock)
        before, self._used = self._used, used
        return before > 0 and used - before > _BUSY * since


class Traffic:
    """Measures how much traffic arrives at this machine, or this container."""

    def __init__(self) -> None:
        self._came = self._looked = 0.0

    def may_be_much(self) -> bool:
        """Return whether one connection may have sent too much since the last call; True if that was too long ago."""
        now = time.monotonic()
        came = _came()
        before, self._came = self._came, came
        looked, self._looked = self._looked, now
        since = now - looked
        return since > _MOMENT or came - before > shares.UNEXPLAINED_RATE.most * since


class Policing:
    """Stops connections that keep gRPC busy with bytes that are not calls. Linux only.

    Strangers that send without a pause are silenced, and cut later. If they were cut immediately, they would return
    immediately, and gRPC reads the newest connections first. A connection with an authenticated caller may be a proxy.
    Its bytes are compared with the calls that arrived on it and the messages that are still expected. If these do not
    explain the bytes, the connection is cut.

    ``awaited`` returns how many bytes of messages the server currently accepts from each peer. Use this on the loop's
    thread only.
    """

    def __init__(
        self, shedding: Shedding, awaited: Callable[[], Mapping[str, int]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shedding = shedding
        self._awaited = awaited
        self._clock = clock
        self._received: dict[End, int] = {}
        self._unexplained: dict[End, float] = {}
        """Bytes that calls do not explain, of connections with an authenticated caller."""
        self._strange: dict[End, float] = {}
        """Bytes beyond the rate, of strangers."""
        self._looked = self._took = 0.0
        self._silenced: dict[End, float] = {}

    async def watch(self) -> None:
        """Check what peers send whenever gRPC is busy. Runs until cancelled."""
        if sys.platform != "linux":
            return
        readers, traffic = Readers(), Traffic()
        try:
            while True:
                await asyncio.sleep(readers.pause)
                # In this order: each check costs a hundred times the one before.
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
        """Judge what has arrived on each connection since the last look."""
        heard, self._shedding.heard = self._shedding.heard or {}, {}
        await self._shedding.aside(lambda: self._look({end_of_peer(peer): size for peer, size in heard.items()}))
        if most := max(self._unexplained.values(), default=0.0):
            if most < _GREETING:
                return
            awaited = Counter({end_of_peer(peer): size for peer, size in self._awaited().items()})
            for peer, size in self._shedding.heard.items():  # calls that arrived during the scan
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
        # Strangers share the rate, so that a hundred connections get no more than one.
        owed = _debts(self._strange, came, dict.fromkeys(strangers, rate / max(1, len(strangers))))
        for end in [end for end, debt in owed.items() if debt > _GREETING]:
            del owed[end]
            file, _ = here[end]
            if sockets.end_of(file, port) == end:  # the descriptor may be another connection's by now
                sockets.silence(file)
                self._silenced[end] = now
        self._strange = owed
        known = {end for end in talking - strangers if came[end] > rate} | self._unexplained.keys() & came.keys()
        self._unexplained = _debts(
            self._unexplained, came, {end: rate + heard.get(end, 0) for end in known - strangers}
        )

    def cut(self) -> None:
        """Cut the connections that have been silenced long enough."""
        over = self._clock() - SILENCE
        self._cut([end for end, since in self._silenced.items() if since < over])

    def _cut(self, ends: Collection[End]) -> None:
        for end, file in sockets.connections(self._shedding.port) if ends else ():
            if end in ends and sockets.hear(file):  # otherwise it is a new connection from the same address and port
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
    """Return the CPU clocks of the threads that Python did not create, as pthread_getcpuclockid(3) builds them."""
    ours = {thread.native_id for thread in threading.enumerate()}
    try:
        threads = [int(name) for name in os.listdir(_THREADS)]
    except OSError:  # too many open files: the next check tries again
        return []
    return [~thread << 3 | 6 for thread in threads if thread not in ours]


def _came() -> float:
    """Return how many bytes have arrived by IP.

    If the system does not report that, return a number that grows faster than any traffic.
    """
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

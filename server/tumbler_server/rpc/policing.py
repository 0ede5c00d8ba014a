"""Connections that keep gRPC from reading the others: they are found by what they send, and cut.

A thread of gRPC's that reads a connection goes on for as long as there is something to read. It has few of them, and
makes no more than one a second: two peers that send without end stop a server of few cores for as long.
"""

import contextlib
import ctypes
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from socket import IPPROTO_TCP, SHUT_RDWR, SOL_SOCKET, socket

import structlog

from tumbler_server import metrics, shares
from tumbler_server.rpc.shedding import End, Shedding, connections

LOOK = 0.01
"""Seconds between two looks; longer where there are so many connections that looking takes a sixth of a core."""

_REST = 5
"""So many times as long as a look took it rests at least."""

_BUSY = 0.2
"""The share of a core that this process takes, below which no thread of it can have been reading all the time."""

_ALL_THE_TIME = 0.95
"""The share of the time since the last look for which a thread that reads without end has been running, or ready to."""

SILENCE = 10.0
"""Seconds after which who is silenced is cut."""

_ALARM = 2 * SILENCE
"""Seconds for which it looks on: they may come again."""

_LEAST = 128 << 10
"""Bytes since the last look below which nobody is silenced. A newcomer may say half of that before it is listened to:
as much as gRPC takes in of messages that nobody has asked for yet (``grpc.http2.lookahead_bytes``)."""

_TCP_INFO = 11
_RECEIVED = slice(128, 136)
"""Where ``struct tcp_info`` of linux/tcp.h has the bytes received, since Linux 4.1."""

_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _BPF_RET = 26, 27, 6
"""See socket(7), and linux/filter.h."""

_THREADS = Path("/proc/self/task")

_log = structlog.get_logger(__name__)


class Readers:
    """Knows which threads of gRPC's have not paused since the last look. They are those that Python has not made."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._used = time.process_time()
        self._ready: dict[str, int] = {}

    def stuck(self) -> int:
        """Return how many threads have been running, or ready to run, ever since this was last asked."""
        now, used = time.monotonic(), time.process_time()
        since, share = now - self._looked, (used - self._used) / max(now - self._looked, 1e-6)
        self._looked, self._used = now, used
        if share < _BUSY:
            self._ready = {}
            return 0
        before, self._ready = self._ready, _ready()
        most = since * _ALL_THE_TIME * 1e9
        return sum(time - before.get(thread, time) >= most for thread, time in self._ready.items())


class Policing:
    """Silences those who send without end, and cuts them later; on a thread of its own, and on Linux only.

    Were they cut at once, they would be back at once, and gRPC reads those first who came last. Who was let in is
    spared: a proxy may carry honest calls and hostile ones on the same connection.
    """

    def __init__(self, shedding: Shedding, clock: Callable[[], float] = time.monotonic) -> None:
        self._shedding = shedding
        self._clock = clock
        self._readers = Readers()
        self._received: Mapping[End, int] = {}
        self._looked = 0.0
        self._silenced: dict[End, float] = {}
        self._next_cut = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="policing", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        if sys.platform == "linux":
            self._thread.start()

    def close(self) -> None:
        """Look no more, and cut those who are silenced."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._cut(list(self._silenced))

    def _watch(self) -> None:
        rest, alarm = LOOK, 0.0
        while not self._over.wait(rest):
            rest, now = LOOK, self._clock()
            if self._readers.stuck():
                alarm = now + _ALARM
            if now > alarm:
                self._received = {}
                continue
            began = time.thread_time()
            if self.look():
                alarm = now + _ALARM
            rest = max(LOOK, _REST * (time.thread_time() - began))

    def look(self) -> int:
        """Silence those strangers who have sent more since the last look than they may; return how many there were."""
        now, port = self._clock(), self._shedding.port
        since, self._looked = now - self._looked, now
        if now > self._next_cut:
            self._next_cut = now + 1.0
            self._cut([end for end, silenced in self._silenced.items() if silenced < now - SILENCE])
        before, self._received = self._received, _received(port)
        if not before:
            return 0  # nobody knows how long it took them
        most = max(_LEAST, since * shares.STRANGERS_RATE.most)
        many = {end for end, size in self._received.items() if size - before.get(end, 0) > most}
        strangers = self._shedding.strangers(many) if many else ()
        for end, connection in connections(port) if strangers else ():
            if end in strangers:
                _silence(connection)
                self._silenced[end] = now
        return len(strangers)

    def _cut(self, ends: Sequence[End]) -> None:
        for end, connection in connections(self._shedding.port) if ends else ():
            if end in ends:
                with contextlib.suppress(OSError):  # it has ended meanwhile; or it is another one, which has no filter
                    connection.setsockopt(SOL_SOCKET, _SO_DETACH_FILTER, 0)
                    connection.shutdown(SHUT_RDWR)
        for end in ends:
            del self._silenced[end]
        metrics.CUT.inc(len(ends))
        if ends:
            _log.warning("strangers sent without end", connections_cut=len(ends))


def _silence(connection: socket) -> None:
    """Have the system drop whatever the peer sends from now on: it is neither told nor heard."""
    drop = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
    with contextlib.suppress(OSError):  # it has ended meanwhile
        connection.setsockopt(SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop)))


def _ready() -> dict[str, int]:
    """Return for how many nanoseconds each thread that Python has not made has been running, or ready to."""
    ours = {str(thread.native_id) for thread in threading.enumerate()}
    ready = {}
    for name in os.listdir(_THREADS):
        if name not in ours:
            with contextlib.suppress(OSError):  # it has ended meanwhile, or the system does not count that
                running, waiting, _ = (_THREADS / name / "schedstat").read_bytes().split()
                ready[name] = int(running) + int(waiting)
    return ready


def _received(port: int) -> dict[End, int]:
    received = {}
    for end, connection in connections(port):
        try:
            told = connection.getsockopt(IPPROTO_TCP, _TCP_INFO, _RECEIVED.stop)
        except OSError:  # it has ended meanwhile
            continue
        received[end] = int.from_bytes(told[_RECEIVED], sys.byteorder)
    return received

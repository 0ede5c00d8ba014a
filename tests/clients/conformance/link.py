"""A TCP proxy before a server, which can cut, refuse, stall, hold back and slow down its connections."""

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import deque

_CHUNK = 65_536

LAG_RATE = 0.4
"""Seconds that the delay grows per second. It is small enough that messages a second apart do not count as silence."""

MOST_LAG = 6.0

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with a timeout of zero: closing resets the connection, like a broken network."""


class Link:
    """Passes bytes between the clients of ``address`` and a server. Close it at the end."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._ways = threading.Event()
        self._ways.set()
        self._lag_from: float | None = None
        self._delays = {"client": 0.0, "server": 0.0}
        self._held_back: set[socket.socket] = set()
        self._holds = threading.Condition()
        self._lock = threading.Lock()
        self._passing = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = self._listen(0)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._let_pass()

    def cut(self) -> None:
        """Reset every connection. New ones are accepted."""
        with self._lock:
            for near in self._open:
                with contextlib.suppress(OSError):
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    near.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it

    def refuse(self) -> None:
        """Reset every connection, and refuse new ones until ``heal``."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self.cut()

    def stall(self) -> None:
        """Hold back every byte, also on new connections, until ``heal``. Neither end notices. No byte is in transit."""
        with self._passing:
            self._ways.clear()

    def hold_back(self) -> None:
        """Hold back every byte of the connections that are open, until ``swap`` or ``heal``. New ones work."""
        with self._holds, self._lock:
            self._held_back = set(self._open)

    def swap(self) -> None:
        """Let the connections that are held back go on, the held bytes first, and hold back all others instead."""
        with self._holds, self._lock:
            self._held_back = self._open - self._held_back
            self._holds.notify_all()

    def delay(self, *to: str, by: float) -> None:
        """Delay all bytes to the ``"client"``, to the ``"server"``, or to both, by this many seconds from now on."""
        for end in to:
            self._delays[end] = by

    def lag(self) -> None:
        """Delay the server's bytes from now on, by ever more, up to ``MOST_LAG`` seconds. None is lost."""
        self._lag_from = time.monotonic()

    @property
    def late(self) -> float:
        """The present delay of the server's bytes, in seconds."""
        since = self._lag_from
        return 0.0 if since is None else min(MOST_LAG, (time.monotonic() - since) * LAG_RATE)

    def heal(self) -> None:
        """Pass bytes again, the held ones first, and accept new connections."""
        if self._listener.fileno() < 0:
            self._listener = self._listen(int(self.address.rpartition(":")[2]))
        self._let_pass()

    def _let_pass(self) -> None:
        self._ways.set()
        self._delays = dict.fromkeys(self._delays, 0.0)
        with self._holds:
            self._held_back = set()
            self._holds.notify_all()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), name="link", daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if listener.fileno() < 0:  # it arrived while connections were refused
                    near.close()
                    return
                self._open.add(near)
            threading.Thread(target=self._pass, args=(near,), name="link", daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            near,
            socket.create_connection(self._server) as far,
            selectors.DefaultSelector() as ready,
        ):
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            late: dict[socket.socket, deque[tuple[float, bytes]]] = {near: deque(), far: deque()}
            while self._carry(ready, late, near, far):
                pass
        with self._lock:
            self._open.discard(near)

    def _carry(
        self,
        ready: selectors.BaseSelector,
        late: dict[socket.socket, deque[tuple[float, bytes]]],
        near: socket.socket,
        far: socket.socket,
    ) -> bool:
        """Pass on the bytes that have arrived and are due. Return whether more can follow."""
        due = [chunks[0][0] for chunks in late.values() if chunks]
        for arrived, _ in ready.select(max(0.0, min(due) - time.monotonic()) if due else None):
            assert isinstance(arrived.fileobj, socket.socket)
            chunk = arrived.fileobj.recv(_CHUNK)
            delay = self._delays["client"] + self.late if arrived.fileobj is far else self._delays["server"]
            late[arrived.data].append((time.monotonic() + delay, chunk))
            if not chunk:
                ready.unregister(arrived.fileobj)  # its end is passed on after all earlier bytes
        for to, chunks in late.items():
            while chunks and chunks[0][0] <= time.monotonic():
                if not self._passed(near, to, chunks.popleft()[1]):
                    return False
        return True

    def _passed(self, near: socket.socket, to: socket.socket, chunk: bytes) -> bool:
        """Pass a chunk on. Return whether it was not the end."""
        with self._holds:
            self._holds.wait_for(lambda: near not in self._held_back)
        while not self._send(to, chunk):
            self._ways.wait()
        return bool(chunk)

    def _send(self, to: socket.socket, chunk: bytes) -> bool:
        with self._passing:
            if not self._ways.is_set():
                return False
            to.sendall(chunk)
            return True

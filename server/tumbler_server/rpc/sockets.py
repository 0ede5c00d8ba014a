"""Access to this process's sockets, because gRPC offers no way to look at a connection of a server, or to end it.

The C library is called without releasing the interpreter lock. Each call takes less than a microsecond. Releasing the
lock and taking it again takes a hundred times that while the loop is busy, and there may be thousands of sockets.
"""

import ctypes
import ipaddress
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

_SLICE, _BREATH = 128, 0.001
"""The number of sockets to look at between two pauses, which takes at most a millisecond, and the seconds of a
pause."""

_DESCRIPTORS = "/dev/fd"

_TCP_INFO = 11
_RECEIVED = slice(128, 136)
"""Where ``struct tcp_info`` of linux/tcp.h has the bytes received, since Linux 4.1."""

_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_ACCEPTCONN, _BPF_RET = 26, 27, 30, 6
"""See socket(7), and linux/filter.h."""

_ALL = 1 << 30
"""More bytes than a socket holds."""

End = tuple[str, str]
"""The remote end of a connection: its address and its port."""

_c = ctypes.PyDLL(None)


def descriptors() -> list[int]:
    """Return this process's open files; none if no more may be opened, not even to list them."""
    try:
        return [int(name) for name in os.listdir(_DESCRIPTORS)]
    except OSError:
        return []


def connections(port: int) -> Iterator[tuple[End, int]]:
    """Yield the remote end and the file of each connection to a port of ours. Pauses if there are many files."""
    look = _Look(port)
    for number, file in enumerate(descriptors(), 1):
        if not number % _SLICE:
            time.sleep(_BREATH)  # lets the loop take the interpreter in between
        if (end := look.end_of(file)) is not None:
            yield end, file


def file_of(end: End, port: int) -> int | None:
    """Return the file of a connection to a port of ours. Does not pause: takes a millisecond per thousand files."""
    look = _Look(port)
    return next((file for file in descriptors() if look.end_of(file) == end), None)


def end_of(file: int, port: int) -> End | None:
    """Return the remote end of a connection to a port of ours; None if it is not one, or has ended."""
    return _Look(port).end_of(file)


def received(file: int) -> int:
    """Return how many bytes a connection has received; 0 if it has ended. Linux only."""
    told = ctypes.create_string_buffer(_RECEIVED.stop)
    size = ctypes.c_uint32(_RECEIVED.stop)
    if _c.getsockopt(file, socket.IPPROTO_TCP, _TCP_INFO, told, ctypes.byref(size)):
        return 0
    return int.from_bytes(told.raw[_RECEIVED], sys.byteorder)


def silence(file: int) -> None:
    """Drop whatever the peer sends from now on, without telling it. Linux only."""
    drop = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop))
    _c.setsockopt(file, socket.SOL_SOCKET, _SO_ATTACH_FILTER, program, len(program))
    _discard(file)


def stop_listening(port: int) -> None:
    """Accept no more connections to a port of ours. To gRPC, accepting has failed. Linux only."""
    look = _Look(port)
    for file in descriptors():
        if look.listens(file):
            _c.shutdown(file, socket.SHUT_RDWR)


def finish(file: int) -> None:
    """Close our side of a connection, after all data sent on it. The peer can then only hang up."""
    _c.shutdown(file, socket.SHUT_WR)


def hear(file: int) -> bool:
    """Stop dropping what the peer sends, and return whether it was silenced. Linux only."""
    return not _c.setsockopt(file, socket.SOL_SOCKET, _SO_DETACH_FILTER, bytes(4), 4)


def hang_up(file: int) -> None:
    """Shut a connection down. To gRPC the peer has hung up: it ends the calls, also those not accepted yet.

    The file is gRPC's own descriptor, and never a copy. If a copy turned out to be of SQLite's file, closing it would
    drop the locks that this process has on that file.
    """
    _c.shutdown(file, socket.SHUT_RDWR)
    _discard(file)


def _discard(file: int) -> None:
    """Drop the data that has arrived and was not read. It may be megabytes, and gRPC would read all of it first."""
    if sys.platform == "linux":
        _c.recv(file, None, ctypes.c_size_t(_ALL), socket.MSG_TRUNC | socket.MSG_DONTWAIT)


class _Look:
    """Finds the remote ends of connections."""

    def __init__(self, port: int) -> None:
        self._port = port.to_bytes(2, "big")
        self._told = ctypes.create_string_buffer(128)  # a struct sockaddr of any family
        self._size = ctypes.c_uint32()

    def listens(self, file: int) -> bool:
        if self._ask(_c.getsockname, file)[2:4] != self._port:
            return False
        told, size = ctypes.c_int(), ctypes.c_uint32(ctypes.sizeof(ctypes.c_int))
        failed = _c.getsockopt(file, socket.SOL_SOCKET, _SO_ACCEPTCONN, ctypes.byref(told), ctypes.byref(size))
        return not failed and bool(told.value)

    def end_of(self, file: int) -> End | None:
        ours = self._ask(_c.getsockname, file)
        if ours[2:4] != self._port:
            return None
        told = self._ask(_c.getpeername, file)
        family = int.from_bytes(told[1:2] if sys.platform == "darwin" else told[:2], sys.byteorder)
        port = str(int.from_bytes(told[2:4], "big"))
        if family == socket.AF_INET:
            return socket.inet_ntoa(told[4:8]), port
        if family == socket.AF_INET6:
            host = ipaddress.IPv6Address(told[8:24])
            return str(host.ipv4_mapped or host), port
        return None

    def _ask(self, name: Any, file: int) -> bytes:
        self._size.value = len(self._told)
        return b"" if name(file, self._told, ctypes.byref(self._size)) else self._told.raw

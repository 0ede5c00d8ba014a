"""Limits what is kept of a call's headers: as much as is allowed, and the size of all.

gRPC accepts whatever is sent, and with HPACK a single byte may stand for a header of 4 KiB that was sent once. Its
bindings create objects for all headers before the server can look: 4 KiB became 16 MiB.
"""

from collections.abc import Callable
from threading import get_ident

from grpc._cython import cygrpc

from tumbler_server import shares

_MOST = shares.HEADER_BYTES.most

_LEFT_OUT = ("", "")


class Headers:
    """Measures and limits the headers that arrive on the thread that calls ``begin``."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes of names and values of the headers since this was last set to zero."""
        self.thread = 0

    def begin(self) -> None:
        """Create the headers that arrive on this thread, instead of gRPC's bindings."""
        self.thread = get_ident()
        _by_thread[self.thread] = self

    def end(self) -> None:
        """Leave that to the bindings again."""
        _by_thread.pop(self.thread, None)


_by_thread: dict[int, Headers] = {}

_theirs: Callable[[str, str | bytes], tuple[str, str | bytes]] = cygrpc._Metadatum


def _take(name: str, value: str | bytes) -> tuple[str, str | bytes]:
    """Return a header as handlers expect it, or an empty one after the allowed size."""
    headers = _by_thread.get(get_ident())
    if headers is None:  # headers that a client receives
        return _theirs(name, value)
    before = headers.size
    headers.size = before + len(name) + len(value)
    return (name, value) if before <= _MOST else _LEFT_OUT


cygrpc._Metadatum = _take

"""What is kept of a call's headers: as much as is allowed, and how much there was.

gRPC takes in whatever comes over the wire, where a single byte may stand for a header of 4 KiB that was sent once
(HPACK). Its bindings make objects of all of them before anybody can look: 4 KiB became 16 MiB.
"""

from threading import get_ident

from grpc._cython import cygrpc

from tumbler_server import shares

_MOST = shares.HEADER_BYTES.most

_LEFT_OUT = ("", "")


class Headers:
    """How much of headers has come to the thread that calls ``begin``, and what is made of each of them there."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes of names and values of the headers since this was last set to zero."""
        self.thread = 0

    def begin(self) -> None:
        """Stand where gRPC's bindings have their class of a header, for this thread."""
        self.thread = get_ident()
        _by_thread[self.thread] = self

    def end(self) -> None:
        """Leave it to the bindings again."""
        _by_thread.pop(self.thread, None)


_by_thread: dict[int, Headers] = {}

_theirs = cygrpc._Metadatum


def _take(name: str, value: str | bytes) -> tuple[str, str | bytes]:
    """Return a header as handlers have it; nothing of one that comes after more than is allowed."""
    headers = _by_thread.get(get_ident())
    if headers is None:  # what a client is told
        return _theirs(name, value)  # type: ignore[no-any-return]
    before = headers.size
    headers.size = before + len(name) + len(value)
    return (name, value) if before <= _MOST else _LEFT_OUT


cygrpc._Metadatum = _take

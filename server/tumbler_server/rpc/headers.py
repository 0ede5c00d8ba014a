"""What is kept of a call's headers: as much as is allowed, and how much there was.

gRPC takes in whatever comes over the wire, where a single byte may stand for a header of 4 KiB that was sent once
(HPACK). Its bindings make objects of all of them before anybody can look: 4 KiB became 16 MiB.
"""

from grpc._cython import cygrpc

from tumbler_server import shares

_MOST = shares.HEADER_BYTES.most

_LEFT_OUT = ("", "")


class Headers:
    """Stands where gRPC's bindings have their class of a header, for the calls that one loop's thread takes up."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes of names and values of the headers since this was last set to zero."""
        cygrpc._Metadatum = self.take

    def take(self, name: str, value: str | bytes) -> tuple[str, str | bytes]:
        """Return a header as handlers have it; nothing of one that comes after more than is allowed."""
        before = self.size
        self.size = before + len(name) + len(value)
        return (name, value) if before <= _MOST else _LEFT_OUT

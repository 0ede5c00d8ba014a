"""Ports: whether an address is free, and a port that several processes share.

A host may have several addresses, as ``localhost`` does. gRPC listens on those that it gets and is content with one.
Its calls would then reach this server or another, depending on the address that a client tries first.
"""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

from tumbler_server.errors import CannotListen, SetupError

_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def demand_free(address: str) -> None:
    """Raise ``CannotListen`` if another server listens on one of the addresses that ``address`` names."""
    _each(address, _try)


@contextlib.contextmanager
def reserved(address: str) -> Iterator[int]:
    """Reserve a port for the workers, and yield it. Port 0 becomes a free one.

    Raises ``SetupError`` if another server listens there.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise SetupError("this system does not let several processes share a port: do not use --workers")
    with contextlib.ExitStack() as held:
        yield _each(address, lambda family, where: _hold(held, family, where))


def _each(address: str, bind: Callable[[int, tuple[Any, ...]], int]) -> int:
    """Bind to each address that ``address`` names, all with the same port, and return the port."""
    host, _, text = address.rpartition(":")
    port, bound = int(text), False
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, (name, _, *scope) in dict.fromkeys(found):
            try:
                port = bind(family, (name, port, *scope))
                bound = True
            except OSError as failure:
                # A name may resolve to addresses of a family that this machine does not have.
                if failure.errno not in _NO_SUCH_ADDRESS:
                    raise
    except OSError:
        bound = False
    if not bound:
        raise CannotListen(address)
    return port


def _try(family: int, where: tuple[Any, ...]) -> int:
    """Bind like a server that does not share its port, and let go. That fails if another one listens.

    Two servers that start within the same millisecond can both pass.
    """
    with socket.socket(family, socket.SOCK_STREAM) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(where)
        return int(alone.getsockname()[1])


def _hold(held: contextlib.ExitStack, family: int, where: tuple[Any, ...]) -> int:
    port = _try(family, where)
    # This socket never listens, so it gets no connections.
    shared = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # For a minute after a server that did not share its port, its connections keep the port from sockets without this.
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.bind((where[0], port, *where[2:]))
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # the port is ours now
    return port

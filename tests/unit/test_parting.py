"""Closing connections at shutdown: which are closed, and in which order."""

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tumbler_server.rpc import sockets
from tumbler_server.rpc.parting import Parting
from tumbler_server.rpc.serving import Context
from tumbler_server.rpc.shedding import Shedding

PATIENCE = 10.0


class Call:
    """A fake call that knows its caller."""

    def __init__(self, caller: socket.socket) -> None:
        host, port = caller.getsockname()
        self._peer = f"ipv4:{host}:{port}"

    def peer(self) -> str:
        return self._peer


class Place:
    """A listening socket with two connections and the calls in flight on them."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.callers = [socket.create_connection(self.address, PATIENCE) for _ in range(2)]
        self.ours = [self.listener.accept()[0] for _ in self.callers]
        self.calls: set[Context] = set()
        self.shedding = Shedding()
        self.shedding.port = self.address[1]

    def begin(self, caller: int) -> Context:
        """Start a call on one of the connections."""
        call = cast("Context", Call(self.callers[caller]))
        self.calls.add(call)
        return call

    def parting(self) -> Parting:
        """Start to close the connections."""
        return Parting(self.shedding, lambda: frozenset(self.calls), lambda: self.calls)

    def is_closed(self, caller: int) -> bool:
        """Whether a connection has been closed to its caller."""
        self.callers[caller].settimeout(0.01)
        try:
            return self.callers[caller].recv(1) == b""
        except TimeoutError:
            return False

    def close(self) -> None:
        self.shedding.close()
        for each in (self.listener, *self.callers, *self.ours):
            each.close()


@pytest.fixture
def place() -> Iterator[Place]:
    """Yield a place."""
    place = Place()
    yield place
    place.close()


def run(work: Any) -> Any:
    """Run a coroutine with a timeout."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


def test_what_was_sent_arrives_before_the_end(place: Place) -> None:
    """A connection is closed after the answers on it, even if its caller continues to send."""
    place.ours[0].sendall(b"the last answer")
    place.callers[0].sendall(b"more")
    sockets.finish(place.ours[0].fileno())
    place.callers[0].sendall(b"and more")
    assert place.callers[0].recv(100) == b"the last answer"
    assert place.callers[0].recv(100) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the listener stays until gRPC closes it")
def test_nobody_connects_any_more(place: Place) -> None:
    """New connections are refused at once, so that clients go elsewhere; existing ones stay."""
    sockets.stop_listening(place.address[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place.address, PATIENCE)
    assert not place.is_closed(0)


def test_a_connection_waits_for_its_own_calls(place: Place) -> None:
    """A connection stays until its accepted calls have ended; one without calls is closed at once.

    Calls that arrive later do not keep a connection.
    """
    call = place.begin(0)

    async def part() -> None:
        parting = place.parting()
        place.begin(1)
        going = asyncio.ensure_future(parting.part(time.monotonic() + PATIENCE))
        while not place.is_closed(1):
            await asyncio.sleep(0.01)
        assert not place.is_closed(0)
        place.calls.discard(call)
        while not place.is_closed(0):
            await asyncio.sleep(0.01)
        place.calls.clear()
        for caller in place.callers:
            caller.close()
        for each in place.ours:
            each.close()
        await going

    run(part())


def test_nobody_is_waited_for_beyond_the_end(place: Place) -> None:
    """A call that does not end, or a caller that does not close, delays nothing beyond the deadline."""
    place.begin(0)
    began = time.monotonic()
    run(place.parting().part(began + 0.2))
    assert 0.2 <= time.monotonic() - began < 2
    assert place.is_closed(0)

"""Taking calls up from gRPC: several at a time, and those of each method apart from others.

By itself, gRPC's server on a loop takes up one call after another, of all methods in one queue, and spends more on that
than a warm Verify takes. So a flood of calls that are refused, which costs hardly anything else, would hold up all.
Here every method is registered with gRPC, which then keeps its calls apart, and of each so many are taken up at a time.

Calls of methods that there are not go the same way, and their paths are not looked at: gRPC's own loop reads a path as
UTF-8, and ends, and the server with it, over one that is none.

gRPC has no public way to do that: what is used of it here is its own, and checked when the server starts. Where another
version of gRPC has it otherwise, gRPC takes the calls up by itself. That costs more; and should that version end over a
path too, ``server`` notices, and has the process started again.
"""

import asyncio
import contextlib
import inspect
import itertools
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grpc
import structlog
from grpc._cython import cygrpc

from tumbler_server.rpc.ending import keep
from tumbler_server.rpc.exchange import Handler

AT_A_TIME = 16
"""Calls of one method that are taken up at a time."""

_WAKE_UPS = 1_024
"""Bytes that are taken in one turn of the loop: more than a socket keeps."""

_LOOKS = 4
"""One in how many wake-ups looks for more: a look is a system call, and few of them find any."""

_USED = {
    "_schedule_rpc_coro": ["rpc_coro", "rpc_state", "loop", "method_name"],
    "_handle_rpc": ["method_name", "method_resolver", "interceptors", "rpc_state", "loop", "concurrency_exceeded"],
    "AioServer._request_registered_call": ["self", "method"],
    "AioServer.add_registered_method_handlers": ["self", "method_handlers"],
    "AioServer._request_call": ["self"],
    "AioServer._make_request_call_future": ["self", "method_bytes"],
    "AioServer.is_running": ["self"],
}
"""What is used of gRPC, and with which parameters."""

_log = structlog.get_logger(__name__)


class Service(Protocol):
    """A service: what serves a call, and the paths of its methods; true where a method answers by a stream."""

    paths: Mapping[str, bool]

    def service(self, details: Any) -> Handler | None:
        """Return what serves a call whose headers have come, or None where there is no such method."""


class Accepting:
    """A server on the running loop, and what takes up the calls of these services. For that loop's thread.

    Where there is no such method, the first of the services is asked, about no path.
    """

    def __init__(self, options: Sequence[tuple[str, object]], services: Sequence[Service]) -> None:
        many = fits()
        with _hearing_all(asyncio.get_running_loop()):
            self.server = server = _build(options) if many else grpc.aio.server(options=options)
        server.add_generic_rpc_handlers(tuple(services))
        self._otherwise = services[0]
        self._services = {path: service for service in services for path in service.paths} if many else {}
        self._going_on: set[asyncio.Task[None]] = set()
        if self._services:
            self._server = server._server
            self._server.add_registered_method_handlers(dict.fromkeys(self._services))
            self._server.ours = self._services.keys()
        else:
            _log.warning("with this version of gRPC a call costs more: calls are taken up one by one")

    def start(self) -> None:
        """Begin to take calls up, until the server stops."""
        methods = {**self._services, "": self._otherwise} if self._services else {}
        for path, service in methods.items():
            for _ in range(AT_A_TIME):
                self._keep(self._take_up(path, service))

    async def _take_up(self, path: str, service: Service) -> None:
        server, method, resolver, loop = self._server, path.encode(), _Resolver(service), asyncio.get_running_loop()
        while server.is_running():
            try:
                call = await (server._request_registered_call(method) if path else server._request_call())
            except cygrpc._RequestCallError:
                continue  # the server stops, or the caller has gone
            serving = cygrpc._handle_rpc(path, resolver, (), call, loop, False)
            self._keep(keep(cygrpc._schedule_rpc_coro(serving, call, loop, path)))
            del call, serving  # they hold the call's headers, and this waits for the next one
        server.let_go()

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._going_on.add(task)
        task.add_done_callback(self._going_on.discard)


def fits() -> bool:
    """Say whether this version of gRPC has what is used of it."""
    for name, parameters in _USED.items():
        found: Any = cygrpc
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None or [*inspect.signature(found).parameters] != parameters:
            return False
    return hasattr(cygrpc, "_RequestCallError")


@contextlib.contextmanager
def _hearing_all(loop: Any) -> Iterator[None]:
    """Have gRPC, as it begins on this loop, take all wake-ups that have come in one turn of the loop.

    A thread of gRPC's sends the loop a byte for each event, by a socket, and the loop takes one byte a turn. Once some
    three hundred are waiting, the socket is full, and that thread waits: from then on a turn of the loop brings one
    event, however many there are, and calls come to wait for seconds wherever a turn takes a millisecond.
    """
    plain = loop.add_reader

    def add_reader(source: Any, callback: Callable[[], None], *arguments: object) -> None:
        if not isinstance(source, socket.socket):
            plain(source, callback, *arguments)
            return
        seen = bytearray(_WAKE_UPS)
        turns = itertools.cycle(range(_LOOKS))

        def take() -> None:
            if not next(turns):
                waiting = source.recv_into(seen, 0, socket.MSG_PEEK)
                if waiting > 1:
                    source.recv_into(seen, waiting - 1)
            callback(*arguments)  # which takes the last, and all events

        plain(source, take)

    loop.add_reader = add_reader
    try:
        yield
    finally:
        del loop.add_reader


class _Server(cygrpc.AioServer):  # type: ignore[misc]  # it ships no types
    """gRPC's server, whose own loop takes up no calls of our methods, and ends once it is let go."""

    ours: Collection[str] = ()
    _waiting: Any = None

    def let_go(self) -> None:
        """Have gRPC's own loop notice that the server stops."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(cygrpc._RequestCallError())

    def _make_request_call_future(self, method: bytes | None) -> Any:
        if method is not None and method.decode() not in self.ours:
            return super()._make_request_call_future(method)
        self._waiting = asyncio.get_running_loop().create_future()
        return self._waiting


def _build(options: Sequence[tuple[str, object]]) -> grpc.aio.Server:
    plain = cygrpc.AioServer
    cygrpc.AioServer = _Server
    try:
        return grpc.aio.server(options=options)
    finally:
        cygrpc.AioServer = plain


class _Resolver:
    """What gRPC asks for the handler of a call."""

    __slots__ = ("resolve_handler",)

    def __init__(self, service: Service) -> None:
        self.resolve_handler = service.service

"""Taking calls up from gRPC: those of each method apart from others, and several of each at a time.

gRPC's core has a queue of calls for each method that is registered with it, and hands out as many as were asked for.
So a flood of one method does not hold up another, and of a flood of all methods those that matter most get most of
the loop. Calls of methods that there are not have a queue of their own, too.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc

from tumbler_server import shares
from tumbler_server.rpc import serving
from tumbler_server.rpc.loop import Loop
from tumbler_server.rpc.serving import Serving

FEW, SOME, MANY = 4, 16, 64
"""Calls of one method that are asked for at a time: the shares of the methods where calls of all of them wait."""


class Service(serving.Service, Protocol):
    """A service with the paths of its methods, and how many calls of each are asked for at a time."""

    paths: Mapping[str, int]


class Accepting:
    """A server of gRPC's on a loop, and what takes up the calls of these services. For that loop's thread.

    Calls whose connection ``has_gone`` are ended at once: that costs a fifth of serving one.
    Where there is no such method, or the headers are larger than is allowed, the first of the services is asked.
    """

    def __init__(
        self,
        loop: Loop,
        options: Sequence[tuple[str, object]],
        services: Sequence[Service],
        has_gone: Callable[[Any], bool] = lambda _: False,
    ) -> None:
        self._loop = loop
        self._has_gone = has_gone
        self._serving = Serving(loop)
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(loop.queue)
        self._otherwise = services[0]
        self._services = {path: service for service in services for path in service.paths}
        for path in self._services:
            self._server.register_method(path)
        self._ended: asyncio.Future[None] | None = None

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on an address, and return the port; 0 where it cannot be had."""
        secure = () if credentials is None else (credentials._credentials,)
        try:
            return int(self._server.add_http2_port(address.encode(), *secure))
        except RuntimeError:
            return 0

    def under_way(self) -> frozenset[serving.Context]:
        """Return the calls that have not ended."""
        return self._serving.under_way()

    def start(self) -> None:
        """Begin to take calls up, until ``stop``."""
        self._server.start()
        for path, service in self._services.items():
            self._open(path, service, service.paths[path])
        self._open("", self._otherwise, FEW)

    async def stop(self, grace: float | None) -> None:
        """Take up no more calls, and return once those under way have ended; after so many seconds cancel them."""
        if self._ended is None:
            self._ended = self._loop.create_future()
            self._server.shutdown(self._loop.queue, self._end)
        if grace:
            await asyncio.wait((self._ended,), timeout=grace)
        if not self._ended.done():
            self._server.cancel_all_calls()
        await asyncio.shield(self._ended)

    def _open(self, path: str, service: Service, at_a_time: int) -> None:
        server, loop, begin = self._server, self._loop, self._serving.begin
        queue, has_gone = loop.queue, self._has_gone

        def come(event: Any) -> None:
            if event.success:
                if self._ended is None:
                    ask()
                if has_gone(event.call):
                    event.call.cancel()
                    return
                size = loop.headers.size
                begin(event, path, service if size <= shares.HEADER_BYTES.most else self._otherwise, size)

        def ask() -> None:
            if path:
                server.request_registered_call(queue, queue, path, come)
            else:
                server.request_call(queue, queue, come)

        for _ in range(at_a_time):
            ask()

    def _end(self, _: Any) -> None:
        self._server.destroy()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

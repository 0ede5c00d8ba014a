"""Taking calls up from gRPC: those of each method apart from others, and several of each at a time.

gRPC's core has a queue of calls for each method that is registered with it, and hands out as many as were asked for.
So a flood of one method does not hold up another. Calls of methods that there are not have a queue of their own, too.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc

from tumbler_server.rpc import serving
from tumbler_server.rpc.loop import Loop
from tumbler_server.rpc.serving import Serving

AT_A_TIME = 16
"""Calls of one method that are asked for at a time."""


class Service(serving.Service, Protocol):
    """A service with the paths of its methods; true where a method answers by a stream."""

    paths: Mapping[str, bool]


class Accepting:
    """A server of gRPC's on a loop, and what takes up the calls of these services. For that loop's thread.

    Where there is no such method, the first of the services is asked, about no path: it judges their headers too.
    """

    def __init__(self, loop: Loop, options: Sequence[tuple[str, object]], services: Sequence[Service]) -> None:
        self._loop = loop
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

    def start(self) -> None:
        """Begin to take calls up, until ``stop``."""
        self._server.start()
        for path, service in self._services.items():
            self._open(path, service)
        self._open("", self._otherwise)

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

    def _open(self, path: str, service: Service) -> None:
        server, queue, begin = self._server, self._loop.queue, self._serving.begin

        def come(event: Any) -> None:
            if event.success:
                if self._ended is None:
                    ask()
                begin(event, path, service)

        def ask() -> None:
            if path:
                server.request_registered_call(queue, queue, path, come)
            else:
                server.request_call(queue, queue, come)

        for _ in range(AT_A_TIME):
            ask()

    def _end(self, _: Any) -> None:
        self._server.destroy()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

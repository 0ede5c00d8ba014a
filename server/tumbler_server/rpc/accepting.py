"""Accepts calls from gRPC: each method separately, and several calls of each at a time.

gRPC's core has a queue of calls for each registered method, and hands out as many calls as the server has requested.
So a flood of one method does not delay another. In a flood of all methods, the most important ones get most of the
loop. Calls to methods that do not exist have a queue of their own, too.
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
"""Calls of one method to request at a time. If calls of all methods wait, these are the methods' shares."""


class Service(serving.Service, Protocol):
    """A service, with the paths of its methods and how many calls of each to request at a time."""

    @property
    def paths(self) -> Mapping[str, int]:
        """How many calls of each method to request at a time."""


class Accepting:
    """A gRPC server on a loop, which accepts the calls of these services. Use it on the loop's thread only.

    Calls whose connection ``has_gone`` are ended immediately: that costs a fifth of serving one. The first service
    handles calls to methods that do not exist, and calls whose headers are too large.
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
        """Listen on an address, and return the port, or 0 if that fails."""
        secure = () if credentials is None else (credentials._credentials,)  # type: ignore[attr-defined]  # as grpc's servers do
        try:
            return int(self._server.add_http2_port(address.encode(), *secure))
        except RuntimeError:
            return 0

    def under_way(self) -> frozenset[serving.Context]:
        """Return the calls that have not ended."""
        return self._serving.under_way()

    def start(self) -> None:
        """Start to accept calls, until ``stop``."""
        self._server.start()
        for path, service in self._services.items():
            self._open(path, service, service.paths[path])
        self._open("", self._otherwise, FEW)

    async def stop(self, grace: float | None) -> None:
        """Accept no more calls, and return once all have ended.

        Calls that are still in flight after ``grace`` seconds are cancelled.
        """
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

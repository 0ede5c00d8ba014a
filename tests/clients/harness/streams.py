"""Guarded services with endless streams, for the scenarios of all languages. ``serve`` starts them."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import uvicorn

from tumbler.guards import asgi, grpc_aio
from tumbler.guards import grpc as guard

SCOPES = ["orders:read"]
TICK = 0.02
"""Seconds between two messages."""

_SERVICE, _METHOD = "tumbler.v1.ApiKeyService", "Watch"


def serve(verifier: Any) -> tuple[grpc.Server, dict[str, Any]]:
    """Start a threaded service. Return it, and its ports for the scenarios."""

    def words(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        while context.is_active():
            yield b""
            time.sleep(TICK)

    server = grpc.server(ThreadPoolExecutor(4), interceptors=[guard.RequireKey(verifier, SCOPES)])
    handler = grpc.unary_stream_rpc_method_handler(words)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, {"grpc": {"grpc": port}, "http": {}}


class AioServices:
    """Asyncio services, one of gRPC and one of ASGI."""

    async def start(self, verifier: Any) -> dict[str, Any]:
        """Start them. Return their ports for the scenarios."""

        async def words(_: bytes, __: Any) -> AsyncIterator[bytes]:
            while True:
                yield b""
                await asyncio.sleep(TICK)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"word\n", "more_body": True})
                await asyncio.sleep(TICK)

        self._grpc = grpc.aio.server(interceptors=[grpc_aio.RequireKey(verifier, SCOPES)])
        handler = grpc.unary_stream_rpc_method_handler(words)
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
        port = self._grpc.add_insecure_port("127.0.0.1:0")
        await self._grpc.start()
        listening = socket.create_server(("127.0.0.1", 0))
        guarded = asgi.RequireKey(app, verifier=verifier, scopes=SCOPES)
        self._http = uvicorn.Server(uvicorn.Config(guarded, lifespan="off", log_config=None))
        self._serving = asyncio.ensure_future(self._http._serve([listening]))  # noqa: SLF001 - serve() takes signals
        while not self._http.started:
            await asyncio.sleep(0.01)
        return {"grpc": {"grpc.aio": port}, "http": {"asgi": listening.getsockname()[1]}}

    async def stop(self) -> None:
        """Stop them."""
        self._http.should_exit = self._http.force_exit = True
        await self._serving
        await self._grpc.stop(None)

"""Server reflection, for tools such as grpcurl: streams that anybody may open, bounded in number and in patience."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tumbler_server import shares
from tumbler_server.errors import TumblerError
from tumbler_server.rpc import status
from tumbler_server.rpc.presence import Presence

SERVICE = reflection.SERVICE_NAME


class Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]  # it ships no types
    """Says what the services of these names offer. For one loop's thread."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self._streams = Presence(shares.REFLECTION_CROWD)
        self._over = asyncio.Event()

    def say_goodbye(self) -> None:
        """End all streams."""
        self._over.set()

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Answer questions for as long as they keep coming."""
        try:
            context.add_done_callback(self._streams.enter(context.peer()))
        except TumblerError as failure:
            await status.end(context, failure, "ServerReflectionInfo")
        async for answer in super().ServerReflectionInfo(self._asked(requests), context):
            yield answer

    async def _asked(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        over = asyncio.ensure_future(self._over.wait())
        try:
            while True:
                # A default, since a task that nobody asks for its StopAsyncIteration is complained of in the log.
                following = asyncio.ensure_future(anext(requests, None))
                try:
                    await asyncio.wait(
                        (following, over), timeout=shares.SECONDS_TO_ASK.most, return_when=asyncio.FIRST_COMPLETED
                    )
                    asked = following.result() if following.done() else None
                finally:
                    following.cancel()
                if asked is None:
                    return
                yield asked
        finally:
            over.cancel()


def add(server: grpc.aio.Server, servicer: Reflection) -> None:
    """Offer reflection on a server that does not serve yet."""
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)

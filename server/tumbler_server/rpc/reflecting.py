"""Server reflection, for tools such as grpcurl: streams that anybody may open, bounded in number and in patience."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tumbler_server import shares
from tumbler_server.errors import RequestTooSlow, ServerStopping, TumblerError
from tumbler_server.rpc.receiving import Method, Receiving, Visitor
from tumbler_server.rpc.shedding import Shedding

SERVICE = reflection.SERVICE_NAME

METHOD = "ServerReflectionInfo"


class Reflection(grpc.GenericRpcHandler):  # type: ignore[misc]  # it ships no types
    """Says what the services of these names offer. For one loop's thread."""

    paths: ClassVar[Mapping[str, bool]] = {f"/{SERVICE}/{METHOD}": True}

    def __init__(self, names: tuple[str, ...], shedding: Shedding) -> None:
        self._offer = reflection.aio.ReflectionServicer(names)
        self._receiving = Receiving(shares.REFLECTION_CROWD, shedding)

    def say_goodbye(self) -> None:
        """End all streams."""
        self._receiving.say_goodbye()

    def service(self, details: grpc.HandlerCallDetails) -> Method | None:
        """Return what serves a call, or None where the method is not ours."""
        return Method(stream_stream=self._serve) if details.method in self.paths else None

    async def _serve(self, _: object, context: Any) -> None:
        """Answer questions for as long as they keep coming."""
        try:
            visitor = self._receiving.enter(context)
            async for answer in self._offer.ServerReflectionInfo(self._questions(visitor), context):
                await visitor.write(answer.SerializeToString())
            return
        except TumblerError as failure:
            failed = failure
        await self._receiving.refuse(context, failed, METHOD)

    async def _questions(self, visitor: Visitor) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        kind, size, time = reflection_pb2.ServerReflectionRequest, shares.REFLECTION_BYTES, shares.SECONDS_TO_ASK
        try:
            while (question := await visitor.message(kind, size, time)) is not None:
                yield question
        except (RequestTooSlow, ServerStopping):  # it has had its answers: the stream ends in order
            return

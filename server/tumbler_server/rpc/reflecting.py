"""Server reflection, for tools such as grpcurl. Anyone may open a stream, so their number and idle time are limited."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, ClassVar

from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from tumbler_server import shares
from tumbler_server.errors import RequestTooSlow, ServerStopping, TumblerError
from tumbler_server.rpc.accepting import FEW
from tumbler_server.rpc.receiving import Method, Receiving, Visitor
from tumbler_server.rpc.serving import Details
from tumbler_server.rpc.shedding import Shedding

SERVICE = reflection.SERVICE_NAME

METHOD = "ServerReflectionInfo"

_Questions = AsyncGenerator[ServerReflectionRequest, None]
_Answers = Callable[[_Questions, object], AsyncGenerator[ServerReflectionResponse, None]]


class Reflection:
    """Describes the services of these names. Use it on the loop's thread only."""

    paths: ClassVar[Mapping[str, int]] = {f"/{SERVICE}/{METHOD}": FEW}

    def __init__(self, names: tuple[str, ...], shedding: Shedding) -> None:
        offer = reflection.aio.ReflectionServicer(names)
        self._answers: _Answers = offer.ServerReflectionInfo  # type: ignore[assignment]  # the stubs say coroutine
        self._receiving = Receiving(shares.REFLECTION_CROWD, shedding)

    def say_goodbye(self) -> None:
        """End all streams."""
        self._receiving.say_goodbye()

    def service(self, details: Details) -> Method | None:
        """Return the handler of a call, or None if the method is not ours."""
        return Method(stream_stream=self._serve) if details.method in self.paths else None

    async def _serve(self, _: object, context: Any) -> None:
        """Answer questions as long as they arrive."""
        visitor: Visitor | None = None
        try:
            visitor = self._receiving.enter(context)
            # Close the generators: abandoned ones are a cycle, and keep the call.
            async with (
                aclosing(self._questions(visitor)) as questions,
                aclosing(self._answers(questions, context)) as answers,
            ):
                async for answer in answers:
                    await visitor.write(answer.SerializeToString())
            visitor.answered()
            return
        except TumblerError as failure:
            failed = failure
        await self._receiving.refuse(context, failed, METHOD, visitor)

    async def _questions(self, visitor: Visitor) -> _Questions:
        kind, size, time = ServerReflectionRequest, shares.REFLECTION_BYTES, shares.SECONDS_TO_ASK
        try:
            while (question := await visitor.message(kind, size, time)) is not None:
                yield question
        except (RequestTooSlow, ServerStopping):  # its questions are answered: the stream ends without an error
            return

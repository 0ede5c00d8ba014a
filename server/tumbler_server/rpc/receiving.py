"""What calls without a credential share: a handler for gRPC, a timeout for each step, refusals."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import Message

from tumbler_server.errors import (
    Overloaded,
    ReaderTooSlow,
    RequestTooLarge,
    RequestTooSlow,
    ServerStopping,
    TumblerError,
    Undecodable,
)
from tumbler_server.limits import Limit
from tumbler_server.rpc import status
from tumbler_server.rpc.ending import at_end, cut_off, task
from tumbler_server.rpc.exchange import Handler
from tumbler_server.rpc.presence import Presence
from tumbler_server.rpc.shedding import Shedding
from tumbler_server.shares import CrowdLimit

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Method(Handler):
    """A method's handler, made from the function that serves it."""

    def __init__(
        self, stream_unary: Callable[..., Any] | None = None, stream_stream: Callable[..., Any] | None = None
    ) -> None:
        self.stream_unary = stream_unary
        self.stream_stream = stream_stream
        self.response_streaming = stream_stream is not None


class Receiving:
    """Admits and refuses the calls of one kind. Use it on the loop's thread only."""

    def __init__(self, crowd: CrowdLimit, shedding: Shedding) -> None:
        self.shedding = shedding
        self.present = Presence(crowd, shedding.has_been_let_in)
        self.over = False

    def enter(self, context: Any) -> "Visitor":
        """Admit a call. Raises ``Overloaded``."""
        visitor = Visitor(context, self)
        at_end(self.present.enter(visitor.peer, visitor))
        return visitor

    async def refuse(self, context: Any, failure: TumblerError, method: str, visitor: "Visitor | None") -> NoReturn:
        """End a call with the status of its failure; with a delay, if its caller is refused too often.

        ``visitor`` is the call, if it was admitted.
        """
        if visitor is not None:
            visitor.answered()
        told = status.told(failure, method)
        if isinstance(failure, Overloaded):
            await self.shedding.refuse(context.peer())
        await status.end(context, told)

    def say_goodbye(self) -> None:
        """End all waits, and begin no more."""
        self.over = True
        self.present.end_waiting(time.monotonic(), ServerStopping())


class Visitor:
    """An admitted call. While it waits for anything, it may be ended to make room for others."""

    __slots__ = ("_context", "_failure", "_receiving", "_task", "peer", "since")

    def __init__(self, context: Any, receiving: Receiving) -> None:
        self.peer: str = context.peer()
        self.since = 0.0
        self._context = context
        self._receiving = receiving
        self._task = task()
        self._failure: TumblerError | None = None

    async def message(self, kind: type[M], size: Limit, seconds: Limit) -> M | None:
        """Return the call's next message, or None if there is none.

        Raises ``RequestTooSlow``, ``RequestTooLarge``, ``Undecodable``, ``Overloaded`` and ``ServerStopping``.
        """
        data = await self.wait(self._context.read, seconds.most, RequestTooSlow(seconds.most))
        if not isinstance(data, bytes):
            return None
        if len(data) > size.most:
            raise RequestTooLarge(len(data), size.most)
        try:
            return kind.FromString(data)
        except Exception:
            raise Undecodable(kind.DESCRIPTOR.full_name) from None

    async def write(self, message: bytes) -> None:
        """Send a message.

        If the call must end because of this, it is cut off: a caller that does not read would not read a status either.
        Raises ``ServerStopping``.
        """
        try:
            await self.wait(lambda: self._context.write(message), status.PATIENCE, ReaderTooSlow())
        except TumblerError as failure:
            if self._failure is None:
                raise
            status.forget(failure)
            self.cut()
            raise asyncio.CancelledError from None

    def answered(self) -> None:
        """Give the caller some time to read its answer. Until then, the call may still be cut off to make room."""
        timer = asyncio.get_running_loop().call_later(status.PATIENCE, self.cut)
        at_end(lambda _: timer.cancel())
        self.since = time.monotonic()
        self._receiving.present.unread[self] = None

    def cut(self) -> None:
        """Cut the call off."""
        cut_off(self._task, self._context)

    async def wait(
        self, begin: Callable[[], Awaitable[T]], seconds: float | None = None, too_slow: TumblerError | None = None
    ) -> T:
        """Wait for something. Raises the failure that ends the call meanwhile, or ``too_slow`` after ``seconds``."""
        if self._receiving.over:
            raise ServerStopping
        waiting = self._receiving.present.waiting
        timer = None
        if seconds is not None and too_slow is not None:
            timer = asyncio.get_running_loop().call_later(seconds, self.end, too_slow)
        self.since = time.monotonic()
        waiting[self] = None
        try:
            return await begin()
        except asyncio.CancelledError:
            if self._failure is not None:
                raise self._failure from None
            raise
        finally:
            if timer is not None:
                timer.cancel()
            waiting.pop(self, None)

    def end(self, failure: TumblerError) -> None:
        """End the call with this failure."""
        if self._failure is None:
            self._failure = failure
            self._task.cancel()

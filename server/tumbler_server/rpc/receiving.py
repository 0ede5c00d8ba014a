"""What calls that anybody may make have in common: a handler for gRPC, how long a message is waited for, refusals."""

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import Message

from tumbler_server.errors import (
    Overloaded,
    RequestTooLarge,
    RequestTooSlow,
    ServerStopping,
    TumblerError,
    Undecodable,
)
from tumbler_server.limits import Limit
from tumbler_server.rpc import status
from tumbler_server.rpc.exchange import Handler
from tumbler_server.rpc.lanes import RETRY
from tumbler_server.rpc.shedding import Shedding

M = TypeVar("M", bound=Message)


class Method(Handler):
    """A method, by the function that serves it."""

    def __init__(
        self, stream_unary: Callable[..., Any] | None = None, stream_stream: Callable[..., Any] | None = None
    ) -> None:
        self.stream_unary = stream_unary
        self.stream_stream = stream_stream
        self.response_streaming = stream_stream is not None


class Receiving:
    """Receives the messages of one service, and refuses its calls. For one loop's thread."""

    def __init__(self, shedding: Shedding) -> None:
        self._shedding = shedding
        self._waits: dict[_Wait, None] = {}
        """The calls whose message has not come, the oldest first."""
        self._over = False

    async def message(self, context: Any, kind: type[M], size: Limit, time: Limit) -> M | None:
        """Return a call's next message; None where there is none.

        Raises ``RequestTooSlow``, ``RequestTooLarge``, ``Undecodable`` and ``ServerStopping``.
        """
        data = await self._read(context, time.most)
        if not isinstance(data, bytes):
            return None
        if len(data) > size.most:
            raise RequestTooLarge(len(data), size.most)
        try:
            return kind.FromString(data)
        except Exception:
            raise Undecodable(kind.DESCRIPTOR.full_name) from None

    async def refuse(self, context: Any, failure: TumblerError, method: str) -> NoReturn:
        """End a call with what it failed by; late, where it is one of too many that go on asking."""
        if isinstance(failure, Overloaded):
            await self._shedding.refuse(context.peer())
        await status.end(context, status.told(failure, method))

    def make_room(self) -> bool:
        """End the call that has kept its message back for longest; say whether there was one."""
        wait = next(iter(self._waits), None)
        if wait is None:
            return False
        del self._waits[wait]
        wait.end(Overloaded(retry_after=RETRY))
        return True

    def say_goodbye(self) -> None:
        """Wait for no message any more."""
        self._over = True
        for wait in self._waits:
            wait.end(ServerStopping())

    async def _read(self, context: Any, seconds: float) -> Any:
        if self._over:
            raise ServerStopping
        wait = _Wait()
        timer = asyncio.get_running_loop().call_later(seconds, wait.end, RequestTooSlow(int(seconds)))
        self._waits[wait] = None
        try:
            return await context.read()
        except asyncio.CancelledError:
            if wait.failure is not None:
                raise wait.failure from None
            raise
        finally:
            timer.cancel()
            self._waits.pop(wait, None)


class _Wait:
    """A call whose message has not come."""

    __slots__ = ("_task", "failure")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self.failure: TumblerError | None = None

    def end(self, failure: TumblerError) -> None:
        """Have the call end with this."""
        if self.failure is None:
            self.failure = failure
            self._task.cancel()  # type: ignore[union-attr]  # it runs in a task

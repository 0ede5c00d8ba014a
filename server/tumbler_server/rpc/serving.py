"""Serves a call with the operations of gRPC's core: two batches of them for most calls.

The server asks gRPC to report when a caller goes away only for streams, and for calls that take longer than a moment.
For the others it learns that from the next operation.
"""

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol

import grpc
from grpc._cython import cygrpc

from tumbler_server import shares
from tumbler_server.rpc import status
from tumbler_server.rpc.ending import task
from tumbler_server.rpc.loop import Loop

MOMENT = 0.01
"""Seconds until the server asks gRPC to report when a caller goes away; at most twice as many."""

PARTINGS = 16
"""Calls to end per turn of the loop because their callers went away: thousands may hang up at the same moment."""

_FOR_EVER = 1e15
"""gRPC's value for "no deadline" is greater than this, and every deadline is less."""

_FLAGS = 0
_OK = grpc.StatusCode.OK.value[0]

Metadata = tuple[tuple[str, str | bytes], ...]


class Details(NamedTuple):
    """What is known of a call before it is served, in the form of gRPC's handlers."""

    method: str
    invocation_metadata: Metadata
    size: int
    """Bytes of all its headers. If there are more than allowed, not all headers are here."""


class Service(Protocol):
    """Finds the handler of a call."""

    def service(self, details: Details) -> Any:
        """Return the handler of a call whose headers have arrived, or None if there is no such method."""


class Aborted(Exception):
    """Raised in a handler after it has ended its call with a status."""


class Context:
    """A call, as its handler sees it: the part of ``grpc.aio.ServicerContext`` that our handlers use, and ``cut``.

    Every wait is cancelled if the caller goes away.
    """

    __slots__ = (
        "_call",
        "_closing",
        "_details",
        "_has_begun",
        "_is_gone",
        "_loop",
        "_metadata",
        "_serving",
        "_task",
        "_trailing",
    )

    def __init__(self, serving: "Serving", event: Any, metadata: Metadata) -> None:
        self._serving = serving
        self._loop = serving.loop
        self._call = event.call
        self._details = event.call_details
        self._metadata = metadata
        self._task: asyncio.Task[Any] | None = None
        self._trailing: Metadata = ()
        self._has_begun = False
        """Whether the answer's headers have been sent."""
        self._closing: Any = None
        """The operation that reports how the caller closed the call, once it has been started."""
        self._is_gone = False
        """Whether that operation has reported that the caller went away."""

    def invocation_metadata(self) -> Metadata:
        """Return the call's headers."""
        return self._metadata

    def peer(self) -> str:
        """Return gRPC's name of the connection."""
        return str(self._call.peer(), "utf-8")

    def time_remaining(self) -> float | None:
        """Return how many seconds the caller will wait, or None if it set no deadline."""
        deadline: float = self._details.deadline
        return max(0.0, deadline - time.time()) if deadline < _FOR_EVER else None

    def set_trailing_metadata(self, trailing: Metadata) -> None:
        """Set the metadata that follows the answer or error."""
        self._trailing = trailing

    async def read(self) -> Any:
        """Receive the next message, or ``grpc.aio.EOF`` if there is none."""
        operation = cygrpc.ReceiveMessageOperation(_FLAGS)
        await self._do(operation, receiving=operation)
        message = operation.message()
        if message is None and self._is_gone:
            raise asyncio.CancelledError
        return grpc.aio.EOF if message is None else message

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Send the answer's headers before the answer. A caller that does not read them is cut off."""
        self._has_begun = True
        cutting = self._loop.call_later(status.PATIENCE, self.cut)
        try:
            await self._do(cygrpc.SendInitialMetadataOperation(metadata, _FLAGS))
        finally:
            cutting.cancel()

    async def write(self, message: bytes) -> None:
        """Send a message of a stream. Returns when gRPC accepts the next one."""
        await self._do(*self._head(), cygrpc.SendMessageOperation(message, _FLAGS))

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        """End the call with a status, then raise ``Aborted``."""
        await self.end(code.value[0], details)
        raise Aborted

    async def end(self, code: int = _OK, details: str = "") -> None:
        """Send the status that ends the call. A caller that does not read it is cut off."""
        ending = self._serving.ending
        if len(ending) >= shares.LAST_WORDS.most:
            oldest = next(iter(ending))
            del ending[oldest]
            oldest.cut()  # a caller that reads its status would have done so long ago
        ending[self] = None
        cutting = self._loop.call_later(status.PATIENCE, self.cut)
        try:
            await self.finish((), code, details)
        finally:
            cutting.cancel()
            ending.pop(self, None)

    async def finish(self, answer: tuple[bytes, ...], code: int = _OK, details: str = "") -> None:
        """Send the answer, if there is one, and the status that ends the call."""
        closing: tuple[Any, ...] = ()
        if self._closing is None:
            self._closing = cygrpc.ReceiveCloseOnServerOperation(_FLAGS)
            closing = (self._closing,)
        await self._do(
            *self._head(),
            *(cygrpc.SendMessageOperation(message, _FLAGS) for message in answer),
            cygrpc.SendStatusFromServerOperation(self._trailing, code, details, _FLAGS),
            *closing,
        )

    def watch(self) -> None:
        """Cancel the task if the caller goes away, whatever the task waits for."""
        if self._closing is None:
            self._closing = cygrpc.ReceiveCloseOnServerOperation(_FLAGS)
            self._call.start_server_batch((self._closing,), self._closed)

    def cut(self) -> None:
        """Reset the call's stream, in both directions."""
        self._call.cancel()

    def take_hold(self) -> None:
        """Store the current task as the one that serves the call."""
        self._task = task()

    def let_go(self) -> None:
        """Forget the task, so that it is no longer cancelled."""
        self._task = None

    async def _do(self, *operations: Any, receiving: Any = None) -> None:
        done = self._loop.create_future()
        settle = functools.partial(self._serving.settle, done, receiving)
        if self._call.start_server_batch(operations, settle) != cygrpc.CallError.ok:
            self.cut()
            raise RuntimeError("gRPC refused an operation of a call")
        if not await done:
            raise asyncio.CancelledError

    def _head(self) -> tuple[Any, ...]:
        if self._has_begun:
            return ()
        self._has_begun = True
        return (cygrpc.SendInitialMetadataOperation((), _FLAGS),)

    def _closed(self, _: Any) -> None:
        if self._task is not None and self._closing.cancelled():
            self._is_gone = True
            self._serving.part(self._leave)

    def _leave(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Serving:
    """Serves calls on a loop, each in a task. Use it on the loop's thread only."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.ending: dict[Context, None] = {}
        """Calls whose final status has not been read yet; the oldest first."""
        self._calls: dict[asyncio.Task[None], Context] = {}
        self._young: set[Context] = set()
        """New calls, for which gRPC has not been asked to report when the caller goes away."""
        self._older: set[Context] = set()
        self._looks = False
        self._parting: deque[Callable[[], None]] = deque()

    def settle(self, done: "asyncio.Future[bool]", receiving: Any, event: Any) -> None:
        """Complete the future of an operation.

        Failures and empty reads are queued, because thousands of callers may hang up at the same moment.
        """
        if event.success and (receiving is None or receiving.message() is not None):
            _set(done, True)
        else:
            self.part(functools.partial(_set, done, event.success))

    def part(self, leave: Callable[[], None]) -> None:
        """Queue a callback that ends a call whose caller has gone away."""
        self._parting.append(leave)
        if len(self._parting) == 1:
            self.loop.call_soon(self._part)

    def begin(self, event: Any, path: str, service: Service, size: int) -> None:
        """Start to serve a new call. ``size`` is the number of bytes of its headers."""
        # Do not keep the event: it may be large, and thousands may arrive at once.
        metadata = event.invocation_metadata if size <= shares.HEADER_BYTES.most else ()
        details = Details(path, metadata, size)
        context = Context(self, event, metadata)
        serving = self.loop.create_task(self._serve(context, details, service))
        self._calls[serving] = context
        serving.add_done_callback(self._calls.pop)

    def under_way(self) -> frozenset[Context]:
        """Return the calls that have not ended."""
        return frozenset(self._calls.values())

    async def _serve(self, context: Context, details: Details, service: Service) -> None:
        context.take_hold()
        try:
            handler = service.service(details)
            if handler is None:
                await status.end(context, status.NO_METHOD)
                return
            if handler.response_streaming:
                context.watch()
                await handler.stream_stream(None, context)
                await context.end()
            else:
                self._look_after(context)
                await context.finish((await handler.stream_unary(None, context),))
        except (asyncio.CancelledError, Aborted):
            # The call has its status, its caller has gone away, or it was cut off. A task that ended with an exception
            # would keep the traceback, and with it the call, which refers to the task: a cycle, until the garbage
            # collector runs.
            return
        except Exception as failure:
            failed = failure
        else:
            return
        finally:
            context.let_go()
            self._young.discard(context)
            self._older.discard(context)
        told = status.told(failed, details.method)
        del failed  # its traceback refers to this frame
        with contextlib.suppress(asyncio.CancelledError, Aborted):
            await status.end(context, told)

    def _part(self) -> None:
        for _ in range(min(PARTINGS, len(self._parting))):
            self._parting.popleft()()
        if self._parting:
            self.loop.call_soon(self._part)

    def _look_after(self, context: Context) -> None:
        self._young.add(context)
        if not self._looks:
            self._looks = True
            self.loop.call_later(MOMENT, self._look)

    def _look(self) -> None:
        for context in self._older:
            context.watch()
        self._older, self._young = self._young, set()
        self._looks = bool(self._older)
        if self._looks:
            self.loop.call_later(MOMENT, self._look)


def _set(done: "asyncio.Future[bool]", success: bool) -> None:
    if not done.done():
        done.set_result(success)

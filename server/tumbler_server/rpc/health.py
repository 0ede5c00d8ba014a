"""The standard health service, by our own code: answered from memory, on the loop, to whoever asks.

``Check`` and ``Watch`` know three names: the server as a whole (``""``: may it be given calls?), the service's own, and
``liveness`` (does the process still answer at all?). Nothing that a caller names is kept.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import grpc
from grpc_health.v1 import health_pb2

from tumbler_server import shares
from tumbler_server.errors import RequestTooLarge, RequestTooSlow, TumblerError, Undecodable
from tumbler_server.rpc import status
from tumbler_server.rpc.presence import Presence

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

LIVENESS = "liveness"
"""A name that is SERVING for as long as the process answers, whatever its database does."""

_Status = health_pb2.HealthCheckResponse
_SERVING, _NOT_SERVING, _UNKNOWN = (
    _Status(status=each).SerializeToString() for each in (_Status.SERVING, _Status.NOT_SERVING, _Status.SERVICE_UNKNOWN)
)


class Health(grpc.GenericRpcHandler):  # type: ignore[misc]  # it ships no types
    """Answers health checks. ``service`` is the full name of ours. For one loop's thread."""

    def __init__(self, service: str) -> None:
        self._names = ("", service)
        self._statuses: dict[str, bytes] = {"": _NOT_SERVING, service: _NOT_SERVING, LIVENESS: _SERVING}
        self._checks = Presence(shares.OPEN_CROWD)
        self._watches = Presence(shares.HEALTH_WATCH_CROWD)
        self._changed = asyncio.Event()
        self._over = False

    def say_serving(self, serving: bool) -> None:
        """Tell who asks, or watches, whether calls can be served now."""
        told = _SERVING if serving and not self._over else _NOT_SERVING
        if self._statuses[""] != told:
            self._statuses.update(dict.fromkeys(self._names, told))
            # Each watcher waits for an event of its own time: what is set once wakes all, and holds none of them.
            self._changed.set()
            self._changed = asyncio.Event()

    def say_goodbye(self) -> None:
        """Tell them NOT_SERVING, for good, and end their streams after that."""
        self._over = True
        self._statuses.update(dict.fromkeys(self._names, _NOT_SERVING))
        self._changed.set()
        self._changed = asyncio.Event()

    def service(self, details: grpc.HandlerCallDetails) -> "_Handler | None":
        """Return what serves a call, or None where the method is not ours."""
        if details.method == f"/{SERVICE}/Check":
            return _Handler(stream_unary=self._check)
        if details.method == f"/{SERVICE}/Watch":
            return _Handler(stream_stream=self._watch)
        return None

    async def _check(self, _: object, context: Any) -> bytes:
        failed: Exception
        try:
            context.add_done_callback(self._checks.enter(context.peer()))
            told = self._statuses.get(await _name(context))
            if told is not None:
                return told
        except TumblerError as failure:
            failed = failure
        else:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return await status.end(context, failed, "Check")

    async def _watch(self, _: object, context: Any) -> None:
        failed: Exception
        try:
            context.add_done_callback(self._watches.enter(context.peer()))
            name = await _name(context)
            told = b""
            while True:
                changed, now = self._changed, self._statuses.get(name, _UNKNOWN)
                if now != told:
                    told = now
                    await context.write(told)
                if self._over:
                    return
                await changed.wait()
        except TumblerError as failure:
            failed = failure
        await status.end(context, failed, "Watch")


class _Handler:
    """What gRPC takes for the handler of a method; see ``rpc.exchange``."""

    request_streaming: ClassVar[bool] = True
    request_deserializer: ClassVar[None] = None
    response_serializer: ClassVar[None] = None
    unary_unary: ClassVar[None] = None
    unary_stream: ClassVar[None] = None

    def __init__(
        self, stream_unary: Callable[..., Any] | None = None, stream_stream: Callable[..., Any] | None = None
    ) -> None:
        self.stream_unary = stream_unary
        self.stream_stream = stream_stream
        self.response_streaming = stream_stream is not None


async def _within(work: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """Return what a coroutine returns. Raises ``asyncio.TimeoutError`` where that takes too long.

    ``asyncio.wait_for`` loses a cancellation that comes in the same moment as the result (before Python 3.12): who
    opened a stream and reset it at once would keep its place.
    """
    task, late = asyncio.current_task(), False

    def end() -> None:
        nonlocal late
        late = True
        task.cancel()  # type: ignore[union-attr]  # a coroutine runs in a task

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        return await work
    except asyncio.CancelledError:
        if late:
            raise asyncio.TimeoutError from None
        raise
    finally:
        timer.cancel()


async def _name(context: Any) -> str:
    """Receive which service is asked about."""
    try:
        data = await _within(context.read(), shares.SECONDS_TO_SEND.most)
    except asyncio.TimeoutError:
        raise RequestTooSlow(shares.SECONDS_TO_SEND.most) from None
    if not isinstance(data, bytes):
        raise Undecodable(health_pb2.HealthCheckRequest.DESCRIPTOR.full_name)
    if len(data) > shares.HEALTH_BYTES.most:
        raise RequestTooLarge(len(data), shares.HEALTH_BYTES.most)
    try:
        return str(health_pb2.HealthCheckRequest.FromString(data).service)
    except Exception:
        raise Undecodable(health_pb2.HealthCheckRequest.DESCRIPTOR.full_name) from None

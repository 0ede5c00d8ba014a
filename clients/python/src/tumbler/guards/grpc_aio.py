"""A guard for asyncio gRPC servers. It works like `tumbler.guards.grpc`.

::

    from tumbler.guards.grpc_aio import RequireKey, current, health_and_reflection

    guard = RequireKey(verifier, ["orders:read"], exempt=health_and_reflection)
    server = grpc.aio.server(interceptors=[guard])

When the key stops being valid, a streaming call ends: its handler is cancelled.
"""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import grpc

from tumbler._sessions import Session
from tumbler.guards._grpc import (
    HANDLER_KINDS,
    Call,
    Guard,
    current,
    health_and_reflection,
    identity,
    peer_address,
    status_of,
)
from tumbler.guards._rules import KEY_REQUIRED, Refusal, refusal_for_error, refusal_for_verdict

__all__ = ["Call", "RequireKey", "current", "health_and_reflection", "peer_address"]


class RequireKey(Guard, grpc.aio.ServerInterceptor):
    """Lets a call pass only with a key that the verifier (a `tumbler.aio.Verifier`) accepts."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wrap the handler. The key is verified when the handler is called."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or self._exempt(method):
            return handler
        name, make = HANDLER_KINDS[handler.request_streaming, handler.response_streaming]
        behavior, is_fed = getattr(handler, name), handler.request_streaming
        guarded = self._guarded(method, behavior, handler.response_streaming, is_fed)
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _guarded(self, method: str, behavior: Callable[..., Any], streams: bool, is_fed: bool) -> Callable[..., Any]:
        # gRPC gives each call its own task, and so its own context: only its handler sees what is set here.
        async def unary(request: Any, context: Any) -> Any:
            async with await self._admit(method, context, is_fed):
                return await behavior(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with await self._admit(method, context, True) as call:
                responses = behavior(request, _Context(context, call))
                if inspect.isawaitable(responses):
                    await responses  # the handler writes to the context itself
                    return
                try:
                    async for response in responses:
                        if call.refusal is not None:
                            return
                        call.is_sending = True
                        yield response
                        call.sent()
                        if call.refusal is not None:
                            return
                finally:
                    if hasattr(responses, "aclose"):
                        await responses.aclose()

        return stream if streams else unary

    async def _admit(self, method: str, context: Any, is_stream: bool) -> "_Admitted":
        refusal, since = KEY_REQUIRED, self._streams.change_count
        try:
            arguments = self._verify_arguments(method, context)
            if arguments is not None:
                verification = await self._verifier.verify(**arguments)
                refused = refusal_for_verdict(verification)
                if refused is None:
                    identity.set(verification)
                    call = _Admitted(context)
                    if is_stream:
                        call.session = self._streams.hold(arguments, verification, since, call.end)
                    return call
                refusal = refused
        except Exception as error:
            refusal = refusal_for_error(error)
        await context.abort(status_of(refusal), refusal.text)
        raise AssertionError("abort raises")


_SENDING = 1.0
"""Seconds that a peer has to read the first message when its call is ended."""


def _background(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """Run work in a task of its own. Its failure is of no interest: the caller may have hung up."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class _Context:
    """The context of a call, which notes when the handler sends something by it."""

    def __init__(self, context: Any, call: "_Admitted") -> None:
        self._context = context
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        await self._send(self._context.write(message))

    async def send_initial_metadata(self, metadata: Any) -> None:
        await self._send(self._context.send_initial_metadata(metadata))

    async def _send(self, sending: Awaitable[None]) -> None:
        self._call.is_sending = True
        await sending
        self._call.sent()


class _Admitted:
    """A call while its handler runs, created in the handler's task. Cancels the task when the key stops being valid."""

    def __init__(self, context: Any) -> None:
        self.session: Session | None = None
        self.refusal: Refusal | None = None
        self.is_sending = False
        self._first_sent = asyncio.Event()
        self._context = context
        self._task = asyncio.current_task()
        self._ending: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    def sent(self) -> None:
        """Note that what was being sent has been."""
        self.is_sending = False
        self._first_sent.set()

    def end(self, refusal: Refusal) -> None:
        """End the call."""
        self.refusal = refusal
        if self._task is not None and self._ending is None:
            self._ending = _background(self._end(self._task, refusal))

    async def _end(self, task: "asyncio.Task[Any]", refusal: Refusal) -> None:
        # gRPC sends the initial metadata with the first message. While that is in flight it can send no status, and if
        # its task is cancelled then, never: the caller would wait forever.
        if self.is_sending:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._first_sent.wait(), _SENDING)
        if self.is_sending:
            # A peer that does not read must not hold up the handler. The cancellation hits gRPC's own frames, which
            # send no status to the caller. So the status is queued as well, behind the message being sent.
            self._telling = _background(self._tell(refusal))
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            task.cancel()

    async def __aenter__(self) -> "_Admitted":
        return self

    async def __aexit__(self, kind: Any, *_: object) -> None:
        if self.session is not None:
            self.session.close()
        if self._ending is not None:
            self._ending.cancel()  # the handler has ended by itself meanwhile; or else it is over
        if self._telling is not None:
            if kind is not GeneratorExit:  # this raises the abort's error: a plain return would look like a normal end
                await asyncio.shield(self._telling)
        elif self.refusal is not None:
            # Whatever the handler did when it was cancelled. If the caller has hung up too, this reaches no one.
            await self._tell(self.refusal)

    async def _tell(self, refusal: Refusal) -> None:
        await self._context.abort(status_of(refusal), refusal.text)

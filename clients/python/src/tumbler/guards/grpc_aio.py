"""A guard for gRPC servers of asyncio, otherwise as `tumbler.guards.grpc`.

::

    from tumbler.guards.grpc_aio import RequireKey, current, health_and_reflection

    guard = RequireKey(verifier, ["orders:read"], exempt=health_and_reflection)
    server = grpc.aio.server(interceptors=[guard])
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from tumbler.guards._grpc import Call, Guard, current, health_and_reflection, identity, peer_address, status_of
from tumbler.guards._rules import NO_KEY, refusal_after, refusal_of
from tumbler.guards.grpc import _KINDS

__all__ = ["Call", "RequireKey", "current", "health_and_reflection", "peer_address"]


class RequireKey(Guard, grpc.aio.ServerInterceptor):  # type: ignore[misc] # grpc ships no types
    """Lets a call pass only with a key that the verifier (a `tumbler.aio.Verifier`) says yes to."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wrap the handler: the key is verified when it is called."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or self._exempt(method):
            return handler
        name, make = _KINDS[handler.request_streaming, handler.response_streaming]
        guarded = self._guarded(method, getattr(handler, name), handler.response_streaming)
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _guarded(self, method: str, behavior: Callable[..., Any], streaming: bool) -> Callable[..., Any]:
        # gRPC gives each call a task, and so a context of its own: what is set here is seen by its handler alone.
        async def unary(request: Any, context: Any) -> Any:
            await self._admit(method, context)
            return await behavior(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await self._admit(method, context)
            responses = behavior(request, context)
            if inspect.isawaitable(responses):
                await responses  # a handler that writes to the context itself
                return
            async for response in responses:
                yield response

        return stream if streaming else unary

    async def _admit(self, method: str, context: Any) -> None:
        refusal = NO_KEY
        try:
            question = self._question(method, context)
            if question is not None:
                told = await self._verifier.verify(**question)
                refused = refusal_of(told)
                if refused is None:
                    identity.set(told)
                    return
                refusal = refused
        except Exception as error:
            refusal = refusal_after(error)
        await context.abort(status_of(refusal), refusal.text)

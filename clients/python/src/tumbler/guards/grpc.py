"""A guard for threaded gRPC servers.

::

    from tumbler.guards.grpc import RequireKey, current, health_and_reflection

    guard = RequireKey(verifier, ["orders:read"], exempt=health_and_reflection)
    server = grpc.server(ThreadPoolExecutor(), interceptors=[guard])

In a handler, ``current()`` is the `Verification` of the key that let the call pass. When that key stops being valid, a
streaming call ends. Its handler sees what it sees when the caller hangs up: ``context.is_active()`` is false, its
callbacks are called, and the iterator of requests raises ``grpc.RpcError``. If the peer does not read, the guard
releases the thread a second later.
"""

import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from tumbler._sessions import Session
from tumbler.guards._ending import end_call
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
from tumbler.verification import Verification

__all__ = ["Call", "RequireKey", "current", "health_and_reflection", "peer_address"]


class RequireKey(Guard, grpc.ServerInterceptor):
    """Lets a call pass only with a key that the verifier (a `tumbler.Verifier`) accepts."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wrap the handler. The key is verified in the handler's thread: verifying here would block all calls."""
        handler, method = continuation(handler_call_details), handler_call_details.method
        if handler is None or self._exempt(method):
            return handler
        name, make = HANDLER_KINDS[handler.request_streaming, handler.response_streaming]
        behavior = getattr(handler, name)
        if getattr(behavior, "experimental_non_blocking", False):
            # gRPC would pass it a third argument, and run it in a thread that must not wait for the verifier.
            raise NotImplementedError(f"{method}: a non-blocking handler cannot be guarded; exempt it")
        guarded = self._guarded(method, behavior, handler.response_streaming, handler.request_streaming)
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _guarded(self, method: str, behavior: Callable[..., Any], streams: bool, is_fed: bool) -> Callable[..., Any]:
        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            admitted, session = self._admit(method, context, is_fed)
            try:
                return admitted.run(behavior, request, context)
            finally:
                if session is not None:
                    session.close()

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            admitted, session = self._admit(method, context, True)
            responses: Any = None
            try:
                responses = admitted.run(behavior, request, context)
                while True:
                    try:
                        response = admitted.run(next, responses)
                    except StopIteration:
                        return
                    yield response
            finally:
                if session is not None:
                    session.close()
                if hasattr(responses, "close"):
                    admitted.run(responses.close)

        # wraps() also copies the handler's attributes: it may have its own thread pool.
        return functools.wraps(behavior)(stream if streams else unary)

    def _admit(
        self, method: str, context: grpc.ServicerContext, is_stream: bool
    ) -> tuple[contextvars.Context, Session | None]:
        """Return the context to run the handler in, with the key's identity; or abort the call."""
        refusal, since = KEY_REQUIRED, self._streams.change_count
        try:
            arguments = self._verify_arguments(method, context)
            if arguments is not None:
                verification = self._verifier.verify(**arguments)
                refused = refusal_for_verdict(verification)
                if refused is None:
                    admitted = contextvars.copy_context()
                    admitted.run(identity.set, verification)
                    return admitted, self._open(arguments, verification, since, context) if is_stream else None
                refusal = refused
        except Exception as error:
            refusal = refusal_for_error(error)
        context.abort(status_of(refusal), refusal.text)
        raise AssertionError("abort raises")

    def _open(
        self, arguments: dict[str, Any], verification: Verification, since: int, context: grpc.ServicerContext
    ) -> Session | None:
        def ended(refusal: Refusal) -> None:
            end_call(context, status_of(refusal), refusal.text)

        session = self._streams.hold(arguments, verification, since, ended)
        if session is not None:
            # A handler that waits for something else may notice only much later that its caller has gone.
            context.add_callback(session.close)
        return session

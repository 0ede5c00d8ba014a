"""Ending a call of a gRPC server with threads from beside its handler."""

from typing import Any

import grpc


def end_call(context: Any, status: grpc.StatusCode, details: str) -> None:
    """End a call with a status, now, whatever its handler is doing or waiting for.

    gRPC ends a call by a status only in the handler's own thread, which may wait for a message for hours; from another
    thread it can only be cancelled, and the caller be told CANCELLED. So this does what gRPC does when a handler
    aborts, and then what it does when the caller has hung up. With a version that has these parts otherwise, the call
    is cancelled.
    """
    try:
        from grpc import _server

        state, call, end, gone = context._state, context._rpc_event.call, _server._abort, _server._CANCELLED
        with state.condition:
            if state.client is gone or state.statused:
                return
            state.code, state.details = status, details.encode()
            end(state, call, None, state.details)
            state.client = gone
            state.condition.notify_all()
    except Exception:
        context.cancel()

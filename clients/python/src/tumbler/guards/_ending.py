"""Ends a call of a threaded gRPC server from outside its handler."""

import threading
from typing import Any

import grpc

_SENDING = 1.0
"""Seconds that a peer has to read the message being sent to it when its call is ended."""


def end_call(context: Any, status: grpc.StatusCode, details: str) -> None:
    """End a call with a status, now, whatever its handler is doing or waiting for.

    gRPC ends a call with a status only in the handler's own thread, which may wait for a message for hours. Another
    thread can only cancel the call, and then the caller receives CANCELLED. So this does what gRPC does when a handler
    aborts, and then what it does when the caller has hung up.

    If a version of gRPC has different internals, the call is cancelled. It is also cancelled a second later if the
    handler's thread is still sending to a peer that does not read.
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
            is_sending = _server._SEND_MESSAGE_TOKEN in state.due
        if is_sending:
            _cancel_if_stuck(context, state, _server._SEND_MESSAGE_TOKEN)
    except Exception:
        context.cancel()


def _cancel_if_stuck(context: Any, state: Any, sending: Any) -> None:
    def look() -> None:
        with state.condition:
            is_stuck = sending in state.due
        if is_stuck:
            context.cancel()

    # At most one timer for each thread of the server's pool.
    timer = threading.Timer(_SENDING, look)
    timer.daemon = True
    timer.start()

"""The stream of changes, resumed where it broke."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Timer
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration

from tumbler.cli.errors import Failure
from tumbler.cli.session import Session
from tumbler.v1.api_key_service_pb2 import WatchRequest, WatchResponse

__all__ = ["Broken", "follow"]

_HEARTBEAT: Final = timedelta(seconds=5)
_SHORTEST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0

_FINAL: Final = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""Statuses that a retry would not change."""


@dataclass(frozen=True)
class Broken:
    """The stream broke, or could not be resumed."""

    failure: Failure


class _Lost(grpc.RpcError):
    """The error for a stream that did not end with its own error."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()


def follow(
    session: Session,
    project: str,
    longest_silence: timedelta = 2.5 * _HEARTBEAT,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[WatchResponse | Broken]:
    """Yield the responses of Watch, from now on and forever, including heartbeats.

    If the stream breaks, or is silent for `longest_silence`, this yields a `Broken` and resumes from the last cursor,
    after a pause that grows to at most 5 s. It does the same after each failed attempt. If the server no longer knows
    the cursor, the stream starts over, and the next response has `reset` set.

    Raises:
        grpc.RpcError: The server was never reached, or refuses for a permanent reason.

    """
    request = WatchRequest(project_id=project, heartbeat_interval=_seconds(_HEARTBEAT))
    heard = missed = False
    failures = 0
    while True:
        try:
            for response in _responses(session, request, longest_silence):
                request.start_cursor = response.cursor
                response.reset = response.reset or missed
                heard, missed, failures = True, False, 0
                yield response
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT and request.start_cursor:
                request.start_cursor, missed = "", True
                continue
            if not heard or error.code() in _FINAL:
                raise
            failure = Failure.of(error, session.endpoint, session.api_key)
            yield Broken(failure)
            sleep(max(_pause(failures), failure.retry_seconds or 0))
            failures += 1


def _responses(session: Session, request: WatchRequest, longest_silence: timedelta) -> Iterator[WatchResponse]:
    call = session.stream("Watch", request)
    try:
        yield _next(call, session.timeout)
        while True:
            yield _next(call, longest_silence)
    finally:
        call.cancel()


def _next(call: Any, patience: timedelta) -> WatchResponse:
    """Read a response. The call has no deadline, so a timer ends it if nothing arrives."""
    silent = Event()

    def give_up() -> None:
        silent.set()
        call.cancel()

    timer = Timer(patience.total_seconds(), give_up)
    timer.daemon = True
    timer.start()
    try:
        response: WatchResponse = next(call)
    except StopIteration:
        raise _Lost(grpc.StatusCode.UNAVAILABLE, "the server ended the stream") from None
    except grpc.RpcError:
        if silent.is_set():
            text = f"no heartbeat arrived for {patience.total_seconds():g} s"
            raise _Lost(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
        raise
    finally:
        timer.cancel()
    return response


def _pause(failures: int) -> float:
    """Return the seconds to wait: random, so that the clients of a stopped server do not all return at once."""
    # An unbounded exponent would overflow after a day without a server.
    return random.uniform(0, min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2 ** min(failures, 10)))  # noqa: S311 - jitter


def _seconds(span: timedelta) -> Duration:
    result = Duration()
    result.FromTimedelta(span)
    return result

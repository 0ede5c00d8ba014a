"""A stream of Watch over gRPC: what a hub tells becomes messages, and the calling key is judged again as it changes."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import Clock
from tumbler_server.errors import KeyNotFound, Unauthenticated
from tumbler_server.events.feed import Notice
from tumbler_server.events.watch import Hub
from tumbler_server.keys.lifecycle import Lifecycle
from tumbler_server.keys.record import Key
from tumbler_server.keys.tokens import Tokens
from tumbler_server.rpc import auth, status, wire

METHOD = "Watch"

Send = Callable[[bytes | None], None]
"""What gRPC gives a handler that does not block: it hands over a response, or with None ends the call."""


@dataclass(frozen=True)
class Wanted:
    """What a Watch asks for. ``start``: after this revision; None: from now on."""

    project_id: str
    start: int | None
    interval: int


class Watching:
    """Opens streams."""

    def __init__(self, hub: Hub, lifecycle: Lifecycle, tokens: Tokens, clock: Clock) -> None:
        self._hub = hub
        self._lifecycle = lifecycle
        self._tokens = tokens
        self._clock = clock

    def open(self, caller: Key, wanted: Wanted, context: grpc.ServicerContext, send: Send) -> None:
        """Begin to tell a caller, and return. Raises ``Overloaded`` and ``ServerStopping``."""
        line = _Line(caller, context, send, self._lifecycle, self._tokens, self._clock)
        until = min(caller.expire_time, caller.grace_expire_time)
        stream = self._hub.open(line, wanted.project_id, caller.id, until, wanted.interval, wanted.start)
        if not context.add_callback(lambda: self._hub.gone(stream)):
            self._hub.gone(stream)


class _Line:
    """What leads to a caller."""

    def __init__(
        self,
        caller: Key,
        context: grpc.ServicerContext,
        send: Send,
        lifecycle: Lifecycle,
        tokens: Tokens,
        clock: Clock,
    ) -> None:
        self._caller = caller
        self._address = auth.peer_address(context.peer())
        self._context = context
        self._send = send
        self._lifecycle = lifecycle
        self._tokens = tokens
        self._clock = clock

    def send(self, notice: Notice) -> None:
        if notice.rendered is None:
            # For all streams that are told the same.
            object.__setattr__(notice, "rendered", _rendered(notice, self._tokens))
        self._send(notice.rendered)

    def end(self, failure: Exception) -> None:
        status.end(self._context, self._send, failure, METHOD)

    def cut(self) -> None:
        self._context.cancel()

    def check(self, anew: bool) -> int:
        if anew:
            try:
                self._caller = self._lifecycle.get(self._caller, self._caller.id).key
            except KeyNotFound:
                raise Unauthenticated from None
        auth.check_again(self._caller, self._address, METHOD, self._clock())
        return min(self._caller.expire_time, self._caller.grace_expire_time)


def _rendered(notice: Notice, tokens: Tokens) -> bytes:
    return pb.WatchResponse(
        events=[wire.event(event) for event in notice.events],
        cursor=tokens.consistency(notice.cursor),
        reset=notice.reset,
    ).SerializeToString()

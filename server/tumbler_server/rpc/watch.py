"""A Watch stream: turns what the hub reports into messages, and checks the calling key again when it changes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import Clock
from tumbler_server.errors import KeyNotFound, Unauthenticated
from tumbler_server.keys.lifecycle import Lifecycle
from tumbler_server.keys.record import Key
from tumbler_server.rpc import auth, responses
from tumbler_server.secrets.opaque_tokens import OpaqueTokens, Point
from tumbler_server.streams.feed import Notice
from tumbler_server.streams.hub import Hub

METHOD = "Watch"

Write = Callable[[bytes], Awaitable[None]]
"""Hands a message to gRPC, and returns when gRPC accepts the next one."""


@dataclass(frozen=True)
class WatchQuery:
    """What a Watch asks for: changes after ``start``, or from now on if it is None."""

    project_id: str
    start: Point | None
    interval: int


class Watching:
    """Serves streams. Use it on the loop's thread only."""

    def __init__(self, hub: Hub, lifecycle: Lifecycle, tokens: OpaqueTokens, clock: Clock) -> None:
        self._hub = hub
        self._lifecycle = lifecycle
        self._tokens = tokens
        self._clock = clock

    async def serve(self, caller: Key, wanted: WatchQuery, address: str, write: Write) -> None:
        """Send changes to a caller at this IP address. Never returns: raises the reason why the stream ends.

        The reason is ``Unauthenticated``, ``ScopeMissing``, ``ReaderTooSlow``, ``Overloaded``, ``ServerStopping`` or
        ``StoreUnavailable``, or what ``write`` raises. If cancelled, it ends at once.
        """
        subscriber = _Subscriber(caller, address, write, self._lifecycle, self._tokens, self._clock)
        await self._hub.serve(subscriber, wanted.project_id, _end_of(caller), wanted.interval, wanted.start)


class _Subscriber:
    """A caller, as the hub expects it."""

    __slots__ = ("_address", "_caller", "_clock", "_lifecycle", "_tokens", "key_id", "tenant", "write")

    def __init__(
        self, caller: Key, address: str, write: Write, lifecycle: Lifecycle, tokens: OpaqueTokens, clock: Clock
    ) -> None:
        self.tenant = caller.project_id
        self.key_id = caller.id
        self.write = write
        self._caller = caller
        self._address = address
        self._lifecycle = lifecycle
        self._tokens = tokens
        self._clock = clock

    def render(self, notice: Notice) -> bytes:
        return pb.WatchResponse(
            events=[responses.watched(event) for event in notice.events],
            cursor=self._tokens.consistency(notice.cursor),
            reset=notice.reset,
        ).SerializeToString()

    def date(self, age: int) -> bytes:
        # Fields appended to a message's bytes are fields of that message.
        return pb.WatchResponse(stream_age=responses.duration(age)).SerializeToString()

    def read(self) -> Key:
        try:
            return self._lifecycle.get(self._caller, self._caller.id).key
        except KeyNotFound:
            raise Unauthenticated from None

    def judge(self, read: Key | None = None) -> int:
        if read is not None:
            self._caller = read
        auth.admit(self._caller, METHOD, self._clock(), lambda: self._address)
        return _end_of(self._caller)


def _end_of(key: Key) -> int:
    return min(key.expire_time, key.grace_expire_time)

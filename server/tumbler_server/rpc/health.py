"""The standard health service, implemented here: answers from memory, on the loop, without a credential.

``Check`` and ``Watch`` know four names: the server as a whole (``""``: can it take calls?), the service's own,
``liveness`` (does the process still answer?), and ``changes`` (can anything be changed?). Names that callers send are
not kept.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

import grpc
from grpc_health.v1 import health_pb2

from tumbler_server import shares
from tumbler_server.errors import TumblerError, Undecodable
from tumbler_server.rpc.accepting import FEW, SOME
from tumbler_server.rpc.ending import at_end
from tumbler_server.rpc.receiving import Method, Receiving, Visitor
from tumbler_server.rpc.serving import Details
from tumbler_server.rpc.shedding import Shedding

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

LIVENESS = "liveness"
"""A name that is SERVING as long as the process answers, whatever the state of its database."""

CHANGES = "changes"
"""A name that is NOT_SERVING while the database accepts no changes, for instance because its disk is full. Keys are
still verified then, so the server as a whole stays SERVING: clients that only verify must not lose it."""

_Status = health_pb2.HealthCheckResponse
_SERVING, _NOT_SERVING, _UNKNOWN = (
    _Status(status=each).SerializeToString() for each in (_Status.SERVING, _Status.NOT_SERVING, _Status.SERVICE_UNKNOWN)
)


class Health:
    """Answers health checks. ``service`` is the full name of our service. Use it on the loop's thread only."""

    paths: ClassVar[Mapping[str, int]] = {f"/{SERVICE}/Check": SOME, f"/{SERVICE}/Watch": FEW}

    def __init__(self, service: str, shedding: Shedding) -> None:
        self._names = ("", service)
        self._statuses: dict[str, bytes] = {
            "": _NOT_SERVING,
            service: _NOT_SERVING,
            LIVENESS: _SERVING,
            CHANGES: _NOT_SERVING,
        }
        self._changing = True
        self._shedding = shedding
        self._checking = Receiving(shares.OPEN_CROWD, shedding)
        self._watching = Receiving(shares.HEALTH_WATCH_CROWD, shedding)
        self._changed = asyncio.Event()
        self._over = False

    def say_serving(self, serving: bool) -> None:
        """Report whether calls can be served now."""
        told = _SERVING if serving and not self._over else _NOT_SERVING
        self._tell({**dict.fromkeys(self._names, told), CHANGES: told if self._changing else _NOT_SERVING})

    def say_changing(self, changing: bool) -> None:
        """Report whether changes can be made now. While nothing is served, they cannot."""
        self._changing = changing
        self._tell({CHANGES: self._statuses[""] if changing else _NOT_SERVING})

    def say_goodbye(self) -> None:
        """Report NOT_SERVING from now on, and then end the streams."""
        self._over = True
        self._tell(dict.fromkeys((*self._names, CHANGES), _NOT_SERVING))
        self._wake()

    def close(self) -> None:
        """End the calls that wait for anything."""
        self._checking.say_goodbye()
        self._watching.say_goodbye()

    def _tell(self, told: Mapping[str, bytes]) -> None:
        if any(self._statuses[name] != status for name, status in told.items()):
            self._statuses.update(told)
            self._wake()

    def _wake(self) -> None:
        # Set the event that all watchers wait for now. Later waits use the new one.
        self._changed.set()
        self._changed = asyncio.Event()

    def service(self, details: Details) -> Method | None:
        """Return the handler of a call, or None if the method is not ours."""
        if details.method == f"/{SERVICE}/Check":
            return Method(stream_unary=self._check)
        if details.method == f"/{SERVICE}/Watch":
            return Method(stream_stream=self._watch)
        return None

    async def _check(self, _: object, context: Any) -> bytes:
        failed: TumblerError
        visitor: Visitor | None = None
        try:
            visitor = self._checking.enter(context)
            told = self._statuses.get(await self._name(visitor))
            visitor.answered()
            if told is not None:
                return told
        except TumblerError as failure:
            failed = failure
        else:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return await self._checking.refuse(context, failed, "Check", visitor)

    async def _watch(self, _: object, context: Any) -> None:
        failed: TumblerError
        visitor: Visitor | None = None
        try:
            visitor = self._watching.enter(context)
            name = await self._name(visitor)
            at_end(self._shedding.stay(visitor.peer, stranger=True))
            told = b""
            while True:
                changed, now = self._changed, self._statuses.get(name, _UNKNOWN)
                if now != told:
                    told = now
                    await visitor.write(told)
                    continue  # it may have changed meanwhile
                if self._over:
                    visitor.answered()
                    return
                await visitor.wait(changed.wait)
        except TumblerError as failure:
            failed = failure
        await self._watching.refuse(context, failed, "Watch", visitor)

    async def _name(self, visitor: Visitor) -> str:
        """Receive the name of the service to check."""
        kind = health_pb2.HealthCheckRequest
        asked = await visitor.message(kind, shares.HEALTH_BYTES, shares.SECONDS_TO_SEND)
        if asked is None:
            raise Undecodable(kind.DESCRIPTOR.full_name)
        return str(asked.service)

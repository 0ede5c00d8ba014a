"""The table of methods, and how a call gets its handler."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tumbler_server import limits, shares
from tumbler_server.errors import (
    RequestTooLarge,
    RequestTooSlow,
    ServerStopping,
    SetupError,
    Unauthenticated,
)
from tumbler_server.limits import Limit
from tumbler_server.rpc import accepting, exchange, status
from tumbler_server.rpc.exchange import Cut, Exchange, Farewell, Handler, House, Plan, Refusal
from tumbler_server.rpc.lanes import Lane
from tumbler_server.rpc.presence import Presence
from tumbler_server.rpc.serving import Details
from tumbler_server.shares import CrowdLimit, LaneLimit

SWEEP = 0.5
"""Seconds between two checks for requests and answers that have timed out."""

BEHIND = 10
"""Niceness of threads that hash; it matters only when all processors are busy. See nice(2)."""


@dataclass(frozen=True)
class Lanes:
    """The threads behind the loop. Each kind of work has its own lane, so that none waits for another."""

    read: Lane
    change: Lane
    issue: Lane
    claim: Lane
    stop: Lane
    batch: Lane
    """Used only for its places: batches run on the loop, in slices."""


@dataclass(frozen=True)
class MethodRow:
    """A method's row in the table.

    ``lane`` takes the lanes and a request. ``long`` is as in ``Plan``, and ``at_a_time`` as in ``accepting``.
    """

    kind: type[Exchange]
    size: Limit
    crowd: CrowdLimit
    lane: Callable[[Lanes, Any], Lane]
    long: bool = False
    at_a_time: int = accepting.FEW


def _on_the_loop(_lanes: Lanes, _request: Any) -> Lane:
    raise TypeError("it has no lane: what it needs is in memory, or gathered by rpc.hotpath")


def _managed(
    lane: Callable[[Lanes, Any], Lane], crowd: CrowdLimit = shares.CALL_CROWD, long: bool = False
) -> MethodRow:
    at_a_time = accepting.SOME if crowd is shares.STOP_CROWD else accepting.FEW
    return MethodRow(exchange.Manage, limits.REQUEST_BYTES, crowd, lane, long, at_a_time)


METHODS: Mapping[str, MethodRow] = {
    "Verify": MethodRow(
        exchange.Verify, limits.VERIFY_BYTES, shares.VERIFY_CROWD, _on_the_loop, at_a_time=accepting.MANY
    ),
    "BatchVerify": MethodRow(
        exchange.BatchVerify, limits.BATCH_BYTES, shares.BATCH_CROWD, lambda lanes, _: lanes.batch, long=True
    ),
    "Watch": MethodRow(exchange.Watch, limits.REQUEST_BYTES, shares.WATCH_CROWD, _on_the_loop),
    "Get": _managed(lambda lanes, _: lanes.read),
    "List": _managed(lambda lanes, _: lanes.read, long=True),
    "ListEvents": _managed(lambda lanes, _: lanes.read, long=True),
    "ListDeliveries": _managed(lambda lanes, _: lanes.read, long=True),
    "Create": _managed(lambda lanes, _: lanes.issue),
    "Rotate": _managed(lambda lanes, _: lanes.issue),
    "ClaimRotation": MethodRow(exchange.Claim, limits.REQUEST_BYTES, shares.OPEN_CROWD, lambda lanes, _: lanes.claim),
    "Update": _managed(lambda lanes, _: lanes.change),
    "SetActive": _managed(lambda lanes, request: lanes.change if request.active else lanes.stop, shares.STOP_CROWD),
    "Revoke": _managed(lambda lanes, _: lanes.stop, shares.STOP_CROWD),
    "Redeliver": _managed(lambda lanes, _: lanes.change),
    "RotateWebhookSecret": _managed(lambda lanes, _: lanes.change),
}
"""How each RPC is served, how large its request may be, how many calls may be in flight, and which lane runs them."""


class Engine:
    """Serves the methods of the service. Use it on the loop's thread only."""

    def __init__(self, service: ServiceDescriptor, house: House, lanes: Lanes) -> None:
        check_methods(service)
        self._house = house
        self._unauthenticated = Refusal(status.told(Unauthenticated(), ""), house.shedding)
        self._no_method = Refusal(status.NO_METHOD, house.shedding)
        self._farewell = Farewell(status.told(ServerStopping(), ""))
        self._over = False
        known = house.shedding.has_been_let_in
        self._crowds = crowds = {row.crowd: Presence(row.crowd, known) for row in METHODS.values()}
        self._calls = [crowd for limit, crowd in crowds.items() if limit is not shares.WATCH_CROWD]
        self._plans = {
            f"/{service.full_name}/{method.name}": _plan(method, METHODS[method.name], crowds, house, lanes)
            for method in service.methods
        }
        self.paths = {
            f"/{service.full_name}/{method.name}": METHODS[method.name].at_a_time for method in service.methods
        }

    def service(self, details: Details) -> Handler:
        """Return the handler of a call whose headers have arrived."""
        if details.size > shares.HEADER_BYTES.most:
            return Cut(
                status.told(RequestTooLarge(details.size, shares.HEADER_BYTES.most, "header"), ""),
                self._house.shedding,
                whoever=details.size > shares.ABSURD,
            )
        if self._over:
            return self._farewell
        plan = self._plans.get(details.method)
        if plan is None:
            return self._no_method
        call = plan.kind(self._house, plan)
        call.headed = details.size
        try:
            call.judge_headers(details.invocation_metadata)
        except Unauthenticated:
            return self._unauthenticated
        except Exception as failure:
            call.failure = failure
        return call

    @property
    def under_way(self) -> int:
        """The number of calls in flight, without streams."""
        return sum(map(len, self._calls))

    def awaited(self) -> dict[str, int]:
        """Return how many bytes of messages the server currently accepts from each peer."""
        awaited: dict[str, int] = {}
        for crowd in self._crowds.values():
            for call in crowd.waiting:
                size = call.plan.size.most if isinstance(call, Exchange) else 0
                awaited[call.peer] = awaited.get(call.peer, 0) + size
        return awaited

    async def sweep(self) -> None:
        """End calls whose request is late, and cut off calls whose answer is not read. Runs until cancelled."""
        to_send, to_read = shares.SECONDS_TO_SEND.most, shares.SECONDS_TO_READ.most
        while True:
            await asyncio.sleep(SWEEP)
            now = time.monotonic()
            for crowd in self._crowds.values():
                crowd.end_waiting(now - to_send, RequestTooSlow(to_send))
                crowd.cut_unread(now - to_read)

    def say_goodbye(self) -> None:
        """End all calls whose request has not arrived, and refuse new ones."""
        self._over = True
        for crowd in self._crowds.values():
            crowd.end_waiting(math.inf, ServerStopping())


def check_methods(service: ServiceDescriptor, methods: Mapping[str, MethodRow] = METHODS) -> None:
    """Raise ``SetupError`` unless the table has exactly one row for each RPC of the service."""
    offered = {method.name for method in service.methods}
    if missing := sorted(offered - methods.keys()):
        raise SetupError(f"no lane and limits for {', '.join(missing)}: add a row to rpc.engine.METHODS")
    if unknown := sorted(methods.keys() - offered):
        raise SetupError(f"rpc.engine.METHODS names RPCs that do not exist: {', '.join(unknown)}")


def lane_limits(threads: int, cores: int) -> Mapping[str, LaneLimit]:
    """Return the limits of all lanes, for a process with this many threads for blocking work and this many cores."""
    reads, read = max(1, threads // 8), max(2, threads // 4)
    return {
        "reads": LaneLimit("records to verify", reads, reads, 2_048, 1_024),
        "proofs": LaneLimit("proofs by bcrypt", cores, max(1, cores - 1), 32, 16),
        "batch": LaneLimit("batch", 2, 1, 256, 64),
        "read": LaneLimit("read", read, read - 1, 1_024, 128),
        "change": LaneLimit("change", 2, 1, 1_024, 128),
        "issue": LaneLimit("issue", max(2, cores), max(1, cores - 1), 1_024, 128),
        "claim": LaneLimit("claim", 1, 1, 256, 16),
        "stop": LaneLimit("stop", 2, 1, 1_024, 128),
    }


def _plan(method: Any, row: MethodRow, crowds: Mapping[CrowdLimit, Presence], house: House, lanes: Lanes) -> Plan:
    request = GetMessageClass(method.input_type)
    return Plan(
        method.name,
        row.kind,
        request,
        row.size,
        crowds[row.crowd],
        getattr(getattr(type(house.servicer), method.name), "answer", _no_answer),
        lambda wanted: row.lane(lanes, wanted),
        row.long,
    )


def _no_answer(_servicer: object, _caller: object, _request: object) -> Message:
    raise TypeError("it is a stream")

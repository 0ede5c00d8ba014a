"""Turns requests into plain data: presence, times and durations. The domain has the rules about them."""

import copy
import functools
import hashlib
from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tumbler.decide import Demand
from tumbler.v1 import api_key_pb2 as pb
from tumbler.v1 import api_key_service_pb2 as service_pb
from tumbler_server import limits
from tumbler_server.clock import HOUR, SECOND
from tumbler_server.errors import InvalidFields, OtherProject, Violation
from tumbler_server.keys import access
from tumbler_server.keys.differences import UPDATABLE
from tumbler_server.keys.idempotency import RequestId
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.keys.listing import Query
from tumbler_server.keys.record import Key
from tumbler_server.keys.rotation import DEFAULT_GRACE, Rotation
from tumbler_server.keys.rules import Validation
from tumbler_server.keys.trail import EventQuery
from tumbler_server.keys.webhook_admin import DeliveryQuery
from tumbler_server.rpc.counting import demand
from tumbler_server.rpc.watch import WatchQuery
from tumbler_server.secrets.opaque_tokens import START, OpaqueTokens
from tumbler_server.verify.verifier import Question

# The ranges of Timestamp and Duration, from google/protobuf/timestamp.proto and duration.proto.
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799
_LONGEST = 315_576_000_000

_MOST_SCOPES = limits.ENTRIES["required_scopes"]
_MEMORABLE = limits.DEMAND_TEXT.most

DEFAULT_HEARTBEAT = 5 * SECOND
SHORTEST_HEARTBEAT, LONGEST_HEARTBEAT = SECOND, HOUR


def draft(request: service_pb.CreateRequest) -> Draft:
    """Return what a Create asks for."""
    demand(request)
    return Draft(
        project_id=request.project_id,
        environment_id=request.environment_id,
        name=request.name,
        owner_id=request.owner_id,
        scopes=tuple(request.scopes),
        metadata=dict(request.metadata),
        allowed_cidrs=tuple(request.allowed_cidrs),
        expire_time=_optional_instant(request, "expire_time", "expire_time"),
        ttl=_optional_span(request, "ttl", "ttl"),
        prefix=request.prefix,
        rotation_interval=_interval(request, ""),
        webhook_url=request.rotation.webhook_url,
        request_id=_request_id(request),
        validate_only=request.validate_only,
    )


def edit(request: service_pb.UpdateRequest) -> Edit:
    """Return what an Update asks for."""
    demand(request)
    key = pb.ApiKey()
    key.CopyFrom(request.api_key)
    if request.HasField("update_mask"):
        fields = tuple(dict.fromkeys(request.update_mask.paths))
    else:  # AIP-134: without a mask, all fields that are set
        present = {descriptor.name for descriptor, _ in key.ListFields()}
        fields = tuple(name for name in UPDATABLE if name in present)
    for name in UPDATABLE:
        if name not in fields:  # no rule applies to fields that do not change
            key.ClearField(name)
    return Edit(
        key_id=key.id,
        draft=Draft(
            project_id="",
            name=key.name,
            owner_id=key.owner_id,
            scopes=tuple(key.scopes),
            metadata=dict(key.metadata),
            allowed_cidrs=tuple(key.allowed_cidrs),
            expire_time=_optional_instant(key, "expire_time", "api_key.expire_time"),
            rotation_interval=_interval(key, "api_key."),
            webhook_url=key.rotation.webhook_url,
        ),
        fields=fields,
        etag=key.etag,
    )


def rotation(request: service_pb.RotateRequest) -> Rotation:
    """Return what a Rotate asks for."""
    demand(request)
    return Rotation(
        key_id=request.key_id,
        grace=grace(request),
        old_key_ends=request.old_key_ends,
        expire_time=_optional_instant(request, "expire_time", "expire_time"),
        ttl=_optional_span(request, "ttl", "ttl"),
        request_id=_request_id(request),
    )


def grace(request: service_pb.RotateRequest | service_pb.ClaimRotationRequest) -> int:
    """Return how long the old key works after a Rotate or ClaimRotation."""
    span = _optional_span(request, "grace_period", "grace_period")
    return DEFAULT_GRACE if span is None else span


def query(request: service_pb.ListRequest) -> Query:
    """Return what a List asks for."""
    demand(request)
    return Query(
        project_id=request.project_id,
        environment_id=request.environment_id,
        owner_id=request.owner_id,
        states=tuple(request.states),
        scope=request.scope,
        search=request.search,
        order_by=request.order_by,
        page_size=request.page_size,
        page_token=request.page_token,
        skip=request.skip,
        show_total_size=request.show_total_size,
    )


def event_query(request: service_pb.ListEventsRequest) -> EventQuery:
    """Return what a ListEvents asks for."""
    demand(request)
    since = _optional_instant(request, "since_time", "since_time")
    if since is not None and request.since_time.nanos % 1_000:
        since += 1  # round up: events have whole microseconds
    return EventQuery(
        project_id=request.project_id,
        key_id=request.key_id,
        types=tuple(request.types),
        since_time=since,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def delivery_query(request: service_pb.ListDeliveriesRequest) -> DeliveryQuery:
    """Return what a ListDeliveries asks for."""
    demand(request)
    return DeliveryQuery(
        project_id=request.project_id,
        key_id=request.key_id,
        states=tuple(request.states),
        page_size=request.page_size,
        page_token=request.page_token,
    )


def question(caller: Key, request: service_pb.VerifyRequest, tokens: OpaqueTokens) -> Question:
    """Return what a Verify asks. Raises ``InvalidFields`` and ``OtherProject``."""
    scopes = request.required_scopes
    if len(scopes) > _MOST_SCOPES:  # check before copying; see counting.COUNTED_WHERE_READ
        raise InvalidFields([Violation("required_scopes", f"must hold at most {_MOST_SCOPES} entries")])
    project_id, environment_id, client_ip = request.project_id, request.environment_id, request.client_ip
    own, required = access.scope_of(caller, ""), tuple(scopes[:])  # a slice takes half the time of an iteration
    # Callers fill the cache of checked demands, so only short ones enter it.
    length = len(project_id) + len(environment_id) + len(client_ip) + len("".join(required))
    check = _checked_before if length <= _MEMORABLE else _checked
    wanted = check(own, project_id, environment_id, required, client_ip)
    if project_id:
        access.enter(caller, project_id)
    if not request.HasField("consistency"):
        return Question(request.key, wanted)
    consistency = request.consistency
    return Question(
        request.key,
        wanted,
        at_least=tokens.point(consistency.at_least_as_fresh) if consistency.HasField("at_least_as_fresh") else START,
        fully_consistent=consistency.fully_consistent,
    )


def _checked(
    own: str, project_id: str, environment_id: str, required_scopes: tuple[str, ...], client_ip: str
) -> Demand:
    """Return the conditions that a key must meet, checked. ``own`` is the project to use if the request names none."""
    check = Validation()
    check.filter("project_id", project_id)
    check.filter("environment_id", environment_id)
    required = check.required_scopes("required_scopes", required_scopes)
    check.address("client_ip", client_ip)
    check.done()
    project = project_id or own
    return Demand((project,) if project else (), environment_id, required, client_ip)


# Most callers send the same few demands again and again. Invalid demands are not cached.
_checked_before = functools.lru_cache(maxsize=limits.CACHED_DEMANDS.most)(_checked)


def questions(caller: Key, request: service_pb.BatchVerifyRequest, tokens: OpaqueTokens) -> Iterator[Question | None]:
    """Yield what a BatchVerify asks, or None for an item that Verify would reject.

    Raises ``InvalidFields`` if there are no items, or too many.
    """
    demand(request)
    if not request.requests:
        raise InvalidFields([Violation("requests", f"must be 1-{limits.ENTRIES['requests']:,}")])

    def read(item: service_pb.VerifyRequest) -> Question | None:
        try:
            return question(caller, item, tokens)
        except (InvalidFields, OtherProject):
            return None

    return map(read, request.requests)


def watch(caller: Key, request: service_pb.WatchRequest, tokens: OpaqueTokens) -> WatchQuery:
    """Return what a Watch asks for. Raises ``InvalidFields`` and ``OtherProject``."""
    demand(request)
    check = Validation()
    check.filter("project_id", request.project_id)
    interval = _optional_span(request, "heartbeat_interval", "heartbeat_interval")
    if interval is None:
        interval = DEFAULT_HEARTBEAT
    elif not SHORTEST_HEARTBEAT <= interval <= LONGEST_HEARTBEAT:
        check.fail("heartbeat_interval", "must be 1 s to 1 h")
    check.done()
    return WatchQuery(
        project_id=access.scope_of(caller, request.project_id),
        start=tokens.point(request.start_cursor, "start_cursor") if request.start_cursor else None,
        interval=interval,
    )


def _interval(message: service_pb.CreateRequest | pb.ApiKey, path: str) -> int | None:
    if not message.HasField("rotation"):
        return None
    interval = _optional_span(message.rotation, "interval", f"{path}rotation.interval")
    if interval is None:
        raise InvalidFields([Violation(f"{path}rotation.interval", "is required in a rotation")])
    return interval


def _optional_instant(message: Message, name: str, path: str) -> int | None:
    if not message.HasField(name):
        return None
    value: Timestamp = getattr(message, name)
    if not (_EARLIEST <= value.seconds <= _LATEST and 0 <= value.nanos < 1_000_000_000):
        raise InvalidFields([Violation(path, "must be a time between the years 1 and 9999")])
    return value.seconds * SECOND + value.nanos // 1_000


def _optional_span(message: Message, name: str, path: str) -> int | None:
    if not message.HasField(name):
        return None
    value: Duration = getattr(message, name)
    nanos, seconds = value.nanos, value.seconds
    contrary = (seconds < 0 < nanos) or (nanos < 0 < seconds)
    if contrary or not (-_LONGEST <= seconds <= _LONGEST and -1_000_000_000 < nanos < 1_000_000_000):
        raise InvalidFields([Violation(path, "must be a duration of at most 10,000 years")])
    return (seconds * 1_000_000_000 + nanos) // 1_000


def _request_id(request: service_pb.CreateRequest | service_pb.RotateRequest) -> RequestId:
    if not request.request_id:
        return RequestId()
    body = copy.deepcopy(request)
    body.ClearField("request_id")
    text = request.DESCRIPTOR.full_name.encode() + b"\n" + body.SerializeToString(deterministic=True)
    return RequestId(request.request_id.lower(), hashlib.sha256(text).digest())

"""Records become messages. One direction: what comes in is read in ``rpc.reading``."""

from collections.abc import Callable, Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tumbler.v1 import api_key_pb2 as pb
from tumbler.v1 import api_key_service_pb2 as service_pb
from tumbler.v1 import event_pb2 as event_pb
from tumbler_server.clock import NEVER, SECOND
from tumbler_server.events.log import Event
from tumbler_server.keys.decide import Code
from tumbler_server.keys.record import Key
from tumbler_server.keys.verifier import Verdict


def api_key(key: Key, now: int) -> pb.ApiKey:
    """Return a key as callers see it at ``now``."""
    message = pb.ApiKey(
        id=key.id,
        project_id=key.project_id,
        environment_id=key.environment_id,
        name=key.name,
        key_prefix=key.key_prefix,
        owner_id=key.owner_id,
        scopes=key.scopes,
        metadata=key.metadata,
        allowed_cidrs=key.allowed_cidrs,
        state=pb.State.Name(key.state(now)),
        create_time=timestamp(key.create_time),
        created_by=pb.Actor(key_id=key.created_by.key_id, name=key.created_by.name),
        update_time=timestamp(key.update_time),
        expire_time=timestamp(key.expire_time),
        last_used_time=timestamp(key.last_used_time or NEVER),
        revoke_time=timestamp(key.revoke_time),
        revoke_reason=pb.RevokeReason.Name(key.revoke_reason),
        revoke_comment=key.revoke_comment,
        replaces_key_id=key.replaces_key_id,
        replaced_by_key_id=key.replaced_by_key_id,
        grace_expire_time=timestamp(key.grace_expire_time),
        etag=key.etag if key.revision else "",
    )
    if key.rotation_interval:
        message.rotation.interval.CopyFrom(duration(key.rotation_interval))
        next_time = timestamp(key.rotation_next_time)
        if next_time is not None:
            message.rotation.next_time.CopyFrom(next_time)
    return message


def verdict(outcome: Verdict, cache_ttl: int, token: Callable[[int], str]) -> service_pb.VerifyResponse:
    """Return a verdict as callers see it.

    ``cache_ttl`` is the longest that a client may reuse it; ``token`` gives the consistency token of a revision.
    """
    key = outcome.key
    message = service_pb.VerifyResponse() if key is None else service_pb.VerifyResponse.FromString(_record(key))
    _fill(message, outcome, _lasts(outcome, cache_ttl), token(outcome.view.position))
    return message


def verdicts(
    outcomes: Iterable[Verdict | None], cache_ttl: int, token: Callable[[int], str]
) -> service_pb.BatchVerifyResponse:
    """Return the verdicts of a batch, each as ``verdict`` gives it, and an empty one where nothing was decided."""
    message = service_pb.BatchVerifyResponse()
    # Most of a batch has the same outcome: what is not the key's own is written once, and joined as bytes, which is how
    # protobuf merges messages.
    moments: dict[tuple[Code, int | None], bytes] = {}
    for outcome in outcomes:
        item = message.responses.add()
        if outcome is None:
            continue
        lasts = _lasts(outcome, cache_ttl)
        moment = moments.get((outcome.code, lasts))
        if moment is None:
            blank = service_pb.VerifyResponse()
            _fill(blank, outcome, lasts, token(outcome.view.position))
            moment = moments[outcome.code, lasts] = blank.SerializeToString()
        item.MergeFromString(moment if outcome.key is None else _record(outcome.key) + moment)
    return message


def _lasts(outcome: Verdict, cache_ttl: int) -> int | None:
    """Return how long a client may reuse a verdict; None where it may not."""
    key = outcome.key
    if key is None or outcome.view.age:
        return None
    end = key.expire_time if key.expire_time < key.grace_expire_time else key.grace_expire_time
    return max(0, min(cache_ttl, end - outcome.time))


def _fill(message: service_pb.VerifyResponse, outcome: Verdict, lasts: int | None, token: str) -> None:
    """Add to a message what is not the key's own, but the verdict's."""
    message.valid = outcome.code is Code.VALID
    message.code = outcome.code  # type: ignore[assignment]  # the numbers are the same
    if lasts is not None:
        message.cache_ttl.seconds, rest = divmod(lasts, SECOND)
        message.cache_ttl.nanos = rest * 1_000
    message.check_time.seconds, rest = divmod(outcome.time - outcome.view.age, SECOND)
    message.check_time.nanos = rest * 1_000
    message.revision = outcome.view.position
    message.consistency_token = token


def _record(key: Key) -> bytes:
    """Return what every answer on a key says of it, made once for a record; as bytes, which take the least memory."""
    rendered = key.rendered
    if rendered is None:
        rendered = _rendered(key)
        object.__setattr__(key, "rendered", rendered)
    return rendered


def _rendered(key: Key) -> bytes:
    return service_pb.VerifyResponse(
        key_id=key.id,
        project_id=key.project_id,
        environment_id=key.environment_id,
        name=key.name,
        owner_id=key.owner_id,
        scopes=key.scopes,
        metadata=key.metadata,
        allowed_cidrs=key.allowed_cidrs,
        expire_time=timestamp(key.expire_time),
        grace_expire_time=timestamp(key.grace_expire_time),
        replaced_by_key_id=key.replaced_by_key_id,
    ).SerializeToString()


def event(happened: Event) -> event_pb.KeyEvent:
    """Return an event as callers see it."""
    return event_pb.KeyEvent(
        revision=happened.revision,
        type=happened.type,  # type: ignore[arg-type]  # the numbers are the same
        key_id=happened.key_id,
        project_id=happened.project_id,
        environment_id=happened.environment_id,
        time=timestamp(happened.time),
        actor=pb.Actor(key_id=happened.actor.key_id, name=happened.actor.name),
        detail=happened.detail,
        hash=happened.hash,
    )


def timestamp(instant: int) -> Timestamp | None:
    """Return an instant as a message; None for ``NEVER``."""
    return None if instant == NEVER else _timestamp(instant)


def duration(span: int) -> Duration:
    """Return a span as a message."""
    return Duration(seconds=span // SECOND, nanos=span % SECOND * 1_000)


def _timestamp(instant: int) -> Timestamp:
    return Timestamp(seconds=instant // SECOND, nanos=instant % SECOND * 1_000)

"""Records become messages. One direction: what comes in is read in ``rpc.reading``."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tumbler.v1 import api_key_pb2 as pb
from tumbler.v1 import api_key_service_pb2 as service_pb
from tumbler_server.clock import NEVER, SECOND
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


def verdict(outcome: Verdict, cache_ttl: int, consistency_token: str) -> service_pb.VerifyResponse:
    """Return a verdict as callers see it. ``cache_ttl`` is the longest that a client may reuse it."""
    message = service_pb.VerifyResponse(
        valid=outcome.code is Code.VALID,
        code=int(outcome.code),  # type: ignore[arg-type]  # the numbers are the same
        check_time=timestamp(outcome.time),
        revision=outcome.revision,
        consistency_token=consistency_token,
    )
    key = outcome.key
    if key is None:
        return message
    message.key_id = key.id
    message.project_id = key.project_id
    message.environment_id = key.environment_id
    message.name = key.name
    message.owner_id = key.owner_id
    message.scopes.extend(key.scopes)
    message.metadata.update(key.metadata)
    message.allowed_cidrs.extend(key.allowed_cidrs)
    message.replaced_by_key_id = key.replaced_by_key_id
    end = min(key.expire_time, key.grace_expire_time)
    message.cache_ttl.CopyFrom(duration(max(0, min(cache_ttl, end - outcome.time))))
    if key.expire_time != NEVER:
        message.expire_time.CopyFrom(_timestamp(key.expire_time))
    if key.grace_expire_time != NEVER:
        message.grace_expire_time.CopyFrom(_timestamp(key.grace_expire_time))
    return message


def timestamp(instant: int) -> Timestamp | None:
    """Return an instant as a message; None for ``NEVER``."""
    return None if instant == NEVER else _timestamp(instant)


def duration(span: int) -> Duration:
    """Return a span as a message."""
    return Duration(seconds=span // SECOND, nanos=span % SECOND * 1_000)


def _timestamp(instant: int) -> Timestamp:
    return Timestamp(seconds=instant // SECOND, nanos=instant % SECOND * 1_000)

"""Builds messages from records. ``rpc.requests`` does the opposite."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tumbler.decide import Code
from tumbler.v1 import api_key_pb2 as pb
from tumbler.v1 import api_key_service_pb2 as service_pb
from tumbler.v1 import event_pb2 as event_pb
from tumbler_server.clock import NEVER, SECOND
from tumbler_server.events.log import Event, EventType
from tumbler_server.keys import differences, evidence
from tumbler_server.keys.record import Key
from tumbler_server.limits import ANSWER_BYTES
from tumbler_server.verify.verifier import Verdict
from tumbler_server.webhooks.messages import TYPES

_MOMENTS = 256
"""Number of cached parts of verdicts that do not depend on the record: code, revision, how long to cache."""


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
        grace_ends_on_first_use=key.grace_ends_on_first_use,
        etag=key.etag if key.revision else "",
    )
    if key.rotation_interval:
        message.rotation.interval.CopyFrom(duration(key.rotation_interval))
        message.rotation.webhook_url = key.webhook_url
        next_time = timestamp(key.rotation_next_time)
        if next_time is not None:
            message.rotation.next_time.CopyFrom(next_time)
    return message


def verdict(outcome: Verdict, cache_ttl: int, token: Callable[[int], str]) -> bytes:
    """Return a verdict as a serialized ``VerifyResponse``.

    ``cache_ttl`` is the maximum time that a client may cache it. ``token`` returns the consistency token of a revision.
    """
    return _rendered(outcome, cache_ttl, token) + _instant(outcome)


def verdicts(outcomes: Sequence[Verdict | None], cache_ttl: int, token: Callable[[int], str]) -> Iterator[bytes]:
    """Yield the verdicts of a batch, each as ``verdict`` returns it, or an empty one if nothing was decided.

    If a verdict does not fit into the answer, it and all after it are empty. Joined, the parts are the response.
    """
    instant = b""
    room = ANSWER_BYTES.most - len(outcomes) * len(_UNDECIDED)
    for outcome in outcomes:
        item = _UNDECIDED
        if outcome is not None and room > 0:
            instant = instant or _instant(outcome)  # the same for the whole batch
            rendered = _rendered(outcome, cache_ttl, token)
            length = len(rendered) + len(instant)
            decided = b"".join((_RESPONSES, _varint(length), rendered, instant))
            room -= len(decided)
            item = decided if room >= 0 else item
        yield item


# An entry of a list is its field number and wire type, its length, and the message; see protobuf's encoding guide.
_RESPONSES = bytes([service_pb.BatchVerifyResponse.RESPONSES_FIELD_NUMBER << 3 | 2])
_UNDECIDED = _RESPONSES + b"\0"
_CHECK_TIME = bytes([service_pb.VerifyResponse.CHECK_TIME_FIELD_NUMBER << 3 | 2])


def _varint(number: int) -> bytes:
    if number < 1 << 14:
        return bytes((number,)) if number < 128 else bytes((number & 127 | 128, number >> 7))
    return bytes((number & 127 | 128,)) + _varint(number >> 7)


def _instant(outcome: Verdict) -> bytes:
    """Return the check time of a verdict. Its bytes can be appended, because protobuf merges concatenated messages."""
    instant = _timestamp(outcome.time - outcome.view.age).SerializeToString()
    return b"%b%c%b" % (_CHECK_TIME, len(instant), instant)


def _rendered(outcome: Verdict, cache_ttl: int, token: Callable[[int], str]) -> bytes:
    """Return a verdict without its check time: the record's part, followed by the rest.

    The record's part changes only with the record, and is stored beside it, as bytes because they need the least
    memory. ``record.memory`` counts them. The rest is the same for nearly all verdicts until something changes.
    """
    code, now, view, key, any_project = outcome
    if key is None:
        return _moment(code, view.position, None, any_project, token)
    lasts = None
    if not view.age:
        end = key.expire_time if key.expire_time < key.grace_expire_time else key.grace_expire_time
        lasts = cache_ttl if now + cache_ttl <= end else max(0, end - now)
    record: bytes | None = key.rendered
    if record is None:
        record = _record(key)
        object.__setattr__(key, "rendered", record)
    return record + _moment(code, view.position, lasts, any_project, token)


@functools.lru_cache(_MOMENTS)
def _moment(code: Code, position: int, lasts: int | None, any_project: bool, token: Callable[[int], str]) -> bytes:
    message = service_pb.VerifyResponse(
        valid=code is Code.VALID,
        code=int(code),  # type: ignore[arg-type]  # the numbers are the same
        revision=position,
        consistency_token=token(position),
        any_project=any_project,
    )
    if lasts is not None:
        message.cache_ttl.CopyFrom(duration(lasts))
    return message.SerializeToString()


def _record(key: Key) -> bytes:
    message = service_pb.VerifyResponse(
        key_id=key.id,
        project_id=key.project_id,
        environment_id=key.environment_id,
        name=_text(key.name),
        owner_id=_text(key.owner_id),
        scopes=key.scopes,
        metadata={_text(name): _text(value) for name, value in key.metadata.items()},
        allowed_cidrs=key.allowed_cidrs,
        replaced_by_key_id=key.replaced_by_key_id,
        expire_time=timestamp(key.expire_time),
        grace_expire_time=timestamp(key.grace_expire_time),
    )
    return message.SerializeToString()


def _text(text: str) -> Any:
    """Return a text in a form that protobuf can take without leaving a copy in it.

    When C code asks for the UTF-8 of a text that is not ASCII, CPython stores it in the text for the text's lifetime.
    For a cached record that would be a third copy, which is never used.
    """
    return text if text.isascii() else text.encode()


def event(happened: Event) -> event_pb.KeyEvent:
    """Return an event as callers who may read events see it."""
    told = watched(happened, happened.detail)
    told.client_address = happened.address or ""
    told.request_id = happened.request_id or ""
    told.record_digest = (happened.record or b"")[: evidence.SIZE]
    told.hash = happened.hash
    return told


def watched(happened: Event, detail: Mapping[str, str] | None = None) -> event_pb.KeyEvent:
    """Return an event as callers who may verify keys see it: without field values, client address and request id.

    And without its hash, which covers these: a client address is one of few enough to be guessed by it.
    """
    return event_pb.KeyEvent(
        revision=happened.revision,
        type=happened.type,  # type: ignore[arg-type]  # the numbers are the same
        key_id=happened.key_id,
        project_id=happened.project_id,
        environment_id=happened.environment_id,
        time=timestamp(happened.time),
        actor=pb.Actor(key_id=happened.actor.key_id, name=happened.actor.name),
        detail=differences.public(happened.detail) if detail is None else detail,
    )


def delivery(row: Any) -> event_pb.WebhookDelivery:
    """Return a delivery as callers see it."""
    return event_pb.WebhookDelivery(
        id=row.id,
        revision=row.revision,
        type=TYPES[EventType(row.type)],
        key_id=row.key_id,
        project_id=row.project_id,
        url=row.url,
        state=row.state,
        attempts=row.attempts,
        create_time=timestamp(row.event_time),
        last_attempt_time=timestamp(row.last_attempt_time or NEVER),
        next_attempt_time=timestamp(row.next_attempt_time),
        last_status_code=row.last_status,
        last_error=row.last_error,
    )


def timestamp(instant: int) -> Timestamp | None:
    """Return an instant as a message; None for ``NEVER``."""
    return None if instant == NEVER else _timestamp(instant)


def duration(span: int) -> Duration:
    """Return a duration as a message."""
    return Duration(seconds=span // SECOND, nanos=span % SECOND * 1_000)


def _timestamp(instant: int) -> Timestamp:
    return Timestamp(seconds=instant // SECOND, nanos=instant % SECOND * 1_000)

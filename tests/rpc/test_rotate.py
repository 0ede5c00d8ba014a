"""Rotate. `test_request_id.py` has its replays."""

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.harness import World, at, forged, lasting
from tumbler import keyformat
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR, SECOND

NOW = 1_893_456_000 * SECOND


def test_the_successor_carries_everything_over(world: World) -> None:
    """A successor has the old key's name, owner, scopes, metadata, networks, environment, prefix and schedule."""
    old = world.create(
        environment_id="live",
        name="worker",
        owner_id="alice",
        scopes=["a:read", "b:*"],
        metadata={"team": "one"},
        allowed_cidrs=["192.0.2.0/24"],
        prefix="ship_yard",
        rotation={"interval": lasting(30 * DAY)},
    ).api_key
    world.clock.advance(HOUR)
    rotator = world.create(name="rotator", scopes=["tumbler:keys:rotate"])
    rotated = world.rotate(old.id, rotator.key)
    new = rotated.api_key
    assert new == api_key_pb2.ApiKey(
        id=new.id,
        project_id="acme",
        environment_id="live",
        name="worker",
        key_prefix=f"ship_yard_{new.id}_",
        owner_id="alice",
        scopes=["a:read", "b:*"],
        metadata={"team": "one"},
        allowed_cidrs=["192.0.2.0/24"],
        state="STATE_ACTIVE",
        create_time=at(world.clock.now),
        created_by={"key_id": rotator.api_key.id, "name": "rotator"},
        update_time=at(world.clock.now),
        replaces_key_id=old.id,
        rotation={"interval": lasting(30 * DAY), "next_time": at(world.clock.now + 30 * DAY)},
        etag=new.etag,
    )
    assert world.get(new.id) == new
    assert rotated.key.startswith(new.key_prefix)


def test_the_old_key_says_what_became_of_it(world: World) -> None:
    """The old key is SUPERSEDED, has its successor's ID and the end of its grace period, and no next_time."""
    before = world.create(rotation={"interval": lasting(30 * DAY)}, scopes=["a:b"]).api_key
    world.clock.advance(HOUR)
    rotated = world.rotate(before.id)
    expected = api_key_pb2.ApiKey()
    expected.CopyFrom(before)
    expected.rotation.ClearField("next_time")
    expected.MergeFrom(
        api_key_pb2.ApiKey(
            state="STATE_SUPERSEDED",
            update_time=at(world.clock.now),
            replaced_by_key_id=rotated.api_key.id,
            grace_expire_time=at(world.clock.now + HOUR),
            etag=rotated.old_api_key.etag,
        )
    )
    assert rotated.old_api_key == expected
    assert expected.etag != before.etag
    assert world.get(before.id) == expected


def test_the_secret_is_a_new_one(world: World) -> None:
    """The new key has a new ID and a new secret, which do not combine with the old ones."""
    created = world.create()
    rotated = world.rotate(created.api_key.id)
    old, new = keyformat.parse(created.key), keyformat.parse(rotated.key)
    assert old.id != new.id
    assert old.secret != new.secret
    assert world.verdict(keyformat.build("tmb", new.id, old.secret)) == "NOT_FOUND"
    assert world.verdict(keyformat.build("tmb", old.id, new.secret)) == "NOT_FOUND"
    assert world.verdict(forged(rotated.key)) == "NOT_FOUND"


def test_the_new_key_works_at_once(world: World) -> None:
    """Both keys are valid as soon as Rotate returns, and its token names a revision that includes both."""
    created = world.create()
    rotated = world.rotate(created.api_key.id)
    freshness = {"at_least_as_fresh": rotated.consistency_token}
    assert world.verdict(rotated.key, consistency=freshness) == "VALID"
    answer = world.verify(created.key, consistency=freshness)
    assert answer.valid
    assert answer.consistency_token == rotated.consistency_token
    assert answer.replaced_by_key_id == rotated.api_key.id
    assert answer.grace_expire_time == at(world.clock.now + HOUR)


GRACES = [
    ("unset", None, None, HOUR),
    ("zero", 0, None, 0),
    ("a microsecond", 1, None, 1),
    ("ten minutes", 600 * SECOND, None, 600 * SECOND),
    ("30 days", 30 * DAY, None, 30 * DAY),
    ("past the expiry", DAY, HOUR, HOUR),
    ("unset, past the expiry", None, SECOND, SECOND),
    ("within the expiry", HOUR, DAY, HOUR),
]


@pytest.mark.parametrize(("grace", "life", "expected"), [row[1:] for row in GRACES], ids=[name for name, *_ in GRACES])
def test_the_old_key_works_until_its_grace_ends(
    world: World, grace: int | None, life: int | None, expected: int
) -> None:
    """The old key is valid until the earlier of now + grace_period and its expire_time, then SUPERSEDED."""
    created = world.create(ttl=None if life is None else lasting(life))
    rotated = world.rotate(created.api_key.id, grace_period=None if grace is None else lasting(grace))
    assert rotated.old_api_key.grace_expire_time == at(world.clock.now + expected)
    if expected:
        world.clock.advance(expected - 1)
        assert world.verdict(created.key) == "VALID"
        world.clock.advance(1)
    assert world.verdict(created.key) == "SUPERSEDED"
    assert world.get(created.api_key.id).state == api_key_pb2.STATE_SUPERSEDED


@pytest.mark.parametrize(
    "grace",
    [lasting(30 * DAY + 1), lasting(-1), Duration(nanos=-1), Duration(seconds=1, nanos=-1), Duration(seconds=10**12)],
    ids=["over 30 days", "negative", "a negative nanosecond", "two signs", "no span"],
)
def test_a_grace_of_more_than_30_days_is_refused(world: World, grace: Duration) -> None:
    """A grace_period outside 0 to 30 days is refused."""
    before = world.create().api_key
    refused = world.refused("Rotate", pb.RotateRequest(key_id=before.id, grace_period=grace))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["grace_period"])
    assert world.get(before.id) == before


def test_the_successor_lives_as_long_as_the_old_key_was_given(world: World) -> None:
    """Without an expiry in the request, the new key gets the old one's lifetime, counted from now, at each rotation."""
    key_id = world.create(ttl=lasting(90 * DAY)).api_key.id
    world.clock.advance(60 * DAY)
    second = world.rotate(key_id).api_key
    assert second.expire_time == at(world.clock.now + 90 * DAY)
    world.clock.advance(80 * DAY)
    assert world.rotate(second.id).api_key.expire_time == at(world.clock.now + 90 * DAY)


def test_a_key_that_never_expires_has_a_successor_that_never_does(world: World) -> None:
    """The successor of a key without expiry has no expiry."""
    assert not world.rotate(world.create().api_key.id).api_key.HasField("expire_time")


def test_a_lifetime_never_leaves_the_calendar(world: World) -> None:
    """A successor whose inherited lifetime would pass the year 9999 expires at its end, which every client can read."""
    last = 253_402_300_799 * SECOND
    key_id = world.create(expire_time=at(last)).api_key.id
    world.clock.advance(365 * DAY)
    rotated = world.rotate(key_id)
    assert last <= rotated.api_key.expire_time.ToMicroseconds() < last + SECOND
    assert world.verify(rotated.key).expire_time == rotated.api_key.expire_time


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"ttl": lasting(DAY)}, NOW + DAY), ({"expire_time": at(NOW + 7 * DAY)}, NOW + 7 * DAY)],
    ids=["ttl", "expire_time"],
)
def test_a_given_expiry_counts(world: World, fields: dict[str, Any], expected: int) -> None:
    """An expiry in the request applies to the new key; the old one keeps its own."""
    before = world.create(ttl=lasting(90 * DAY)).api_key
    rotated = world.rotate(before.id, **fields)
    assert rotated.api_key.expire_time == at(expected)
    assert rotated.old_api_key.expire_time == before.expire_time


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"expire_time": at(NOW)}, "expire_time"),
        ({"expire_time": {"seconds": 253_402_300_800}}, "expire_time"),
        ({"ttl": lasting(0)}, "ttl"),
        ({"ttl": lasting(36_500 * DAY + 1)}, "ttl"),
    ],
    ids=["now", "year 10000", "ttl 0", "ttl too long"],
)
def test_a_given_expiry_keeps_the_rules_of_create(world: World, fields: dict[str, Any], path: str) -> None:
    """An invalid expiry is refused, and nothing is rotated."""
    before = world.create().api_key
    refused = world.refused("Rotate", pb.RotateRequest(key_id=before.id, **fields))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [path])
    assert world.get(before.id) == before


def test_an_inactive_key_has_an_inactive_successor(world: World) -> None:
    """The successor of an inactive key is inactive: a rotation enables nothing that was disabled."""
    created = world.create()
    world.set_active(created.api_key.id, False)
    rotated = world.rotate(created.api_key.id)
    assert rotated.api_key.state == api_key_pb2.STATE_INACTIVE
    assert (world.verdict(created.key), world.verdict(rotated.key)) == ("INACTIVE", "INACTIVE")
    world.set_active(rotated.api_key.id, True)
    assert (world.verdict(created.key), world.verdict(rotated.key)) == ("INACTIVE", "VALID")


def test_a_key_is_rotated_once(world: World) -> None:
    """Rotating a superseded key is FAILED_PRECONDITION, in its grace period and after it, and names its successor."""
    key_id = world.create().api_key.id
    successor = world.rotate(key_id).api_key.id
    for _ in range(2):
        refused = world.refused("Rotate", pb.RotateRequest(key_id=key_id))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_SUPERSEDED")
        assert refused.info.metadata == {"key_id": key_id, "replaced_by_key_id": successor}
        world.clock.advance(DAY)


@pytest.mark.parametrize("reason", ["KEY_REVOKED", "KEY_EXPIRED"])
def test_a_dead_key_is_not_rotated(world: World, reason: str) -> None:
    """Rotating a revoked or expired key is FAILED_PRECONDITION with the reason, and makes no successor."""
    before = world.create(ttl=lasting(HOUR)).api_key
    if reason == "KEY_REVOKED":
        world.revoke(before.id)
    else:
        world.clock.advance(HOUR)
    events = len(world.events())
    refused = world.refused("Rotate", pb.RotateRequest(key_id=before.id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    assert refused.info.metadata == {"key_id": before.id}
    assert len(world.events()) == events


def test_an_expired_key_can_be_rotated_once_it_is_revived(world: World) -> None:
    """An expired key can be rotated after its expire_time is moved to the future."""
    created = world.create(ttl=lasting(HOUR))
    world.clock.advance(2 * HOUR)
    world.update(created.api_key.id, "expire_time", expire_time=at(world.clock.now + HOUR))
    assert world.verdict(world.rotate(created.api_key.id).key) == "VALID"


def test_an_unknown_key_cannot_be_rotated(world: World) -> None:
    """Rotating an unknown ID is NOT_FOUND."""
    refused = world.refused("Rotate", pb.RotateRequest(key_id="0" * 16))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")


def test_successors_form_a_chain(world: World) -> None:
    """Each key in a chain names its predecessor and its successor, and keeps the first one's name."""
    texts = [world.create(name="worker")]
    for _ in range(3):
        texts.append(world.rotate(texts[-1].api_key.id))
    keys = [world.get(answer.api_key.id) for answer in texts]
    ids = [key.id for key in keys]
    assert [key.replaces_key_id for key in keys] == ["", *ids[:-1]]
    assert [key.replaced_by_key_id for key in keys] == [*ids[1:], ""]
    assert {key.name for key in keys} == {"worker"}
    assert [world.verdict(answer.key) for answer in texts] == ["VALID"] * 4
    world.clock.advance(HOUR)
    assert [world.verdict(answer.key) for answer in texts] == ["SUPERSEDED"] * 3 + ["VALID"]


def test_an_update_during_the_grace_leaves_the_successor_alone(world: World) -> None:
    """After a rotation the two keys are independent: an Update of the old one does not change the successor."""
    created = world.create(scopes=["a:b"])
    rotated = world.rotate(created.api_key.id, grace_period=lasting(DAY))
    world.update(created.api_key.id, "scopes", "expire_time", expire_time=at(world.clock.now + HOUR))
    assert world.verdict(created.key, required_scopes=["a:b"]) == "INSUFFICIENT_SCOPE"
    assert world.verdict(rotated.key, required_scopes=["a:b"]) == "VALID"
    world.clock.advance(HOUR)
    assert (world.verdict(created.key), world.verdict(rotated.key)) == ("EXPIRED", "VALID")
